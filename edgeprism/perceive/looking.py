"""The pictures of a chat: described once, and again with a focus when the user asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Unpack

from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.options import CaptionOptions
from edgeprism.picture.read import ImageSource
from edgeprism.records import Caption, EncodedImage


class Describer(Protocol):
    """Something that captions one picture: a Captioner or a StoredCaptioner."""

    def caption(
        self, image: ImageSource | EncodedImage, **options: Unpack[CaptionOptions]
    ) -> Caption:
        """Caption one picture."""


class Looking:
    """Captions the same pictures several times; `captions` holds every caption so far."""

    def __init__(
        self,
        captioner: Captioner,
        describer: Describer,
        images: Sequence[str],
        **options: Unpack[CaptionOptions],
    ) -> None:
        """`describer` captions the pictures; `captioner` encodes them for `again`."""
        self._captioner, self._describer = captioner, describer
        self._images, self._options = images, options
        self._encoded: list[EncodedImage] = []
        self.captions: list[Caption] = []

    def first(self, focus: str | None) -> list[Caption]:
        """Caption all pictures; a caption that the store holds is taken from it."""
        return self._describe(self._images, focus)

    def again(self, focus: str) -> list[Caption]:
        """Caption all pictures with a focus. Only the first call encodes them."""
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
