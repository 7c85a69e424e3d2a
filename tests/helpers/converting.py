"""Converting in the test's own process."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeprism.bundle.manifest import ImagePolicy
from edgeprism.convert.families import FAMILIES, llava, prismcaptioner
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.pipeline import FamilyParts
from edgeprism.picture.read import read_picture
from edgeprism.progress import Progress
from tests.helpers.checkpoints import Folders
from tests.helpers.tiles import picture_to_tiles
from tests.helpers.tiny_captioners import Case


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


def parts_of(case: Case, patch: pytest.MonkeyPatch) -> FamilyParts:
    """What the family hands to the pipeline."""
    family = importlib.import_module(FAMILIES[case.family].module)
    kept: list[FamilyParts] = []
    with patch.context() as inner:
        for module in (family, llava):  # VILA 1.0 goes LLaVA's way
            inner.setattr(module, "write_bundle", lambda parts, *_: kept.append(parts))
        folder = case.settings["captioner"].parent
        family.convert(folder / "unused", ConvertOptions(), Progress(), **case.settings)
    return kept[0]


def tokens_by_torch(
    parts: FamilyParts, picture: Image.Image, policy: ImagePolicy | None = None
) -> np.ndarray:
    """Visual tokens of our graph, run in torch; `policy` stands in for the manifest's."""
    module = parts.vision(torch.float32)
    state = {n: parts.vision_weights.read(n, torch.float32) for n, _ in module.named_parameters()}
    module.load_state_dict(state, assign=True)
    pixels = picture_to_tiles(read_picture(picture), policy or parts.manifest.image)
    with torch.inference_mode():
        rows: torch.Tensor = module(torch.from_numpy(pixels.copy()))[0]
    return rows.numpy()
