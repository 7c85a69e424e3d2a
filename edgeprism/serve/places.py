"""Places in the server's queue: how many captions and answers may wait or be in the making."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

from edgeprism.serve.refusals import Refusal

_LONGEST_WAIT_S = 60
_MEMORY = 0.9  # share that the mean keeps of what it was, at each place that is left


class Places:
    """A bounded number of places. A full queue refuses, and says when to come back."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._left_at: float | None = None
        self._seconds = 1.0  # between two places that are left while others wait

    @contextlib.contextmanager
    def take(self, count: int = 1) -> Iterator[Held]:
        """Hold places inside the block; raises Refusal (429) if there are not so many."""
        if self.taken and self.taken + count > self.limit:
            wait = min(_LONGEST_WAIT_S, max(1, math.ceil(self._seconds * self.taken / 2)))
            raise Refusal(
                429, "queue_full", f"{self.taken} pictures and questions are waiting already.",
                f"Try again in {wait} s.", headers={"Retry-After": str(wait)},
            )  # fmt: skip
        held = Held(self, count)
        self.taken += count
        try:
            yield held
        finally:
            held.leave(held.count)

    def leave(self, count: int) -> None:
        """Give places back."""
        self.taken -= count
        now = time.monotonic()
        if self._left_at is not None and self.taken:
            each = (now - self._left_at) / count
            self._seconds = _MEMORY * self._seconds + (1 - _MEMORY) * each
        self._left_at = now


class Held:
    """The places of one request.

    Each is left when its caption is finished, so a client that reads slowly keeps nobody out.
    """

    def __init__(self, places: Places, count: int) -> None:
        self._places, self.count = places, count

    def leave(self, count: int = 1) -> None:
        """Leave some of the places, if there are any left."""
        count = min(count, self.count)
        if count:
            self.count -= count
            self._places.leave(count)
