"""A caption piece by piece, with its record at the end."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from edgeprism.language.generator import Piece
from edgeprism.records import Caption, EncodedImage


@dataclass(frozen=True)
class Ended:
    """The result of a caption's steps: the record, and the text's token ids."""

    caption: Caption
    ids: list[int]


class CaptionStream:
    """Iterates over a caption's text; `caption` and `ids` are set after the last piece."""

    caption: Caption
    ids: list[int]

    def __init__(self, steps: Generator[EncodedImage | Piece, None, Ended]) -> None:
        """`steps` yields the pieces of one caption, and returns its record and token ids."""
        self._steps = steps
        self._text = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._text

    def __next__(self) -> str:
        return next(self._text)

    def finished(self) -> CaptionStream:
        """Read the rest of the text and return this stream."""
        for _ in self:
            pass
        return self

    def close(self) -> None:
        """Stop the caption here; the captioner's next request also stops it."""
        self._text.close()

    def _run(self) -> Generator[str, None, None]:
        try:
            while True:
                piece = next(self._steps)
                if isinstance(piece, Piece):
                    yield piece.text
        except StopIteration as end:
            ended: Ended = end.value
        finally:
            self._steps.close()
        self.caption, self.ids = ended.caption, ended.ids
