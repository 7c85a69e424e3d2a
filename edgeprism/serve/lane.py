"""A lane of the server: a thread that decodes the captions of several clients together.

It is the folder engine's lane for requests that come one by one: each has its own instruction and
sampling, hands its text on as it comes, can be given up, and fails alone.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from edgeprism.errors import EdgePrismError
from edgeprism.language.generator import Finished, Generator, Piece
from edgeprism.language.request import Request
from edgeprism.language.sampler import Sampler

if TYPE_CHECKING:
    from edgeprism.serve.engine import Work


class Lane(threading.Thread):
    """Takes works from `ready` until it gets None; `finish` and `fail` are called for each."""

    def __init__(
        self,
        generator: Generator,
        to_request: Callable[[Work], Request],
        ready: queue.Queue[Work | None],
        cores: AbstractContextManager[object],
        *,
        admitted: Callable[[], object],
        finish: Callable[[Work, Finished], object],
        fail: Callable[[Work, Exception], object],
    ) -> None:
        """`admitted` is called for each work that leaves `ready`, in this thread."""
        super().__init__(name="serving lane", daemon=True)
        self._generator, self._to_request = generator, to_request
        self._ready, self._cores = ready, cores
        self._admitted, self._finish, self._fail = admitted, finish, fail
        self._works: dict[int, Work] = {}  # in the generator, by their index
        self._waiting: Work | None = None  # needs a longer context once the others are finished
        self._numbers = itertools.count()
        self._closing = False

    def run(self) -> None:
        """Admit works and step the generator until the lane is closed."""
        while not self._closing or self._works or self._waiting:
            try:
                self._admit()
                self._drop_cancelled()
                if self._works:
                    with self._cores:
                        events = self._generator.step()
                    self._hand_on(events)
            except Exception as error:  # of the engine: it concerns all that it works on
                self._fail_all(error)
        self._generator.close()

    def _admit(self) -> None:
        """Begin works while there is room; wait for one only if none is in progress."""
        while len(self._works) < self._generator.parallel:
            work, self._waiting = self._waiting or self._next(), None
            if work is None:
                return
            if work.cancelled:
                continue
            try:
                request = self._to_request(work)
                if not self._generator.has_room(request):
                    self._waiting = work
                    return
                # before the cores are taken, because a long grammar takes a while
                sampler = self._generator.sampler(request)
            except EdgePrismError as error:  # such as a prompt that is too long
                self._fail(work, error)
                continue
            self._begin(work, request, sampler)

    def _begin(self, work: Work, request: Request, sampler: Sampler) -> None:
        index = next(self._numbers)
        self._works[index] = work
        with self._cores:
            self._generator.add(index, request, sampler)
        self._hand_on(self._generator.new_events())  # the first token goes out at once

    def _next(self) -> Work | None:
        """Return the next work; None if there is none now."""
        if self._closing:
            return None
        try:
            work = self._ready.get(block=not self._works)
        except queue.Empty:
            return None
        if work is None:
            self._closing = True
            self._ready.put(None)  # for the next lane
        else:
            self._admitted()
        return work

    def _drop_cancelled(self) -> None:
        for index, work in list(self._works.items()):
            if work.cancelled:
                self._generator.discard(index)
                del self._works[index]

    def _hand_on(self, events: list[Piece | Finished]) -> None:
        for event in events:
            if isinstance(event, Piece):
                self._works[event.index].piece(event.text)
            else:
                self._finish(self._works.pop(event.index), event)

    def _fail_all(self, error: Exception) -> None:
        works, self._works = list(self._works.values()), {}
        self._generator.drop()
        for work in works:
            self._fail(work, error)
