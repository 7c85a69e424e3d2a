"""Pictures that clients send: data URLs, base64 and parts of a form → bytes in memory.

Nothing is fetched and no file is opened: an address or a path in place of a picture is refused.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprism.files.safe_text import short_line
from edgeprism.picture.cost import decoding_cost
from edgeprism.serve.refusals import Refusal

if TYPE_CHECKING:
    from edgeprism.serve.options import Limits

_NAME_CHARS = 120
_HEADER_CHARS = 200  # of a data URL, before its comma
_USUAL_PIXELS = 25_000_000  # decoded within about half a second
_USUAL_BYTES = 20_000_000


@dataclass(frozen=True)
class Upload:
    """A picture that a client sent. `is_costly`: decoding it may take longer than a moment."""

    name: str
    data: bytes
    is_costly: bool


def to_upload(name: str, data: bytes, limits: Limits) -> Upload:
    """Return a picture of a request; raises Refusal for one that is empty or too large."""
    if not data:
        raise Refusal(400, "empty_picture", f"{name}: holds no bytes.", "Send a picture's file.")
    cost = decoding_cost(data)
    if cost.pixels > limits.pixels:
        raise Refusal(
            413,
            "too_many_pixels",
            f"{name}: {cost.pixels / 1e6:.0f} megapixels; this server reads at most "
            f"{limits.pixels / 1e6:.0f}.",
            "Send a smaller copy.",
        )
    costly = not cost.is_bounded or cost.pixels > _USUAL_PIXELS or len(data) > _USUAL_BYTES
    return Upload(name, data, costly)


def text_to_bytes(name: str, text: str) -> bytes:
    """Decode a data URL, or bare base64. Raises Refusal, which says what else was given."""
    text = text.strip()
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",") if "," in text[:_HEADER_CHARS] else ("", "", "")
        if not comma or not head.lower().endswith(";base64"):
            raise Refusal(
                400, "invalid_data_url", f"{name}: not a data URL in base64.",
                "Write data:image/jpeg;base64,… with the file's bytes in base64.",
            )  # fmt: skip
    elif "://" in text[:64] or text[:5].lower() == "file:":
        raise Refusal(
            400, "address_refused",
            f"{name}: an address ({short_line(text, 40)}); this server fetches nothing.",
            "Send the picture itself, as data:image/jpeg;base64,…",
        )  # fmt: skip
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(
            400, "invalid_base64",
            f"{name}: neither a data URL nor base64; a path opens no file here.",
            "Send the file's bytes in base64.",
        ) from error  # fmt: skip


def to_name(given: str | None, number: int) -> str:
    """Return the name of a request's picture: a file's name without folders, or "picture 1"."""
    last = os.path.basename((given or "").replace("\\", "/"))
    return short_line(last, _NAME_CHARS) or f"picture {number}"
