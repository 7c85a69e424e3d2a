"""A caption piece by piece, with its record at the end."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NoReturn

from edgeprism.errors import UsageError
from edgeprism.language.generator import Piece
from edgeprism.machine.turns import Turns
from edgeprism.records import Caption, EncodedImage


@dataclass(frozen=True)
class Ended:
    """The result of a caption's steps: the record, and the text's token ids."""

    caption: Caption
    ids: list[int]


class CaptionStream:
    """Iterates over a caption's text; `caption`, `text` and `ids` are there after the last piece.

    It holds the captioner from the start of the caption until its last piece, `close`, or until
    nobody refers to the stream any more. Threads that want the captioner wait for that.
    """

    def __init__(
        self, steps: Generator[EncodedImage | Piece, None, Ended], turns: Turns | None = None
    ) -> None:
        """`steps` yields the pieces of one caption, and returns its record and token ids.

        `turns` says when this thread may run them.
        """
        self._steps, self._turns = steps, turns or Turns()
        self._work = self._turns.begin()
        self._lock = threading.RLock()  # two threads that read one stream get a piece in turn
        self._ended: Ended | None = None
        self._closed = False

    def begin(self) -> None:
        """Run the steps up to the encoded picture."""
        try:
            next(self._steps)
        except BaseException:
            self._turns.end(self._work)
            raise

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while True:
            # The lock is not held while this waits for another thread, which may want to close
            # this stream meanwhile.
            with self._lock:
                if self._closed:
                    raise StopIteration
                if self._turns.try_to_resume(self._work):
                    return self._next_piece()
            self._turns.wait(self._work)

    def _next_piece(self) -> str:
        try:
            while True:
                piece = next(self._steps)
                if isinstance(piece, Piece):
                    return piece.text
        except StopIteration as end:
            self._ended = end.value
            self.close()
            raise StopIteration from None
        except BaseException:
            self.close()
            raise

    @property
    def caption(self) -> Caption:
        """The record. Raises UsageError before the end of the text."""
        return self._result().caption

    @property
    def text(self) -> str:
        """The whole text. Raises UsageError before its end."""
        return self._result().caption.text

    @property
    def ids(self) -> list[int]:
        """The text's token ids. Raises UsageError before its end."""
        return self._result().ids

    def finished(self) -> CaptionStream:
        """Read the rest of the text and return this stream."""
        for _ in self:
            pass
        return self

    def close(self) -> None:
        """Stop the caption here; the captioner's next request in this thread also stops it."""
        with self._lock:
            self._closed = True
            self._steps.close()
            self._turns.end(self._work)

    def __del__(self) -> None:
        if hasattr(self, "_closed"):  # else `begin` of the turn was interrupted
            self.close()

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "A caption stream cannot be pickled: it is a caption in the making.",
            "Read it to its end and send the caption that it then holds.",
        )

    def _result(self) -> Ended:
        if self._ended is None:
            raise UsageError(
                "The caption has not ended: its stream was not read to the end.",
                "Read all pieces first, or call `finished()`.",
            )
        return self._ended
