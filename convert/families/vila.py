"""VILA: a CLIP or SigLIP tower, a projector and a language model, in one folder or in three.

- VILA-1.5: `llm/`, `vision_tower/` and `mm_projector/` each hold a config.json and weights. The
  projector `mlp_downsample` concatenates the patches of 2 × 2 cells (zeros fill incomplete cells),
  normalises them and runs two Linear layers.
- VILA 1.0 (VILA-2.7b, -7b, -13b): the original layout of LLaVA-1.5, with CLIP-L-336's
  second-to-last layer, padded pictures, one Linear layer or an MLP, and Vicuna's conversation.

Sources for VILA-1.5: the configurations of Efficient-Large-Model/VILA1.5-*, VILA's public code
(`base_projector.py`, `vision_encoder.py`, `mm_utils.py`, `conversation.py`). Sources for VILA 1.0:
the code that trained and loads it (tag v1.0: `builder.py`, `llava_arch.py`, `train.py`,
`3_sft.sh`), and NanoLLM's printout of VILA-2.7b's configuration. The configurations of VILA-7b and
-13b were not available; this file accepts both projectors that the paper (`linear`) and the scripts
(`mlp2x_gelu`) name.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.bundle.manifest import Several
from edgeprism.convert.families import llava
from edgeprism.convert.family import CONVERSATION, Family, Option
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.vision.stock import StockProjector, StockTower
    from edgeprism.progress import Progress

_PARTS = ("llm", "vision_tower", "mm_projector")
_VILA_1_0_FIELDS = {"mm_hidden_size", "mm_vision_tower"}
_ASPECTS = {"resize": "stretch", "pad": "pad"}
_VICUNA = "vicuna-user"
_SEVERAL = Several("", "\n")  # VILA's run_vila.py


def read(
    captioner: Path, vision: Path | None, conversation: str, progress: Progress
) -> PublishedCaptioner:
    """Read the folder `captioner`, and `vision`, which VILA 1.0 needs."""
    from edgeprism.convert.discover import unknown_layout

    parts = [part for part in _PARTS if (captioner / part).is_dir()]
    if not parts and _is_vila_1_0(captioner):
        layout = _vila_1_0_layout(captioner, vision)
        return llava.captioner_of_layout(layout, captioner, conversation, progress)
    if len(parts) < len(_PARTS):
        raise unknown_layout(
            captioner,
            FAMILY.name,
            f"the folders {', '.join(_PARTS)} (VILA-1.5), or config.json with model_type "
            "llava_llama, mm_hidden_size and mm_vision_tower (VILA 1.0)",
        )
    return _read_parts(captioner, conversation)


FAMILY = Family(
    name="vila",
    summary="VILA-1.5: SigLIP or CLIP, downsampling projector, a Llama; VILA 1.0: like LLaVA-1.5",
    help="Convert VILA-1.5, or VILA 1.0 with --vision, to the bundle OUT.",
    options=(
        Option(
            "captioner",
            "folder",
            "Folder of VILA-1.5 (llm/, vision_tower/, mm_projector/) or of VILA 1.0.",
            required=True,
        ),
        Option("vision", "folder", "Folder of the vision model that VILA 1.0 names."),
        CONVERSATION,
    ),
    read=read,
    model_types=("llava_llama",),
    signs=("llm", "mm_projector", "vision_tower", "mm_projector_cfg"),
)


def _is_vila_1_0(captioner: Path) -> bool:
    """Return whether config.json has the language model's and LLaVA's fields, as in VILA 1.0."""
    from edgeprism.convert.read.checkpoint import read_config

    config = read_config(captioner)
    return config.get("model_type") == "llava_llama" and config.keys() >= _VILA_1_0_FIELDS


def _vila_1_0_layout(captioner: Path, vision: Path | None) -> llava.Layout:
    from edgeprism.convert.read.checkpoint import read_config

    layout = llava.original_layout(captioner, read_config(captioner), vision)
    return dataclasses.replace(layout, conversation=_VICUNA, several=_SEVERAL)


def _read_parts(captioner: Path, conversation: str) -> PublishedCaptioner:
    """Read a VILA-1.5."""
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint, read_json
    from edgeprism.convert.read.conversations import conversation_named
    from edgeprism.convert.read.sources import SourceFiles
    from edgeprism.convert.vision.config import one_tile
    from edgeprism.convert.vision.stock import stock_vision_side

    config = read_json(captioner / "config.json")
    llm, vision, joint = (captioner / part for part in _PARTS)
    byte_level = not (llm / "tokenizer.model").is_file()
    form = conversation_named(conversation or ("llama-3" if byte_level else _VICUNA))
    checkpoint = Checkpoint(llm, "language model")
    where = llm / "config.json"
    rules = TokenRules(eos=form.eos, needed=form.needed)
    lm = open_language_model(checkpoint, read_json(where), str(where), llm, rules)
    tower = _tower(config, str(captioner / "config.json"), vision)
    projector = _projector(joint)
    side, preparation = stock_vision_side(tower, projector, lm.config.n_embd)
    aspect = str(config.get("image_aspect_ratio"))
    return PublishedCaptioner(
        captioner,
        [
            SourceFiles("captioner", captioner, projector.checkpoint.files),
            SourceFiles("llm", llm, checkpoint.files),
            SourceFiles("vision", vision, tower.checkpoint.files),
        ],
        one_tile(_ASPECTS.get(aspect, preparation.mode), preparation),
        side,
        lm,
        dataclasses.replace(form, several=_SEVERAL),
    )


def _tower(config: dict[str, Any], where: str, vision: Path) -> StockTower:
    from edgeprism.convert.read.checkpoint import Checkpoint, read_json
    from edgeprism.convert.vision.stock import StockTower

    aspect = config.get("image_aspect_ratio", "square")
    faults = []
    if aspect not in (*_ASPECTS, "square", None):
        faults.append(f"image_aspect_ratio {aspect!r} (known: {', '.join(_ASPECTS)}, square)")
    if config.get("s2"):
        faults.append("s2 (pictures at several scales)")
    if config.get("mm_use_im_start_end"):
        faults.append("mm_use_im_start_end (marks around the picture)")
    feature = config.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        faults.append(f"mm_vision_select_feature {feature!r} (known: patch, cls_patch)")
    if faults:
        raise CheckpointError(
            f"{where} is not understood: {'; '.join(faults)}.", "Use a VILA-1.5 checkpoint."
        )
    return StockTower(
        Checkpoint(vision, "vision model"),
        read_json(vision / "config.json"),
        str(vision / "config.json"),
        vision,
        config.get("mm_vision_select_layer", -2),
        keeps_first=feature == "cls_patch",
    )


def _projector(folder: Path) -> StockProjector:
    from edgeprism.convert.read.checkpoint import Checkpoint, read_json
    from edgeprism.convert.vision.stock import StockProjector

    path = folder / "config.json"
    kind = str(read_json(path).get("mm_projector_type"))
    checkpoint = Checkpoint(folder, "projector")
    mlp = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if kind in ("mlp_downsample", "mlp_downsample_2x2_fix"):
        return StockProjector(checkpoint, ["layers.2", "layers.4"], "layers.1", downsample=2)
    if mlp:
        return StockProjector(checkpoint, [f"layers.{2 * i}" for i in range(int(mlp[1]))])
    if kind == "linear":
        return StockProjector(checkpoint, ["layers"])
    raise CheckpointError(
        f"{path}: mm_projector_type is {kind!r}; known: linear, mlpNx_gelu, mlp_downsample.",
        "Use a VILA-1.5 checkpoint.",
    )
