"""The faults of a manifest's `lm`, each with its field's path."""

from __future__ import annotations

from edgeprism.bundle.gguf_parts import part_names
from edgeprism.bundle.manifest import Manifest
from edgeprism.bundle.manifest_language import RowWeights
from edgeprism.errors import ModelError

IMAGE_ATTENTIONS = ("causal", "both-ways")
IMAGE_POSITIONS = ("one-by-one", "down-across")
ROW_WEIGHTS = ("adapter",)


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
    ]
    faults = [f"lm.{path}: {text}" for path, holds, text in checks if not holds]
    faults += _row_faults(m, lm.rows) if lm.rows else []
    return faults + _file_faults(m)


def _row_faults(m: Manifest, rows: RowWeights) -> list[str]:
    """Return the faults of the weights that a picture's rows go through."""
    checks = [
        ("by", rows.by in ROW_WEIGHTS, f"{rows.by!r}; known: {', '.join(ROW_WEIGHTS)}"),
        ("file", rows.file in m.files, f"{rows.file!r} is not among files"),
        ("file", rows.file != m.lm.file, f"{rows.file!r} is the language model itself"),
    ]
    faults = [f"lm.rows.{path}: {text}" for path, holds, text in checks if not holds]
    if m.vision.mmproj is not None:
        faults.append("lm.rows: not with vision.mmproj")
    return faults


def _file_faults(m: Manifest) -> list[str]:
    try:
        parts = part_names(m.lm.file)
    except ModelError as error:
        return [f"lm.file: {error.message}"]
    return [f"lm.file: {part!r} is not among files" for part in parts if part not in m.files]
