"""The pictures of a chat: described once, and again with a focus when a question needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Unpack

from edgeprism.records import Caption, EncodedImage

if TYPE_CHECKING:
    from edgeprism.perceive.captioner import Captioner
    from edgeprism.perceive.options import CaptionOptions
    from edgeprism.picture.read import ImageSource


class Perceiver(Protocol):
    """What captions one picture: a Captioner, or a StoredCaptioner in front of one."""

    def caption(
        self, image: ImageSource | EncodedImage, **options: Unpack[CaptionOptions]
    ) -> Caption:
        """Return the caption of one picture."""

    def close(self) -> None:
        """Free the engines."""


class Looking:
    """Captions the same pictures several times; `captions` holds every distinct caption so far."""

    def __init__(
        self,
        captioner: Captioner,
        perceiver: Perceiver,
        images: Sequence[str],
        **options: Unpack[CaptionOptions],
    ) -> None:
        """`perceiver` captions the pictures; `captioner` encodes them for `again`."""
        self._captioner, self._perceiver = captioner, perceiver
        self._images, self._options = images, options
        self._encoded: list[EncodedImage] = []
        self.captions: list[Caption] = []
        self._focuses: set[str] = set()  # with which all pictures were captioned

    def first(self, focus: str | None) -> list[Caption]:
        """Caption all pictures; a caption that the store holds is taken from it."""
        return self._describe(self._images, focus)

    def again(self, focus: str) -> list[Caption]:
        """Caption all pictures with a focus. Only the first call encodes them.

        Returns [] if that brings nothing new, as with a focus that they were captioned with.
        """
        if focus in self._focuses:
            return []
        if not self._encoded:
            self._encoded = [self._captioner.encode(image) for image in self._images]
        return self._describe(self._encoded, focus)

    def _describe(
        self, pictures: Sequence[str] | Sequence[EncodedImage], focus: str | None
    ) -> list[Caption]:
        options: CaptionOptions = {**self._options, "focus": focus}
        captions = [self._perceiver.caption(picture, **options) for picture in pictures]
        self._focuses.add(focus or "")
        known = {(caption.image, caption.text) for caption in self.captions}
        new = [c for c in captions if (c.image, c.text) not in known]
        self.captions += new
        if not new:
            return []
        return captions
