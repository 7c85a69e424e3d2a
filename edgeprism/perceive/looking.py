"""The pictures of a chat: described once, and again where somebody asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Unpack

from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.options import CaptionOptions
from edgeprism.picture.read import ImageSource
from edgeprism.records import Caption, EncodedImage


class Describer(Protocol):
    """Whatever makes a caption of one picture: a captioner, or one with a store before it."""

    def caption(
        self, image: ImageSource | EncodedImage, **options: Unpack[CaptionOptions]
    ) -> Caption:
        """The caption of one picture."""


class Looking:
    """Pictures whose captions are asked for again and again; `captions` holds all so far."""

    def __init__(
        self,
        captioner: Captioner,
        describer: Describer,
        images: Sequence[str],
        **options: Unpack[CaptionOptions],
    ) -> None:
        """`describer` makes the captions; `captioner` encodes pictures that it describes again."""
        self._captioner, self._describer = captioner, describer
        self._images, self._options = images, options
        self._encoded: list[EncodedImage] = []
        self.captions: list[Caption] = []

    def first(self, focus: str | None) -> list[Caption]:
        """Captions of all pictures, from the store where it has them."""
        return self._describe(self._images, focus)

    def again(self, focus: str) -> list[Caption]:
        """Captions with a focus. Each picture is encoded at the first such look only."""
        if not self._encoded:
            self._encoded = [self._captioner.encode(image) for image in self._images]
        return self._describe(self._encoded, focus)

    def _describe(
        self, pictures: Sequence[str] | Sequence[EncodedImage], focus: str | None
    ) -> list[Caption]:
        options: CaptionOptions = {**self._options, "focus": focus}
        captions = [self._describer.caption(picture, **options) for picture in pictures]
        self.captions += captions
        return captions
