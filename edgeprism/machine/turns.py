"""Let the threads of a program use an engine one after another.

An engine's native state belongs to one call at a time. A call holds the engine until it returns, a
stream until it is read to its end, closed, or garbage. `Turns` differs from a lock in four ways:

- A thread that holds the engine may use it again, for example caption a picture while it reads a
  stream of another. What this does to the stream is the engine's business (it ends the stream with
  an error); it is no deadlock.
- Work moves with its thread: a stream that one thread began may be read or closed by another.
- Work whose thread has ended without finishing it does not block the others.
- A process that was forked while a thread held the engine starts anew.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator

# how often a waiting thread looks whether the work that it waits for has been dropped
_CHECK_S = 0.2


class Work:
    """One piece of work that holds the engine until its end; as garbage it does not."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()


class Turns:
    """Who may use an engine now."""

    def __init__(self) -> None:
        self._start_anew()

    def begin(self) -> Work:
        """Wait until no other thread uses the engine; return work that holds it until `end`."""
        work = Work()
        while not self.try_to_resume(work):
            self.wait(work)
        return work

    def try_to_resume(self, work: Work) -> bool:
        """Let `work` hold the engine in this thread; return False if another thread uses it."""
        self._follow_fork()
        with self._changed:
            if self._others(work):
                return False
            work.thread = threading.current_thread()
            self._works.add(work)
            return True

    def wait(self, work: Work) -> None:
        """Wait until `try_to_resume` may succeed."""
        self._follow_fork()
        with self._changed:
            if self._others(work):
                self._changed.wait(_CHECK_S)

    def end(self, work: Work) -> None:
        """End `work`; does nothing if it has ended."""
        self._follow_fork()
        with self._changed:
            self._works.discard(work)
            self._changed.notify_all()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the engine inside the block."""
        work = self.begin()
        try:
            yield
        finally:
            self.end(work)

    def _others(self, work: Work) -> bool:
        """Return whether work other than `work` is in progress in another thread."""
        own = threading.current_thread()
        return any(
            other is not work and other.thread is not own and other.thread.is_alive()
            for other in list(self._works)
        )

    def _follow_fork(self) -> None:
        if self._process != os.getpid():
            self._start_anew()

    def _start_anew(self) -> None:
        self._process = os.getpid()
        # A condition's lock can be taken again by its owner. It must be: while a thread is in
        # here, Python may collect a stream that was dropped, and its end comes here as well.
        self._changed = threading.Condition()
        self._works: weakref.WeakSet[Work] = weakref.WeakSet()
