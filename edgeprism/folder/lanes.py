"""Lanes: threads that each run a generator over one language model.

A small model's steps are too short to share among cores: waking a second core costs more time than
it saves. So each core runs its own generator, with its own sequences.
"""

from __future__ import annotations

import queue
import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from edgeprism.folder.events import Event, Failed, Generated, Job, LaneEnded
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable


class Turns:
    """A fair lock: threads get it in the order in which they asked for it.

    It lets the two engines run one at a time if each uses all cores. If they ran at the same time,
    each would wait at its barriers for threads that the other keeps from running.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = self._serving = 0

    def __enter__(self) -> None:
        with self._changed:
            ticket, self._next = self._next, self._next + 1
            while ticket != self._serving:
                self._changed.wait()

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()


class Lane(threading.Thread):
    """Takes jobs from `ready` and reports each caption, an error if one occurs, and its own end.

    `None` in `ready` ends every lane as soon as its captions in flight are finished.
    """

    def __init__(
        self,
        generator: Generator,
        to_request: Callable[[Job], Request],
        ready: queue.Queue[Job | None],
        report: Callable[[Event], None],
        cores: AbstractContextManager[object],
        stopping: threading.Event,
    ) -> None:
        super().__init__(name="lane")
        self._generator, self._to_request = generator, to_request
        self._ready, self._report, self._cores, self._stopping = ready, report, cores, stopping
        self._abandoned = threading.Event()
        self._jobs: dict[int, Job] = {}  # in flight
        self._waiting: Job | None = None  # needs a longer context once those in flight are done
        self._more = True

    def abandon(self) -> None:
        """Drop the captions in flight. Safe from any thread."""
        self._abandoned.set()

    def run(self) -> None:
        """Admit jobs and step the generator until no job is left."""
        try:
            while (self._more or self._waiting or self._jobs) and not self._abandoned.is_set():
                self._admit()
                self._step()
        except BaseException as error:
            self._report(Failed(error))
        finally:
            self._generator.close()
            self._report(LaneEnded())

    def _admit(self) -> None:
        """Begin jobs while there is room; wait for a new job only if none is in flight."""
        while len(self._jobs) < self._generator.parallel:
            job, self._waiting = self._waiting or self._next(), None
            if job is None:
                return
            if self._stopping.is_set():
                continue
            request = self._to_request(job)
            if not self._generator.has_room(request):
                self._waiting = job
                return
            with self._cores:
                self._generator.add(job.index, request)
            self._jobs[job.index] = job

    def _next(self) -> Job | None:
        """Return the next job; None if there is none yet, or none will come."""
        if not self._more:
            return None
        try:
            job = self._ready.get(block=not self._jobs)
        except queue.Empty:
            return None
        if job is None:
            self._more = False
            self._ready.put(None)  # for the next lane
        return job

    def _step(self) -> None:
        with self._cores:
            events = self._generator.step()
        for event in events:
            if isinstance(event, Finished):
                self._report(Generated(self._jobs.pop(event.index), event))
