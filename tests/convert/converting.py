"""Converting in the test's own process."""

from __future__ import annotations

from pathlib import Path

from checkpoints import Folders

from edgeprism.convert.families import prismcaptioner
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.progress import Progress


def convert(folders: Folders, out: Path, **options: object) -> Path:
    """Convert in this process and without progress; returns `out`."""
    chosen = {"vision_quants": ("fp32",), "lm_quant": "F32", **options}
    keep = bool(chosen.pop("keep_first_patch", False))
    prismcaptioner.convert(
        out,
        ConvertOptions(**chosen),  # type: ignore[arg-type]
        Progress(),
        folders.captioner,
        folders.llm,
        folders.vision,
        keep,
    )
    return out
