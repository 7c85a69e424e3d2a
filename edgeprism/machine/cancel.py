"""Stop native work from outside: by Ctrl-C, or from another thread of an embedding program.

Python runs signal handlers only after a native call has returned. Here Python's C-level handler
writes to a pipe at once; a thread reads the pipe and asks the engines to stop, and they return
within milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from edgeprism.errors import EXIT_INTERRUPTED

_live: weakref.WeakSet[Cancel] = weakref.WeakSet()


class Cancel:
    """One request to stop, shared by the engines of a captioner or reasoner.

    `flag` is two bytes that native code may read at any moment: the first is 0 until `set()`.
    """

    def __init__(self) -> None:
        self.flag = ctypes.create_string_buffer(2)
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        _live.add(self)

    def is_set(self) -> bool:
        """Return whether `set` was called."""
        return self.flag.raw[0] != 0

    def set(self) -> None:
        """Ask all running work to stop; any thread may call this."""
        self.flag[0] = b"\x01"
        with self._lock:
            for callback in self._callbacks:
                callback()

    def clear(self) -> None:
        """Forget an earlier request to stop."""
        self.flag[0] = b"\x00"

    @contextlib.contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Inside the block, `set()` also calls `callback`, at most once and from any thread."""
        with self._lock:
            self._callbacks.append(callback)
        try:
            if self.is_set():
                callback()
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)


def nonzero_when_set() -> Any:
    """Return a C function that tells whether `Cancel.flag` is set, without running Python: strlen.

    Native code calls it at every node of a graph, where taking Python's lock would cost more than
    the node. strlen of the two bytes gives 0 until the first byte is set, then 1.
    """
    return ctypes.CDLL("msvcrt" if os.name == "nt" else None).strlen


@contextlib.contextmanager
def interruptible(grace_s: float = 0.8) -> Iterator[None]:
    """Inside the block, Ctrl-C stops native work; Python then raises KeyboardInterrupt as usual.

    Native calls that cannot be stopped (loading a model) get `grace_s` to return; then the process
    ends with EXIT_INTERRUPTED. Outputs appear under their names only when they are complete, so
    nothing half-written is left. Only the main thread can watch signals; in other threads this
    does nothing.
    """
    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    done = threading.Event()
    previous = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    watcher = threading.Thread(
        target=_watch, args=(read_end, done, grace_s), name="interrupt", daemon=True
    )
    watcher.start()
    report = sys.unraisablehook
    sys.unraisablehook = lambda raised: _unless_interrupt(raised, report)
    try:
        yield
    finally:
        sys.unraisablehook = report
        signal.set_wakeup_fd(previous)
        done.set()
        os.close(write_end)  # the watcher then reads the end of the pipe, and returns
        watcher.join()
        os.close(read_end)


@contextlib.contextmanager
def finishing_first(finish: Callable[[], None]) -> Iterator[None]:
    """Inside the block, the first Ctrl-C or SIGTERM only calls `finish`; the second interrupts.

    Use it inside `interruptible`, in the main thread.
    """
    global _finish
    count = 0

    def handle(_number: int, _frame: object) -> None:
        nonlocal count
        count += 1
        if count == 1:
            finish()
        else:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, handle) for number in _STOPPING}
    _finish = finish
    try:
        yield
    finally:
        _finish = None
        for number, handler in previous.items():
            signal.signal(number, handler)


def _unless_interrupt(raised: Any, report: Callable[[Any], object]) -> None:
    """Call `report` for an exception that nobody can catch, unless it is a KeyboardInterrupt.

    Python raises KeyboardInterrupt wherever the main thread is, even in a callback of a native
    library. There it is lost, and Python would print a traceback. The watcher has read the same
    signal and stops the library, so nothing needs to be printed.
    """
    if not issubclass(raised.exc_type, KeyboardInterrupt):
        report(raised)


_STOPPING = (signal.SIGINT, signal.SIGTERM)
_finish: Callable[[], None] | None = None


def _watch(read_end: int, done: threading.Event, grace_s: float) -> None:
    finishing = False
    while received := os.read(read_end, 1):
        if received[0] not in _STOPPING:
            continue
        if _finish is not None and not finishing:
            finishing = True
            _finish()  # not left to the main thread, which may be inside a long native call
            continue
        for cancel in list(_live):
            cancel.set()
        if not done.wait(grace_s):
            os._exit(EXIT_INTERRUPTED)
