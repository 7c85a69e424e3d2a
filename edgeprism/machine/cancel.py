"""Stop native work from outside: by a signal, or from another thread of an embedding program.

Three signals ask a command to stop, and all have the same effect: SIGINT (Ctrl-C), SIGTERM
(`docker stop`, `kill`) and SIGHUP (the terminal is gone).

Python runs signal handlers only after a native call has returned. Here Python's C-level handler
writes to a pipe at once; a thread reads the pipe and asks the engines to stop, and they return
within milliseconds.
"""

from __future__ import annotations

import contextlib
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
        import ctypes  # not at the top: help stops no native code

        self.flag = ctypes.create_string_buffer(2)
        self.start_anew()
        _live.add(self)

    def start_anew(self) -> None:
        """Forget what other threads wait for; for a process that was forked, which lacks them."""
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()

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
    import ctypes

    return ctypes.CDLL("msvcrt" if os.name == "nt" else None).strlen


@contextlib.contextmanager
def interruptible(grace_s: float = 0.8, *, ends_process: bool = False) -> Iterator[None]:
    """Inside the block, Ctrl-C, SIGTERM and SIGHUP stop native work and raise KeyboardInterrupt.

    Native calls that cannot be stopped (loading a model) get `grace_s` to return; then the process
    ends with EXIT_INTERRUPTED, after it has killed its children. Outputs appear under their names
    only when they are complete, so nothing half-written is left. With `ends_process`, the process
    ends after the block and ignores later signals. Only the main thread can watch signals; in
    other threads this does nothing.
    """
    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    done = threading.Event()
    previous = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    handlers = _handle_stopping(_interrupt)
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
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_IGN if ends_process else handler)
        signal.set_wakeup_fd(previous)
        done.set()
        os.close(write_end)  # the watcher then reads the end of the pipe, and returns
        watcher.join()
        os.close(read_end)


@contextlib.contextmanager
def finishing_first(finish: Callable[[], None], *, second_ends: bool = False) -> Iterator[None]:
    """Inside the block, the first stopping signal only calls `finish`; the second interrupts.

    With `second_ends` the second ends the process at once: where a library would end it by itself,
    with another code, once it is interrupted. Use it inside `interruptible`, in the main thread.
    """
    global _finish, _second_ends
    count = 0

    def handle(_number: int, _frame: object) -> None:
        nonlocal count
        count += 1
        if count == 1:
            finish()
        else:
            _interrupt()

    previous = _handle_stopping(handle)
    _finish, _second_ends = finish, second_ends
    try:
        yield
    finally:
        _finish, _second_ends = None, False
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside the block, a stopping signal waits for the block's end; for the import of a library.

    An import that KeyboardInterrupt breaks off raises other errors instead, leaves the library
    half loaded, and would be taken for a broken installation. Only the main thread runs handlers
    of signals, so in other threads this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    previous = _handle_stopping(lambda number, _: received.append(number))
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for number in received[:1]:
            signal.raise_signal(number)


def was_interrupted() -> bool:
    """Return whether a signal has raised KeyboardInterrupt inside `interruptible`."""
    return _interrupted


def before_forced_end(callback: Callable[[], None]) -> None:
    """Have `callback` called before `interruptible` ends a process that does not return."""
    _before_forced_end.append(callback)


def _interrupt(_number: int = 0, _frame: object = None) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def _handle_stopping(handler: Callable[[int, Any], object]) -> dict[int, Any]:
    """Let `handler` receive the stopping signals; return the handlers before.

    SIGINT and SIGHUP stay ignored if the parent had them ignored: a shell does so for a command
    in the background, nohup for one that is to outlive its terminal. SIGTERM is handled in any
    case: process 1 of a container would not get it otherwise.
    """
    previous: dict[int, Any] = {}
    for number in _STOPPING:
        before = signal.getsignal(number)
        ignored = before is signal.SIG_IGN and number != signal.SIGTERM
        if not ignored and before is not None:  # None: native code has installed its own
            previous[number] = signal.signal(number, handler)
    return previous


def _unless_interrupt(raised: Any, report: Callable[[Any], object]) -> None:
    """Call `report` for an exception that nobody can catch, unless it is a KeyboardInterrupt.

    Python raises KeyboardInterrupt wherever the main thread is, even in a callback of a native
    library. There it is lost, and Python would print a traceback. The watcher has read the same
    signal and stops the library, so nothing needs to be printed.
    """
    if not issubclass(raised.exc_type, KeyboardInterrupt):
        report(raised)


_STOPPING = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if os.name == "posix" else [])]
_interrupted = False
_before_forced_end: list[Callable[[], None]] = []
_finish: Callable[[], None] | None = None
_second_ends = False


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
        if _second_ends or not done.wait(grace_s):
            for callback in _before_forced_end:
                callback()
            os._exit(EXIT_INTERRUPTED)
