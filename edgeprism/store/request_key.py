"""What decides the words of a caption, beside the picture."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


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

    def settings(self) -> str:
        """Everything that decides a caption's words, as text."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    def id(self) -> str:
        """A digest of the settings."""
        # A shell hands over bytes that are not UTF-8 as lone surrogates.
        return hashlib.sha256(self.settings().encode("utf-8", "surrogatepass")).hexdigest()

    def key(self, image_sha256: str) -> str:
        """Return the key of this request's caption of one picture."""
        return hashlib.sha256(f"{image_sha256}:{self.id()}".encode()).hexdigest()
