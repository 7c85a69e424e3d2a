"""A captioner that takes captions from the caption store, and adds those it makes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, Unpack

from edgeprism.files.digests import sha256_of_file
from edgeprism.files.stamps import status_to_stamp
from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.options import CaptionOptions, Plan
from edgeprism.perceive.video import is_video_for
from edgeprism.picture.read import MAX_FILE_BYTES, READER_VERSION, ImageSource
from edgeprism.records import Caption, EncodedImage
from edgeprism.store.caption_store import CaptionStore
from edgeprism.store.database import StoreError
from edgeprism.store.request_key import RequestKey
from edgeprism.store.stored_record import record_to_caption
from edgeprism.vision.token_reduction import METHOD

Result = TypeVar("Result")


def request_key(captioner: Captioner, plan: Plan) -> RequestKey:
    """Return what decides the words of this captioner's captions, except the picture."""
    return RequestKey(
        bundle_digest=captioner.bundle.digest,
        vision_quant=captioner.model.vision_quant,
        kv_type=captioner.engines.kv_type,
        instruction=plan.instruction,
        max_tokens=plan.sampling.max_tokens,
        temperature=plan.sampling.temperature,
        seed=plan.sampling.seed,
        reader=READER_VERSION,
        visual_tokens=plan.visual_tokens,
        reduction=None if plan.visual_tokens is None else METHOD,
        frames=plan.frames,
        frames_per_second=plan.frames_per_second,
    )


def decoding_settings(
    captioner: Captioner, plan: Plan, *, parallel: int = 1, lanes: int = 1
) -> dict[str, Any]:
    """Return how a caption is made, for the `settings` field of stored records."""
    return {
        "max_tokens": plan.sampling.max_tokens,
        "temperature": plan.sampling.temperature,
        "seed": plan.sampling.seed,
        "kv_type": captioner.engines.kv_type,
        "parallel": parallel,
        "lanes": lanes,
        "threads": [captioner.engines.vision_threads(), captioner.engines.lm_threads()],
    }


class StoredCaptioner:
    """Captions a picture only if the store has no caption. Use it from the store's thread.

    With `on_error`, a store that fails is told there and no longer used: captions cost more then,
    and none is lost.
    """

    def __init__(
        self,
        captioner: Captioner,
        store: CaptionStore,
        *,
        on_error: Callable[[StoreError], object] | None = None,
    ) -> None:
        self.captioner, self.store = captioner, store
        self._on_error = on_error
        self._failed = False

    @property
    def takes_focus(self) -> bool:
        """Whether the captioner's captions follow a focus."""
        return self.captioner.takes_focus

    def caption(
        self, image: ImageSource | EncodedImage, **options: Unpack[CaptionOptions]
    ) -> Caption:
        """As `Captioner.caption`; a stored caption has the timings of the run that made it.

        Raises everything that `Captioner.caption` raises; without `on_error`, StoreError as well.
        """
        plan = self.captioner.plan(**options)
        if isinstance(image, EncodedImage):
            is_film = image.video is not None
        else:
            is_film = is_video_for(self.captioner.bundle.manifest, image)
        request = request_key(self.captioner, plan.for_video() if is_film else plan)
        digest, name = self._digest(image)
        record = digest and self._try(lambda: self.store.get(request.key(digest)))
        if record:
            return replace(record_to_caption(record), image=name)
        caption = self.captioner.start(image, plan).finished().caption
        if caption.finish_reason == "repetition":  # no caption that a later run should find
            return caption
        record = {**caption.to_dict(), "settings": decoding_settings(self.captioner, plan)}
        path = image if isinstance(image, (str, os.PathLike)) else None
        self._try(lambda: self.store.put(request, caption.image_sha256, record, path=path))
        return caption

    def close(self) -> None:
        """Free the captioner; the store stays open."""
        self.captioner.close()

    def _digest(self, image: ImageSource | EncodedImage) -> tuple[str | None, str]:
        """Return (sha256, name) of a picture; the sha256 is None if only decoding can tell it."""
        if isinstance(image, EncodedImage):
            return image.image_sha256, image.image
        if isinstance(image, bytes):
            return hashlib.sha256(image).hexdigest(), "image in memory"
        if not isinstance(image, (str, os.PathLike)):
            return None, ""
        name = os.fspath(image)
        try:
            status = os.stat(name)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
                return None, name
            stamp = status_to_stamp(status)
            known = self._try(lambda: self.store.digest_of(name, status))
            if known is not None:
                return known, name
            digest = sha256_of_file(Path(name))
        except (OSError, ValueError):
            return None, name  # captioning reads the file again and reports the error
        self._try(lambda: self.store.remember_file(name, stamp, digest))
        return digest, name

    def _try(self, work: Callable[[], Result]) -> Result | None:
        """Use the store; with `on_error` return None if it fails, and from then on."""
        if self._failed:
            return None
        try:
            return work()
        except StoreError as error:
            if self._on_error is None:
                raise
            self._failed = True
            self._on_error(error)
            return None
