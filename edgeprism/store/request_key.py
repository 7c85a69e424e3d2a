"""What decides the words of a caption, beside the picture."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RequestKey:
    """Everything except the picture that decides the words of a caption."""

    bundle_digest: str
    vision_quant: str
    kv_type: str
    instruction: str
    max_tokens: int
    temperature: float
    seed: int
    reader: (
        int  # version of how pictures are read and resized (edgeprism.picture.read.READER_VERSION)
    )
    visual_tokens: int | str | None = None  # limit of visual tokens; None: all of them
    reduction: str | None = None  # the method that leaves visual tokens out
    frames: int | None = None  # of a video; None: as many as the model's own number
    frames_per_second: float | None = None

    def settings(self) -> str:
        """Everything that decides a caption's words, as text."""
        settings: dict[str, Any] = asdict(self)
        if self.visual_tokens is None:  # as keys were before there was a limit
            del settings["visual_tokens"], settings["reduction"]
        for name in ("frames", "frames_per_second"):  # as keys were before there were videos
            if settings[name] is None:
                del settings[name]
        return json.dumps(settings, sort_keys=True, ensure_ascii=False)

    def id(self) -> str:
        """A digest of the settings."""
        # A shell hands over bytes that are not UTF-8 as lone surrogates.
        return hashlib.sha256(self.settings().encode("utf-8", "surrogatepass")).hexdigest()

    def key(self, image_sha256: str) -> str:
        """Return the key of this request's caption of one picture."""
        return hashlib.sha256(f"{image_sha256}:{self.id()}".encode()).hexdigest()
