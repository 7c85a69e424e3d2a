"""The faults of a manifest's `lm`, each with its field's path."""

from __future__ import annotations

from edgeprism.bundle.check_decoder import decoder_faults
from edgeprism.bundle.gguf_parts import part_names
from edgeprism.bundle.manifest import Manifest
from edgeprism.errors import ModelError

IMAGE_ATTENTIONS = ("causal", "both-ways")
IMAGE_POSITIONS = ("one-by-one", "down-across", "shared")
ROW_WEIGHTS = ("adapter", "expert")


def language_faults(m: Manifest, *, is_unplaced: bool) -> list[str]:
    """Return the faults of the language model's file and dimensions.

    Parameters:
        is_unplaced: whether visual tokens stand for a whole tile, in no order of place.
    """
    lm = m.lm
    checks = [
        ("n_embd", 1 <= lm.n_embd <= 65536, "must lie in 1…65536"),
        ("n_vocab", 1 <= lm.n_vocab <= 1 << 22, "must lie in 1…4194304"),
        ("context_length", 1 <= lm.context_length <= 1 << 24, "must lie in 1…16777216"),
        (
            "image_attention",
            lm.image_attention in IMAGE_ATTENTIONS,
            f"{lm.image_attention!r}; known: {', '.join(IMAGE_ATTENTIONS)}",
        ),
        (
            "image_positions",
            lm.image_positions in IMAGE_POSITIONS,
            f"{lm.image_positions!r}; known: {', '.join(IMAGE_POSITIONS)}",
        ),
        (
            "image_positions",
            lm.image_positions != "down-across"
            or (m.vision.mmproj is None and m.image.tiling is None and not is_unplaced),
            "down-across needs one tile, a graph, and a place for each visual token",
        ),
        (
            "image_positions",
            lm.image_positions != "shared" or _is_one_tile(m),
            "shared needs one tile and a graph",
        ),
    ]
    checks += _encoder_checks(m) if lm.encodes else []
    faults = [f"lm.{path}: {text}" for path, holds, text in checks if not holds]
    return faults + _row_faults(m) + _file_faults(m) + decoder_faults(m)


def _is_one_tile(m: Manifest) -> bool:
    return m.vision.mmproj is None and m.image.tiling is None


def _row_faults(m: Manifest) -> list[str]:
    """Return the faults of the weights that image rows go through."""
    rows = m.lm.rows
    if rows is None:
        return []
    is_expert = rows.by == "expert"
    checks = [
        ("by", rows.by in ROW_WEIGHTS, f"{rows.by!r}; known: {', '.join(ROW_WEIGHTS)}"),
        ("file", rows.file in m.files, f"{rows.file!r} is not among files"),
        ("file", rows.file != m.lm.file, f"{rows.file!r} is the language model itself"),
        ("file", len(_parts_of(rows.file)) == 1, "must be in one part"),
        ("by", m.vision.mmproj is None, "not with vision.mmproj"),
        ("by", not m.lm.encodes, "not with lm.encodes"),
        (
            "by",
            not is_expert or (_is_one_tile(m) and m.video is None),
            "expert needs pictures of one tile, and no video",
        ),
        ("by", not is_expert or m.lm.image_attention == "causal", "expert needs causal attention"),
        (
            "own_last",
            0 <= rows.own_last < max(1, m.vision.tokens_per_tile)
            and (is_expert or not rows.own_last),
            "must be less than vision.tokens_per_tile, and 0 but for expert",
        ),
    ]
    return [f"lm.rows.{path}: {text}" for path, holds, text in checks if not holds]


def _parts_of(name: str) -> list[str]:
    try:
        return part_names(name)
    except ModelError:
        return []


def _encoder_checks(m: Manifest) -> list[tuple[str, bool, str]]:
    """Return (field, whether it holds, what must hold) of a model with an encoder."""
    return [
        ("image_attention", m.lm.image_attention == "both-ways",
         "an encoder lets all rows look at each other: both-ways is needed"),
        ("image_positions", m.lm.image_positions == "one-by-one",
         "an encoder counts its rows: one-by-one is needed"),
        ("encodes", m.vision.mmproj is None, "needs a vision graph: libmtmd knows no encoder"),
    ]  # fmt: skip


def _file_faults(m: Manifest) -> list[str]:
    try:
        parts = part_names(m.lm.file)
    except ModelError as error:
        return [f"lm.file: {error.message}"]
    return [f"lm.file: {part!r} is not among files" for part in parts if part not in m.files]
