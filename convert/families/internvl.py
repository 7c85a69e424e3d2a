"""InternVL 1.5: InternViT on tiles → pixel shuffle → MLP → InternLM2.

Source of the layout: OpenGVLab's InternVL-Chat-V1-5 and Mini-InternVL-Chat-2B-V1-5 with the code
they carry (`modeling_internvl_chat.py`, `conversation.py`, the model card's `dynamic_preprocess`).
transformers' layout, of later models, is in `internvl_hf`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeprism.bundle.manifest import Manifest, Several
from edgeprism.convert.families import internvl_hf
from edgeprism.convert.families.internvl_hf import tile_policy
from edgeprism.convert.families.layouts import unknown_layout
from edgeprism.convert.gate import tiling_towers
from edgeprism.convert.gate import towers as reference
from edgeprism.convert.language import internlm2
from edgeprism.convert.language.internlm2 import IM_END, IM_START
from edgeprism.convert.language.model import open_language_model
from edgeprism.convert.language.vocabulary import TokenRules
from edgeprism.convert.one_folder import Layout, convert_folder
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.parts import VisionSide
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.read.conversations import Conversation
from edgeprism.convert.vision.config import ProjectorConfig, n_used_layers
from edgeprism.convert.vision.intern_vit import (
    MEAN,
    STD,
    intern_vit_config,
    intern_vit_fields,
    intern_vit_weights,
)
from edgeprism.convert.vision.weights import VisionWeights, projector_weights, unused_layers
from edgeprism.errors import CheckpointError
from edgeprism.progress import Progress

FAMILY = "internvl"
_PREFIX, _NORM, _LINEARS = "vision_model.", "mlp1.0", ["mlp1.1", "mlp1.3"]
# "internlm2-chat" in conversation.py: no line feed behind the ends of turns
CONVERSATION = Conversation(
    f"{IM_START}system\nYou are an AI assistant whose name is InternLM (书生·浦语).{IM_END}"
    f"{IM_START}user\n",
    "\n",
    before_caption=f"{IM_END}{IM_START}assistant\n",
    stop=(IM_END,),
    eos=IM_END,
    needed=(IM_START, IM_END, "<img>", "</img>"),
    several=Several("Image-{number}: ", "\n"),
)
MARKERS = internvl_hf.MARKERS


def convert(out: Path, options: ConvertOptions, progress: Progress, captioner: Path) -> Manifest:
    """Convert the published folder `captioner` into `out`, as convert_folder does."""
    return convert_folder(FAMILY, read_layout, out, options, progress, captioner)


def read_layout(captioner: Path, config: dict[str, Any]) -> Layout:
    """Of either layout, the original or transformers'."""
    if config.get("model_type") == "internvl":
        return internvl_hf.read_layout(captioner, config)
    path = captioner / "config.json"
    config = _completed(config, path)
    checkpoint = Checkpoint(captioner, "captioner")
    rules = TokenRules(
        CONVERSATION.eos, CONVERSATION.needed, internlm2.TOKENS.renamed,
        internlm2.TOKENS.chat_template,
    )  # fmt: skip
    lm = open_language_model(
        checkpoint, config["llm_config"], f"{path} (llm_config)", captioner, rules
    )
    side, unused = _vision_side(config, path, checkpoint, lm.config.n_embd)
    least, most = config["min_dynamic_patch"], config["max_dynamic_patch"]
    image = tile_policy(
        config["force_image_size"], least, most if config["dynamic_image_size"] else 1
    )
    return Layout(checkpoint, image, side, lm, CONVERSATION, MARKERS, unused)


def _completed(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """config.json, completed and checked: what differs from the published models is refused."""
    if config.get("model_type") != "internvl_chat":
        expected = "model_type internvl_chat with llm_config and vision_config (the original "
        expected += "layout), or internvl with text_config and vision_config (transformers')"
        raise unknown_layout(path.parent, FAMILY, expected)
    defaults = {
        "llm_config": {}, "vision_config": {}, "downsample_ratio": 0.5, "select_layer": -1,
        "min_dynamic_patch": 1, "max_dynamic_patch": 6, "dynamic_image_size": False,
        "use_thumbnail": False, "ps_version": "v1", "pad2square": False,
        "template": "internlm2-chat",
    }  # fmt: skip
    config = {**defaults, **{name: value for name, value in config.items() if value is not None}}
    config.setdefault("force_image_size", config["vision_config"].get("image_size"))
    known: dict[str, tuple[Any, ...]] = {
        "downsample_ratio": (0.5,), "ps_version": ("v1", "v2"), "pad2square": (False,),
        "template": ("internlm2-chat",), "dynamic_image_size": (True, False),
        "use_thumbnail": (config["dynamic_image_size"],),
    }  # fmt: skip
    faults = [
        f"{name} = {config[name]!r} (expected {' or '.join(map(repr, values))})"
        for name, values in known.items()
        if config[name] not in values
    ]
    for name in ("force_image_size", "min_dynamic_patch", "max_dynamic_patch"):
        value = config[name]
        if type(value) is not int or not 1 <= value <= (4096 if "size" in name else 255):
            faults.append(f"{name} = {value!r} (expected a whole number above 0)")
    if not faults and config["min_dynamic_patch"] > config["max_dynamic_patch"]:
        faults.append("min_dynamic_patch is more than max_dynamic_patch")
    if not isinstance(config["llm_config"], dict) or not isinstance(config["vision_config"], dict):
        faults.append("llm_config and vision_config must be objects")
    elif config["llm_config"].get("model_type") != "internlm2":
        # what the published classes fall back to
        faults.append(f"llm_config.model_type = {config['llm_config'].get('model_type')!r} "
                      "(expected 'internlm2')")  # fmt: skip
    if faults:
        raise CheckpointError(
            f"{path} describes a variant that is not supported: {'; '.join(faults)}.",
            "Understood are InternVL 1.5 with InternLM2, and transformers' layout with Qwen2.",
        )
    return config


def _vision_side(
    config: dict[str, Any], path: Path, checkpoint: Checkpoint, n_embd: int
) -> tuple[VisionSide, tuple[str, ...]]:
    """The vision side, and patterns of the tower's layers that never run."""
    where = f"{path} (vision_config)"
    fields = intern_vit_fields(config["vision_config"], where)
    size = config["force_image_size"]
    whole = intern_vit_config(fields, size, fields["num_hidden_layers"])
    n_used = n_used_layers(whole, config["select_layer"], str(path))
    tower = intern_vit_config(fields, size, n_used)
    if size != fields["image_size"] or tower.grid % 2:
        raise CheckpointError(
            f"{where}: image_size is {fields['image_size']} in patches of {tower.patch_size}; "
            f"expected force_image_size {size} and an even number of patches.",
            "Use the published config.json.",
        )
    transposed = config["ps_version"] == "v1"
    projector = ProjectorConfig(
        (4 * tower.n_embd, n_embd, n_embd), downsample=2, transposed=transposed
    )
    weights = VisionWeights(
        {
            "towers.0": intern_vit_weights(tower, checkpoint, _PREFIX),
            "projector": projector_weights(projector, checkpoint, _LINEARS, _NORM),
        }
    )
    used = {**fields, "num_hidden_layers": n_used}
    features = tiling_towers.intern_vit(checkpoint.files, used, list(MEAN), list(STD))
    connector = reference.mlp(checkpoint.files, _LINEARS, _NORM, 2, transposed)
    side = VisionSide(
        [tower],
        projector,
        weights,
        lambda pixels, tick: reference.visual_tokens([features], connector, pixels, tick),
    )
    return side, unused_layers(_PREFIX, n_used, fields["num_hidden_layers"])
