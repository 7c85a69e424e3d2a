"""VILA: a CLIP or SigLIP tower, a projector and a language model, in one folder or in three.

- VILA-1.5: `llm/`, `vision_tower/` and `mm_projector/` each hold a config.json and weights. The
  projector `mlp_downsample` puts the patches of 2 × 2 cells beside one another (zeros fill up an
  odd edge), normalises them and runs two Linear layers.
- VILA 1.0 (VILA-2.7b, -7b, -13b): the original layout of LLaVA-1.5, with CLIP-L-336's
  second-to-last layer, padded pictures, one Linear layer or an MLP, and Vicuna's own words for the
  conversation.

Sources: the configurations of Efficient-Large-Model/VILA1.5-*, VILA's public code
(`base_projector.py`, `vision_encoder.py`, `mm_utils.py`, `conversation.py`). For VILA 1.0 the code
that trained and loads it (its tag v1.0: `builder.py`, `llava_arch.py`, `train.py`, `3_sft.sh`) and
what NanoLLM printed of VILA-2.7b's configuration; those of VILA-7b and -13b were not seen, and
their projector (`linear` in the paper, `mlp2x_gelu` in the scripts) is taken as they say it.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from edgeprism.bundle.manifest import Manifest, Several
from edgeprism.bundle.writer import BundleWriter
from edgeprism.convert.families.layouts import unknown_layout
from edgeprism.convert.families.llava import Layout, convert_layout, original_layout
from edgeprism.convert.language.model import UNUSED, open_language_model
from edgeprism.convert.language.vocabulary import TokenRules
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.parts import (
    FOCUS,
    INSTRUCTION,
    MAX_TOKENS,
    captioner_parts,
    one_tile,
    source_of,
)
from edgeprism.convert.pipeline import check_options, write_bundle
from edgeprism.convert.read.card import card_from_folder
from edgeprism.convert.read.checkpoint import Checkpoint, Requirements, read_json
from edgeprism.convert.read.conversations import conversation_named
from edgeprism.convert.vision.stock import StockProjector, StockTower, stock_vision_side
from edgeprism.errors import CheckpointError, UsageError
from edgeprism.progress import Progress

FAMILY = "vila"
_PARTS = ("llm", "vision_tower", "mm_projector")
_FIRST_FIELDS = {"mm_hidden_size", "mm_vision_tower"}
_ASPECTS = {"resize": "stretch", "pad": "pad"}
_VICUNA = "vicuna-user"
_SEVERAL = Several("", "\n")  # VILA's run_vila.py


def convert(
    out: Path,
    options: ConvertOptions,
    progress: Progress,
    captioner: Path,
    vision: Path | None = None,
    conversation: str = "",
) -> Manifest:
    """Convert the folder `captioner` into the bundle `out`.

    `vision` is the folder of the tower that VILA 1.0 names; `conversation` one of CONVERSATIONS,
    by default Vicuna's, or Llama 3's where the tokenizer is. Raises UsageError, CheckpointError
    (every fault of the tensors at once) and ParityError.
    """
    parts = [part for part in _PARTS if (captioner / part).is_dir()]
    if not parts and _is_first(captioner):
        return convert_layout(
            FAMILY, _first_layout, out, options, progress, captioner, vision, conversation
        )
    if len(parts) < len(_PARTS):
        raise unknown_layout(
            captioner,
            FAMILY,
            f"the folders {', '.join(_PARTS)} (VILA-1.5), or config.json with model_type "
            "llava_llama, mm_hidden_size and mm_vision_tower (VILA 1.0)",
        )
    if vision is not None:
        raise UsageError(
            f"--vision {vision}: {captioner} holds its own vision_tower.", "Leave --vision out."
        )
    return _convert_parts(out, options, progress, captioner, conversation)


def _is_first(captioner: Path) -> bool:
    """VILA 1.0 keeps the language model's fields and those of LLaVA in one file."""
    path = captioner / "config.json"
    config = read_json(path) if path.is_file() else {}
    return config.get("model_type") == "llava_llama" and config.keys() >= _FIRST_FIELDS


def _first_layout(captioner: Path, vision: Path | None) -> Layout:
    config = read_json(captioner / "config.json")
    layout = original_layout(captioner, config, vision)
    return dataclasses.replace(layout, conversation=_VICUNA, several=_SEVERAL)


def _convert_parts(
    out: Path, options: ConvertOptions, progress: Progress, captioner: Path, conversation: str
) -> Manifest:
    """VILA-1.5."""
    check_options(options)
    with BundleWriter(out, options.overwrite) as writer:
        progress.stage("Reading the checkpoints")
        card = card_from_folder(captioner, INSTRUCTION, FOCUS, MAX_TOKENS)
        config = read_json(captioner / "config.json")
        llm, vision, joint = (captioner / part for part in _PARTS)
        byte_level = not (llm / "tokenizer.model").is_file()
        talk = conversation_named(conversation or ("llama-3" if byte_level else _VICUNA))
        talk = dataclasses.replace(talk, several=_SEVERAL)
        lm_checkpoint = Checkpoint(llm, "language model")
        lm_config = read_json(llm / "config.json")
        lm = open_language_model(
            lm_checkpoint, lm_config, str(llm / "config.json"), llm,
            TokenRules(eos=talk.eos, needed=talk.needed),
        )  # fmt: skip
        requirements = Requirements()
        tower = _tower(config, str(captioner / "config.json"), vision)
        projector = _projector(joint)
        side, preparation = stock_vision_side(tower, projector, lm.config.n_embd, requirements)
        requirements.add(lm_checkpoint, lm.shapes, UNUSED[lm.config.model_type])
        requirements.check()
        aspect = config.get("image_aspect_ratio")
        parts = captioner_parts(
            FAMILY,
            options.name or card.name or captioner.resolve().name,
            [
                source_of("captioner", captioner, projector.checkpoint.files),
                source_of("llm", llm, lm_checkpoint.files),
                source_of("vision", vision, tower.checkpoint.files),
            ],
            one_tile(_ASPECTS.get(str(aspect), preparation.mode), preparation),
            side,
            lm,
            talk,
            card,
        )
        return write_bundle(parts, writer, options, progress)


def _tower(config: dict[str, Any], where: str, vision: Path) -> StockTower:
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
