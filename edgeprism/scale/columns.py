"""The columns of a caption in Arrow and Parquet: a row for each picture, broken ones included.

The columns are those of a record (docs/reference/records.md), flat and typed, with what makes the
caption findable again: `image_sha256` and `request`, the digest of all settings that decide its
words. A row without a caption says why in `error`, and `error_kind` says what kind of failure it
is. `SCHEMA_VERSION` changes when a column changes its meaning; new columns come at the end.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from edgeprism.scale.arrow import pyarrow as pa
from edgeprism.scale.names import without_name
from edgeprism.version import __version__

SCHEMA_VERSION = 1
# why a picture has no caption
REFUSED = "refused"  # its file is no picture, damaged, too large; or its text only repeats itself
ENDED = "ended"  # the process that captioned it ended, twice
UNREAD = "unread"  # its file could not be got from where it lies

_TIMES = ("load", "decode_image", "preprocess", "encode", "prefill", "decode", "total")
_int, _text, _float = pa.int32(), pa.string(), pa.float32()

SCHEMA = pa.schema(
    [
        ("schema", _int),
        ("image", _text),
        ("image_sha256", _text),
        ("width", _int),
        ("height", _int),
        ("caption", _text),
        ("finish_reason", _text),
        ("error_kind", _text),
        ("error", _text),
        ("hint", _text),
        ("visual_tokens", _int),
        ("prompt_tokens", _int),
        ("caption_tokens", _int),
        *((f"{name}_ms", _float) for name in _TIMES),
        ("model", _text),
        ("model_digest", _text),
        ("vision_quant", _text),
        ("lm_quant", _text),
        ("device", _text),
        ("instruction", _text),
        ("notes", pa.list_(pa.field("element", _text))),
        ("reduction", pa.struct([("limit", _text), ("encoded", _int), ("method", _text)])),
        ("max_tokens", _int),
        ("temperature", _float),
        ("seed", pa.int64()),
        ("kv_type", _text),
        ("parallel", _int),
        ("lanes", _int),
        ("threads", pa.list_(pa.field("element", _int))),
        ("request", _text),
        ("version", _text),
        ("created", pa.timestamp("us", tz="UTC")),
    ],
    metadata={"edgeprism.schema": str(SCHEMA_VERSION)},
)

Row = dict[str, Any]


def text_of(name: str) -> str:
    """Return a name as UTF-8; bytes that are none stand as escapes, since Arrow refuses them."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def record_to_row(record: Mapping[str, Any], request: str) -> Row:
    """Turn a caption's record, with `settings`, into a row. `request` is `RequestKey.id()`."""
    settings, model, tokens = record["settings"], record["model"], record["tokens"]
    reduction = record.get("reduction")
    return {
        **_basics(record["image"], record["image_sha256"], request),
        "width": record["image_size"][0],
        "height": record["image_size"][1],
        "caption": record["caption"],
        "finish_reason": record["finish_reason"],
        "visual_tokens": tokens["visual"],
        "prompt_tokens": tokens["prompt"],
        "caption_tokens": tokens["generated"],
        **{f"{name}_ms": record["timings_ms"][name] for name in _TIMES},
        "model": model["name"],
        "model_digest": model["digest"],
        "vision_quant": model["vision_quant"],
        "lm_quant": model["lm_quant"],
        "device": record["device"],
        "instruction": record["instruction"],
        "notes": [text_of(note) for note in record["notes"]],
        "reduction": reduction and {**reduction, "limit": str(reduction["limit"])},
        **{name: settings[name] for name in ("max_tokens", "temperature", "seed", "kv_type",
                                             "parallel", "lanes", "threads")},
        "version": record["version"],
    }  # fmt: skip


def failure_to_row(
    image: str,
    image_sha256: str | None,
    request: str,
    kind: str,
    error: str,
    hint: str,
    model: str | None = None,
) -> Row:
    """Return the row of a picture without a caption.

    `kind` is REFUSED, ENDED or UNREAD; `model` is the captioner's name. The picture's name before
    `error` is dropped: `image` has it, and what is wrong with many pictures is one text.
    """
    return {
        **_basics(image, image_sha256, request),
        "error_kind": kind,
        "error": text_of(without_name(error, image)),
        "hint": text_of(hint),
        "model": model,
        "version": __version__,
    }


def rows_to_table(rows: Iterable[Row]) -> pa.Table:
    """Return rows as a table; a column that a row lacks is null in it."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def _basics(image: str, image_sha256: str | None, request: str) -> Row:
    return {
        "schema": SCHEMA_VERSION,
        "image": text_of(image),
        "image_sha256": image_sha256,
        "request": request,
        "created": datetime.datetime.now(datetime.UTC),
    }
