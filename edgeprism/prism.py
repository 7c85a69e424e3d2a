"""Both stages: the captioner perceives, the reasoner answers from its captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeprism.captioner import Captioner
from edgeprism.errors import UsageError
from edgeprism.image import ImageSource
from edgeprism.reasoner import Reasoner
from edgeprism.records import Answer, Caption, EncodedImage


class Prism:
    """A captioner and a reasoner; each loads its engine when first used."""

    def __init__(self, captioner: Captioner, reasoner: Reasoner) -> None:
        self.captioner, self.reasoner = captioner, reasoner

    def ask(
        self,
        images: ImageSource | EncodedImage | Sequence[ImageSource | EncodedImage],
        question: str,
        *,
        focus: str | None = None,
        max_tokens: int | None = None,
        caption_tokens: int | None = None,
        **caption_options: Any,
    ) -> Answer:
        """Caption each picture, then answer from the captions alone.

        `focus` names what the captions should attend to (the question-related instruction);
        `max_tokens` bounds the answer, `caption_tokens` each caption. Other options are the
        captioner's (`Captioner.stream`).
        """
        pictures = list(images) if isinstance(images, (list, tuple)) else [images]
        if not pictures:
            raise UsageError("No picture to ask about.", "Name at least one.")
        options = {"focus": focus, "max_tokens": caption_tokens, **caption_options}
        captions = [self.captioner.caption(picture, **options) for picture in pictures]
        return self.answer(captions, question, focus=focus, max_tokens=max_tokens)

    def answer(
        self,
        captions: Sequence[Caption],
        question: str,
        *,
        focus: str | None = None,
        max_tokens: int | None = None,
    ) -> Answer:
        """Answer from captions that exist already."""
        options = {} if max_tokens is None else {"max_tokens": max_tokens}
        return self.reasoner.answer(captions, question, focus=focus or "", **options)

    def close(self) -> None:
        """Free both models."""
        self.captioner.close()
        self.reasoner.close()
