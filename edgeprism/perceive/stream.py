"""A caption as it comes: text piece by piece, the record at its end."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from edgeprism.language.generator import Piece
from edgeprism.records import Caption, EncodedImage


@dataclass(frozen=True)
class Ended:
    """What the steps of a caption end with: the record, and the text's token ids."""

    caption: Caption
    ids: list[int]


class CaptionStream:
    """Iterates over a caption's text; `caption` and `ids` are there when it has ended."""

    caption: Caption
    ids: list[int]

    def __init__(self, steps: Generator[EncodedImage | Piece, None, Ended]) -> None:
        """`steps` yields the pieces of one caption, and returns how it ended."""
        self._steps = steps
        self._text = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._text

    def __next__(self) -> str:
        return next(self._text)

    def finished(self) -> CaptionStream:
        """Read to the end."""
        for _ in self:
            pass
        return self

    def close(self) -> None:
        """Stop here; the captioner's next request does the same."""
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
