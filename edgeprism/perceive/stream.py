"""A caption as it comes: text piece by piece, the record at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace

from edgeprism.language.generator import Finished, Piece
from edgeprism.records import Caption, Timings


class CaptionStream:
    """Iterates over a caption's text; `caption` and `ids` are there when it has ended."""

    caption: Caption
    ids: list[int]

    def __init__(
        self,
        begin: Callable[[], tuple[Iterable[Piece | Finished], float]],
        record: Callable[[Finished, Timings], Caption],
        spent: Timings,
    ) -> None:
        """A stream of one request.

        `begin` gives its events, and the milliseconds that loading took; `record` makes the
        caption of the last event, and of all that was spent: `spent` before.
        """
        self._begin, self._record, self._spent = begin, record, spent
        self._events = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._events

    def __next__(self) -> str:
        return next(self._events)

    def finished(self) -> CaptionStream:
        """Read to the end."""
        for _ in self:
            pass
        return self

    def close(self) -> None:
        """Stop here; the captioner's next request does the same."""
        self._events.close()

    def _run(self) -> Generator[str, None, None]:
        start = time.perf_counter()
        events, load_ms = self._begin()
        for event in events:
            if isinstance(event, Piece):
                yield event.text
                continue
            self.ids = event.ids
            load, total = self._spent.load + load_ms, (time.perf_counter() - start) * 1000
            timings = replace(self._spent, load=load, total=self._spent.total + total)
            self.caption = self._record(event, timings)
