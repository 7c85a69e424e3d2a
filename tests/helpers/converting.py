"""Convert in the test's own process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from edgeprism.bundle.manifest import ImagePolicy
from edgeprism.convert import pipeline
from edgeprism.convert.discover import family_named
from edgeprism.convert.family import Value
from edgeprism.convert.language.model import LmParts
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.parts import FamilyParts, captioner_parts
from edgeprism.convert.read.card import card_from_folder
from edgeprism.picture.read import read_picture
from edgeprism.progress import Progress
from tests.helpers.checkpoints import Folders
from tests.helpers.tiles import picture_to_tiles
from tests.helpers.tiny_captioners import Case


def convert(folders: Folders, out: Path, **options: object) -> Path:
    """Convert a PrismCaptioner in this process, without progress; return `out`."""
    chosen = {"vision_quants": ("fp32",), "lm_quant": "F32", **options}
    settings = {
        "captioner": folders.captioner,
        "llm": folders.llm,
        "vision": folders.vision,
        "keep_first_patch": bool(chosen.pop("keep_first_patch", False)),
    }
    convert_family("prismcaptioner", out, ConvertOptions(**chosen), settings)  # type: ignore[arg-type]
    return out


def convert_family(
    name: str,
    out: Path,
    options: ConvertOptions,
    settings: Mapping[str, Value],
    progress: Progress | None = None,
) -> None:
    """Convert in this process; `progress` is optional."""
    pipeline.convert(family_named(name), out, options, settings, progress or Progress())


def parts_of(case: Case) -> FamilyParts:
    """Return the parts that the pipeline makes of the family's captioner."""
    family = family_named(case.family)
    captioner = family.read(**family.settings(case.settings), progress=Progress())
    captioner.requirements().check()
    return captioner_parts(family.name, "", captioner, card_from_folder(captioner.folder))


def lm_of(parts: FamilyParts) -> LmParts:
    """Return the language model of a family whose captioners llama.cpp runs."""
    assert isinstance(parts.lm, LmParts)
    return parts.lm


def tokens_by_torch(
    parts: FamilyParts, picture: Image.Image, policy: ImagePolicy | None = None
) -> np.ndarray:
    """Return the graph's visual tokens, run in torch; `policy` replaces the manifest's."""
    module = parts.vision(torch.float32)
    state = {n: parts.vision_weights.read(n, torch.float32) for n, _ in module.named_parameters()}
    module.load_state_dict(state, assign=True)
    pixels = picture_to_tiles(read_picture(picture), policy or parts.manifest.image)
    with torch.inference_mode():
        rows: torch.Tensor = module(torch.from_numpy(pixels.copy()))[0]
    return rows.numpy()
