"""InternVL in transformers' layout: InternViT on tiles → pixel shuffle → MLP → Qwen2.

Sources: the `-hf` repositories of OpenGVLab (InternVL3-1B-hf and its kin), transformers'
InternVLForConditionalGeneration, InternVLProcessor and GotOcr2ImageProcessor, and the chat template
that its conversion script writes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgeprism.bundle.manifest import ImagePolicy, Markers, Several, Tiling
from edgeprism.convert.gate import tiling_towers
from edgeprism.convert.gate import towers as reference
from edgeprism.convert.language.model import open_language_model
from edgeprism.convert.language.vocabulary import TokenRules
from edgeprism.convert.one_folder import Layout
from edgeprism.convert.parts import VisionSide
from edgeprism.convert.read.checkpoint import Checkpoint, read_json
from edgeprism.convert.read.conversations import Conversation
from edgeprism.convert.vision.config import RESAMPLINGS, ProjectorConfig
from edgeprism.convert.vision.intern_vit import (
    MEAN,
    STD,
    TRANSFORMERS,
    intern_vit_config,
    intern_vit_fields,
    intern_vit_weights,
)
from edgeprism.convert.vision.weights import VisionWeights, projector_weights
from edgeprism.errors import CheckpointError

CONVERSATION = Conversation(
    "<|im_start|>user\n",
    "\n",
    before_caption="<|im_end|>\n<|im_start|>assistant\n",
    stop=("<|im_end|>",),
    eos="<|im_end|>",
    needed=("<|im_start|>", "<|im_end|>", "<img>", "</img>"),
    several=Several("", "\n"),
)
MARKERS = Markers("<img>", "", "", "", "", "</img>")
_NORM, _LINEARS = "layer_norm", ["linear_1", "linear_2"]
_PROJECTOR = "multi_modal_projector."
_PROBE = "embeddings.cls_token"


def read_layout(captioner: Path, config: dict[str, Any]) -> Layout:
    """The folder of a model_type `internvl`; what differs from the published models is refused."""
    path = captioner / "config.json"
    vision, text = _checked(config, path)
    checkpoint = Checkpoint(captioner, "captioner")
    rules = TokenRules(CONVERSATION.eos, CONVERSATION.needed)
    lm = open_language_model(checkpoint, text, f"{path} (text_config)", captioner, rules)
    prepared, image = _prepared(captioner / "preprocessor_config.json", vision["image_size"])
    where = f"{path} (vision_config)"
    fields = intern_vit_fields(vision, where)
    whole = intern_vit_config(fields, image.size, fields["num_hidden_layers"])
    tower = dataclasses.replace(whole, **prepared)
    if tower.grid % 2:
        raise CheckpointError(
            f"{where}: {tower.grid} patches of {tower.patch_size} pixels a side do not pair up.",
            "Use the published config.json.",
        )
    lead = _lead(checkpoint, _PROBE, "vision_tower.")
    joint = _lead(checkpoint, f"{_PROJECTOR}{_NORM}.weight", "") + _PROJECTOR
    projector = ProjectorConfig((4 * tower.n_embd, lm.config.n_embd, lm.config.n_embd), 2)
    linears = [f"{joint}{name}" for name in _LINEARS]
    weights = VisionWeights(
        {
            "towers.0": intern_vit_weights(tower, checkpoint, lead, TRANSFORMERS),
            "projector": projector_weights(projector, checkpoint, linears, f"{joint}{_NORM}"),
        }
    )
    features = tiling_towers.internvl_tower(checkpoint.files, config["vision_config"], prepared)
    connector = reference.mlp(checkpoint.files, linears, f"{joint}{_NORM}", 2)
    side = VisionSide(
        [tower],
        projector,
        weights,
        lambda pixels, tick: reference.visual_tokens([features], connector, pixels, tick),
    )
    return Layout(checkpoint, image, side, lm, CONVERSATION, MARKERS)


def tile_policy(size: int, least: int, most: int, resample: str = "bicubic") -> ImagePolicy:
    """The grids from `least` to `most` tiles, smaller ones first, then a thumbnail; or one tile."""
    grids = [
        [down, across]
        for across in range(1, most + 1)
        for down in range(1, most + 1)
        if least <= down * across <= most
    ]
    grids.sort(key=lambda grid: grid[0] * grid[1])
    return ImagePolicy(
        mode="stretch",
        size=size,
        fill=[0, 0, 0],
        resample=resample,
        max_tiles=1 + most if most > 1 else 1,
        tiling=Tiling("closest-ratio", grids, 0, "last", "tiles") if most > 1 else None,
    )


def _lead(checkpoint: Checkpoint, probe: str, usual: str) -> str:
    """What stands in front of `probe`, e.g. "vision_tower." or "model.vision_tower."."""
    found = sorted(n.removesuffix(probe) for n in checkpoint.names if n.endswith(probe))
    return found[0] if found else usual


def _checked(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """vision_config in the original layout's words, and text_config."""
    vision, text = config.get("vision_config"), config.get("text_config")
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise CheckpointError(
            f"{path}: vision_config and text_config must be objects.",
            "Use the published config.json.",
        )
    kept: dict[str, tuple[dict[str, Any], Any]] = {
        "downsample_ratio": (config, 0.5), "projector_hidden_act": (config, "gelu"),
        "vision_feature_select_strategy": (config, "default"),
        "vision_feature_layer": (config, -1),  # transformers' class knows no other
        "use_mean_pooling": (vision, True), "use_mask_token": (vision, False),
        "use_absolute_position_embeddings": (vision, True), "num_channels": (vision, 3),
    }  # fmt: skip
    faults = [
        f"{name} = {fields[name]!r} (expected {value!r})"
        for name, (fields, value) in kept.items()
        if fields.get(name, value) != value
    ]
    if text.get("model_type", "qwen2") != "qwen2":
        faults.append(f"text_config.model_type = {text['model_type']!r} (expected 'qwen2')")
    # transformers' defaults are the small tower's, the original code's the large one's
    defaults = {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "hidden_act": "gelu", "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6, "image_size": 448, "patch_size": 14,
    }  # fmt: skip
    made = {name: vision.get(name, value) for name, value in defaults.items()}
    for name in ("image_size", "patch_size"):
        value = made[name]
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            made[name] = value[0]
        if type(made[name]) is not int or not 1 <= made[name] <= 4096:
            faults.append(f"{name} = {value!r} (expected two equal whole numbers above 0)")
    if faults:
        raise CheckpointError(
            f"{path} describes a variant that is not supported: {'; '.join(faults)}.",
            "Understood are InternViT with Qwen2 as they were published.",
        )
    made["qkv_bias"] = bool(vision.get("attention_bias", False))
    made["qk_normalization"] = bool(vision.get("use_qk_norm", False))
    return made, {"model_type": "qwen2", **text}


def _prepared(path: Path, image_size: int) -> tuple[dict[str, Any], ImagePolicy]:
    """How pixels become the tower's, and the tiles, as preprocessor_config.json says.

    Its `crop_to_patches` is not asked for: the models' processor always sets it.
    """
    data = read_json(path) if path.is_file() else {}
    faults = [
        f"{name} {data[name]!r}"
        for name in ("do_resize", "do_rescale", "do_normalize")
        if data.get(name, True) is not True
    ]
    side = {"height": image_size, "width": image_size}
    if data.get("size", side) != side:
        faults.append(f"size {data['size']!r} (the vision model takes {image_size})")
    number = data.get("resample", 3)
    if number not in RESAMPLINGS:
        faults.append(f"resample {number!r}")
    least, most = data.get("min_patches", 1), data.get("max_patches", 12)
    if type(least) is not int or type(most) is not int or not 1 <= least <= most <= 255:
        faults.append(f"min_patches {least!r} and max_patches {most!r}")
    if faults:
        raise CheckpointError(
            f"{path} is not understood: {'; '.join(faults)}.",
            "Use the preprocessor_config.json that was published with the model.",
        )
    prepared = {
        "rescale": float(data.get("rescale_factor", 1 / 255)),
        "mean": tuple(data.get("image_mean") or MEAN),
        "std": tuple(data.get("image_std") or STD),
    }
    return prepared, tile_policy(image_size, least, most, RESAMPLINGS[number])
