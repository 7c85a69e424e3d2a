"""Both stages: the captioner perceives, the reasoner answers from its captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgeprism.choices import INSTRUCTION_MODES
from edgeprism.errors import UsageError
from edgeprism.picture.read import MAX_FILE_BYTES, ImageSource
from edgeprism.reason.base import BaseReasoner
from edgeprism.reason.merge import merge_captions
from edgeprism.reason.shape import Shape
from edgeprism.records import Answer, Caption, EncodedImage


class Perceiver(Protocol):
    """What Prism needs of a captioner."""

    def caption(self, image: ImageSource | EncodedImage, **options: Any) -> Caption: ...

    def close(self) -> None: ...


class Prism:
    """A captioner, or several, and a reasoner; each loads its engine when first used.

    With `apart` only one of them is in memory at a time: the reasoner is freed once it has drawn
    a focus, and each captioner once it has described all pictures.
    """

    def __init__(
        self,
        captioner: Perceiver | Sequence[Perceiver],
        reasoner: BaseReasoner,
        *,
        apart: bool = False,
    ) -> None:
        """Raises UsageError where `captioner` is an empty sequence."""
        self.captioners = tuple(captioner) if isinstance(captioner, Sequence) else (captioner,)
        if not self.captioners:
            raise UsageError("No captioner.", "Name at least one.")
        self.reasoner, self.apart = reasoner, apart

    @property
    def captioner(self) -> Perceiver:
        """The first captioner."""
        return self.captioners[0]

    def ask(
        self,
        images: ImageSource | EncodedImage | Sequence[ImageSource | EncodedImage],
        question: str,
        *,
        options: Mapping[str, str] | None = None,
        hint: str | None = None,
        instruction_mode: str = "question",
        focus: str | None = None,
        max_tokens: int | None = None,
        caption_tokens: int | None = None,
        shape: Shape | None = None,
        merge: bool = False,
        evidence: bool = False,
        **caption_options: Any,
    ) -> Answer:
        """Caption each picture, then answer from the captions alone.

        With `instruction_mode` "question" the reasoner first turns the question into a focus,
        what the captions should attend to; where it cannot, the generic instruction is used and
        the answer's notes say so. A `focus` that is given wins. `options`, `hint`, `shape` and
        `evidence` are those of `BaseReasoner.answer`; `max_tokens` bounds the answer,
        `caption_tokens` each caption. Several captioners' captions stand side by side, unless
        `merge`: then the reasoner makes one of them first (`merge_captions`). Other options are
        the captioner's (`Captioner.plan`).
        """
        pictures = list(images) if isinstance(images, (list, tuple)) else [images]
        if not pictures:
            raise UsageError("No picture to ask about.", "Name at least one.")
        focus, notes = self.focus_for(question, instruction_mode, focus, options)
        wishes = {"focus": focus, "max_tokens": caption_tokens, **caption_options}
        if self.apart:
            self.reasoner.close()
        captions = self._describe(pictures, wishes)
        if merge:
            captions, told = merge_captions(self.reasoner, captions)
            notes += told
        return self.answer(
            captions, question, options=options, hint=hint, focus=focus, notes=notes,
            max_tokens=max_tokens, shape=shape, evidence=evidence,
        )  # fmt: skip

    def _describe(
        self, pictures: Sequence[ImageSource | EncodedImage], wishes: Mapping[str, Any]
    ) -> tuple[Caption, ...]:
        """Each captioner's captions of all pictures, one captioner after another."""
        if len(self.captioners) > 1:  # a file object can be read once
            pictures = [
                picture.read(MAX_FILE_BYTES + 1) if hasattr(picture, "read") else picture
                for picture in pictures
            ]
        captions: list[Caption] = []
        for captioner in self.captioners:
            own = [captioner.caption(picture, **wishes) for picture in pictures]
            if self.apart:
                captioner.close()
            if own[0].model.digest in {caption.model.digest for caption in captions}:
                raise UsageError(
                    f"{own[0].model.name} is named twice among the captioners.", "Name each once."
                )
            captions += own
        return tuple(captions)

    def focus_for(
        self,
        question: str,
        instruction_mode: str = "question",
        focus: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> tuple[str, tuple[str, ...]]:
        """The focus for the captioner, "" for the generic instruction, and notes on it."""
        if instruction_mode not in INSTRUCTION_MODES:
            raise UsageError(
                f"Instruction mode {instruction_mode!r} is not known.",
                f"Known: {', '.join(INSTRUCTION_MODES)}.",
            )
        if focus is not None and focus.strip():
            return focus.strip(), ()
        if instruction_mode == "generic":
            return "", ()
        drawn, why_not = self.reasoner.draw_focus(question, options=options)
        return drawn, () if drawn else (f"no focus: {why_not}; the generic instruction was used",)

    def answer(
        self,
        captions: Sequence[Caption],
        question: str,
        *,
        focus: str | None = None,
        max_tokens: int | None = None,
        **options: Any,
    ) -> Answer:
        """Answer from captions that exist already; options as for `BaseReasoner.answer`."""
        if max_tokens is not None:
            options["max_tokens"] = max_tokens
        return self.reasoner.answer(captions, question, focus=focus or "", **options)

    def close(self) -> None:
        """Free all models."""
        for captioner in self.captioners:
            captioner.close()
        self.reasoner.close()
