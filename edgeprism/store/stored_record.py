"""A stored record: its text → a record that every reader of the store can take → a caption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgeprism.errors import ManifestError
from edgeprism.files.strict_json import json_without_duplicates
from edgeprism.records import (
    Caption,
    ModelInfo,
    Pictured,
    Reduction,
    Timings,
    TokenCounts,
    sampled_from_record,
)

# what readers of records rely on, of `Caption.to_dict`
_FIELDS = {
    "caption": str, "image": str, "image_sha256": str, "image_size": list, "finish_reason": str,
    "tokens": dict, "timings_ms": dict, "model": dict, "device": str, "instruction": str,
    "notes": list, "version": str,
}  # fmt: skip
_ITEMS: dict[str, type | tuple[type, ...]] = {
    "image_size": int, "tokens": int, "timings_ms": (int, float), "model": str, "notes": str,
}  # fmt: skip


def text_to_record(text: object) -> dict[str, Any] | None:
    """Return the record of a stored text, which may be anything; None if it is not whole."""
    if not isinstance(text, (str, bytes)):
        return None
    try:
        record = json_without_duplicates(text, "record")
        # half of a pair of surrogates has no code; a byte of a name that is not UTF-8 is kept
        json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogateescape")
        if not isinstance(record, dict) or not _has_fields(record):
            return None
        record_to_caption(record)
    except (ManifestError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record


def record_to_caption(record: Mapping[str, Any]) -> Caption:
    """Rebuild the caption that `Caption.to_dict` turned into a record."""
    return Caption(
        text=record["caption"],
        image=record["image"],
        image_sha256=record["image_sha256"],
        finish_reason=record["finish_reason"],
        tokens=TokenCounts(**record["tokens"]),
        timings=Timings(**record["timings_ms"]),
        model=ModelInfo(**record["model"]),
        device=record["device"],
        instruction=record["instruction"],
        version=record["version"],
        image_size=tuple(record["image_size"]),
        notes=tuple(record["notes"]),
        # Records from before EdgePrism captioned several pictures together lack this field.
        together=tuple(
            Pictured(p["image"], p["image_sha256"], tuple(p["image_size"]))
            for p in record.get("together", ())
        ),
        reduction=Reduction(**record["reduction"]) if record.get("reduction") else None,
        video=sampled_from_record(record["video"]) if record.get("video") else None,
    )


def _has_fields(record: Mapping[str, Any]) -> bool:
    if not all(isinstance(record.get(name), kind) for name, kind in _FIELDS.items()):
        return False
    return len(record["image_size"]) == 2 and all(
        isinstance(item, kind) and not isinstance(item, bool)
        for name, kind in _ITEMS.items()
        for item in (record[name].values() if isinstance(record[name], dict) else record[name])
    )
