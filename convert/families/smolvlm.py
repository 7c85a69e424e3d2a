"""SmolVLM and Idefics3: SigLIP on tiles → pixel shuffle → one linear layer → SmolLM2 or Llama 3.

Source of the layout: the published checkpoints HuggingFaceTB/SmolVLM-256M-Instruct and
-500M-Instruct, HuggingFaceM4/Idefics3-8B-Llama3, and transformers' Idefics3ForConditionalGeneration
with its processor, which say the same of SmolVLM2 (`model_type` smolvlm).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from edgeprism.bundle.manifest import ImagePolicy, Manifest, Markers, Several, Tiling
from edgeprism.convert.families.layouts import unknown_layout
from edgeprism.convert.gate import tiling_towers
from edgeprism.convert.gate import towers as reference
from edgeprism.convert.language.model import open_language_model
from edgeprism.convert.language.vocabulary import TokenRules
from edgeprism.convert.one_folder import Layout, convert_folder
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.parts import VisionSide
from edgeprism.convert.read.checkpoint import Checkpoint, read_json
from edgeprism.convert.read.conversations import Conversation
from edgeprism.convert.vision.config import (
    RESAMPLINGS,
    ProjectorConfig,
    TowerConfig,
    tower_fields,
)
from edgeprism.convert.vision.weights import (
    VisionWeights,
    projector_weights,
    stock_tower_weights,
    tower_prefix,
)
from edgeprism.errors import CheckpointError
from edgeprism.progress import Progress

FAMILY = "smolvlm"
_PROJECTOR = "connector.modality_projection.proj"
_END, _FAKE = "<end_of_utterance>", "<fake_token_around_image>"
MARKERS = Markers(
    begin="",
    before_overview=f"{_FAKE}<global-img>",
    before_tile=f"{_FAKE}<row_{{row}}_col_{{column}}>",
    after_row="\n",
    between="\n",
    end=_FAKE,
)


def convert(out: Path, options: ConvertOptions, progress: Progress, captioner: Path) -> Manifest:
    """Convert the published folder `captioner` into `out`, as convert_folder does."""
    return convert_folder(FAMILY, read_layout, out, options, progress, captioner)


def read_layout(captioner: Path, config: dict[str, Any]) -> Layout:
    if config.get("model_type") not in ("idefics3", "smolvlm"):
        expected = "model_type idefics3 or smolvlm with text_config and vision_config"
        raise unknown_layout(captioner, FAMILY, expected)
    path = captioner / "config.json"
    checkpoint = Checkpoint(captioner, "captioner")
    image = image_policy(captioner / "preprocessor_config.json", config, path)
    talk = _conversation(captioner)
    lm = open_language_model(
        checkpoint, _text_config(config, checkpoint), f"{path} (text_config)", captioner,
        TokenRules(eos=_END, needed=(*talk.needed, *_marker_tokens(image))),
    )  # fmt: skip
    side = _vision_side(captioner, config, path, checkpoint, image.size, lm.config.n_embd)
    return Layout(checkpoint, image, side, lm, talk, MARKERS)


def image_policy(path: Path, config: dict[str, Any], where: Path) -> ImagePolicy:
    """preprocessor_config.json of an Idefics3ImageProcessor; its defaults are transformers'."""
    data = read_json(path) if path.is_file() else {}
    tile = _longest_edge(data.get("max_image_size"), 364)
    longest = _longest_edge(data.get("size"), 4 * 364)
    image_size = _vision_config(config, where)["image_size"]
    faults = [
        f"{name} {data[name]!r}"
        for name in ("do_resize", "do_rescale", "do_normalize", "do_image_splitting")
        if data.get(name, True) is not True
    ]
    if tile != image_size:
        faults.append(
            f"max_image_size {data.get('max_image_size')!r} (the vision model takes {image_size})"
        )
    if longest is None or tile is None or not tile < longest <= 4096:
        faults.append(f"size {data.get('size')!r}")
    number = data.get("resample", 1)
    if number not in RESAMPLINGS:
        faults.append(f"resample {number!r}")
    if faults or tile is None or longest is None:
        raise CheckpointError(
            f"{path} is not understood: {'; '.join(faults)}.",
            "Use the preprocessor_config.json that was published with the model.",
        )
    return ImagePolicy(
        mode="stretch",
        size=tile,
        fill=[0, 0, 0],
        resample=RESAMPLINGS[number],
        max_tiles=1 + math.ceil(longest / tile) ** 2,
        tiling=Tiling("longest-edge", [], longest, "last", "tiles"),
    )


def _longest_edge(value: Any, default: int) -> int | None:
    if value is None:
        return default
    edge = value.get("longest_edge") if isinstance(value, dict) else None
    return edge if type(edge) is int and edge > 0 else None


def _vision_config(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """The fields of vision_config, completed by transformers' defaults."""
    return tower_fields("idefics3_vision", config.get("vision_config") or {}, str(where))


def _text_config(config: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    text = {"model_type": "llama", **(config.get("text_config") or {})}
    # what the top says of tying holds where the file has no head of its own
    tied = config.get("tie_word_embeddings", False) and "lm_head.weight" not in checkpoint.names
    return {**text, "tie_word_embeddings": bool(text.get("tie_word_embeddings") or tied)}


def _conversation(captioner: Path) -> Conversation:
    """SmolVLM opens a turn with <|im_start|>, Idefics3 leaves that to its BOS token."""
    tokens = {
        token.get("content")
        for token in read_json(captioner / "tokenizer.json").get("added_tokens") or []
        if isinstance(token, dict)
    }
    start = "<|im_start|>" if "<|im_start|>" in tokens else ""
    return Conversation(
        f"{start}User:",
        "",
        before_caption=f"{_END}\nAssistant:",
        stop=(_END,),
        eos=_END,
        needed=tuple(filter(None, (start, _END))),
        several=Several("", ""),
    )


def _marker_tokens(image: ImagePolicy) -> list[str]:
    """Special tokens that markers are made of, up to the largest grid."""
    side = math.isqrt(image.max_tiles - 1)
    places = [f"<row_{r}_col_{c}>" for r in range(1, side + 1) for c in range(1, side + 1)]
    return [_FAKE, "<global-img>", *places]


def _vision_side(
    captioner: Path,
    config: dict[str, Any],
    path: Path,
    checkpoint: Checkpoint,
    tile: int,
    n_embd: int,
) -> VisionSide:
    fields = _vision_config(config, path)
    prepare = captioner / "preprocessor_config.json"
    data = read_json(prepare) if prepare.is_file() else {}
    tower = TowerConfig(
        n_layers=fields["num_hidden_layers"],
        n_embd=fields["hidden_size"],
        n_heads=fields["num_attention_heads"],
        n_ffn=fields["intermediate_size"],
        image_size=tile,
        patch_size=fields["patch_size"],
        eps=float(fields["layer_norm_eps"]),
        activation=fields["hidden_act"],
        rescale=float(data.get("rescale_factor", 1 / 255)),
        mean=tuple(data.get("image_mean") or (0.5, 0.5, 0.5)),
        std=tuple(data.get("image_std") or (0.5, 0.5, 0.5)),
        norm_last=True,
    )
    cell = config.get("scale_factor", 2)
    if type(cell) is not int or cell < 1 or tower.grid % cell:
        raise CheckpointError(
            f"{path}: scale_factor is {cell!r}, which does not divide {tower.grid} patches.",
            "Use the published config.json.",
        )
    projector = ProjectorConfig((tower.n_embd * cell**2, n_embd), cell, plain=True)
    weights = VisionWeights(
        {
            "towers.0": stock_tower_weights(tower, checkpoint, tower_prefix(checkpoint.names)),
            "projector": projector_weights(projector, checkpoint, [f"model.{_PROJECTOR}"]),
        }
    )
    features = tiling_towers.idefics3_tower(
        checkpoint.files, config.get("vision_config") or {}, prepare
    )
    connector = reference.mlp(checkpoint.files, [_PROJECTOR], cell=cell)
    return VisionSide(
        [tower],
        projector,
        weights,
        lambda pixels, tick: reference.visual_tokens([features], connector, pixels, tick),
    )
