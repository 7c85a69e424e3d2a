"""SmolVLM and Idefics3: SigLIP on tiles → pixel shuffle → one linear layer → SmolLM2 or Llama 3.

Sources: the published checkpoints HuggingFaceTB/SmolVLM-256M-Instruct and -500M-Instruct and
HuggingFaceM4/Idefics3-8B-Llama3, and transformers' Idefics3ForConditionalGeneration with its
processor. SmolVLM2 (`model_type` smolvlm) has the same layout.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.bundle.manifest import ImagePolicy, Markers, Several, Tiling
from edgeprism.convert.family import Family, Option
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.vision.config import TowerConfig
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.progress import Progress

_CONFIG_FIELDS = ("vocab_size",)
# The published files repeat the projector's and the image processor's settings in these places,
# beside those of a resampler that they do not use.
_IDLE_TEXT_FIELDS = ("perceiver_config", "pixel_shuffle_factor")
_IDLE_VISION_FIELDS = ("max_image_size", "size")
_PROCESSOR_FIELDS = (
    "size", "max_image_size", "do_resize", "do_rescale", "do_normalize", "do_image_splitting",
    "do_pad", "resample", "rescale_factor", "image_mean", "image_std", "video_sampling",
)  # fmt: skip
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


def read(captioner: Path, progress: Progress) -> PublishedCaptioner:
    """Read the published folder."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint, read_config
    from edgeprism.convert.read.fields import require_known, text_fields
    from edgeprism.convert.read.sources import SourceFiles

    config = read_config(captioner)
    if config.get("model_type") not in ("idefics3", "smolvlm"):
        expected = "model_type idefics3 or smolvlm with text_config and vision_config"
        raise unknown_layout(captioner, FAMILY.name, expected)
    path = captioner / "config.json"
    require_known(config, _CONFIG_FIELDS, str(path), config["model_type"])
    checkpoint = Checkpoint(captioner, "captioner")
    image = image_policy(captioner, config, path)
    form = _conversation(captioner)
    text = text_fields(config, checkpoint.names, "llama", str(path))
    lm = open_language_model(
        checkpoint, {name: text[name] for name in text if name not in _IDLE_TEXT_FIELDS},
        f"{path} (text_config)", captioner,
        TokenRules(eos=_END, needed=(*form.needed, *_marker_tokens(image))),
    )  # fmt: skip
    return PublishedCaptioner(
        captioner,
        [SourceFiles("captioner", captioner, checkpoint.files)],
        image,
        _vision_side(captioner, config, path, checkpoint, image.size, lm.config.n_embd),
        lm,
        form,
        MARKERS,
    )


FAMILY = Family(
    name="smolvlm",
    summary="SmolVLM, SmolVLM2, Idefics3: SigLIP on tiles, pixel shuffle, SmolLM2 or Llama 3",
    help="Convert SmolVLM, SmolVLM2 or Idefics3 to the bundle OUT.",
    options=(Option("captioner", "folder", "Folder of the checkpoint.", required=True),),
    read=read,
    model_types=("idefics3", "smolvlm"),
    signs=("text_config", "vision_config", "scale_factor"),
)


def image_policy(folder: Path, config: dict[str, Any], where: Path) -> ImagePolicy:
    """Read the settings of an Idefics3ImageProcessor, with its defaults."""
    from edgeprism.convert.read.fields import image_processor_fields
    from edgeprism.convert.vision.config import RESAMPLINGS

    data, path = image_processor_fields(folder, _PROCESSOR_FIELDS)
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
    """Return the fields of vision_config with transformers' defaults."""
    from edgeprism.convert.vision.config import tower_fields

    published = config.get("vision_config") or {}
    used = {name: published[name] for name in published if name not in _IDLE_VISION_FIELDS}
    return tower_fields("idefics3_vision", used, f"{where} (vision_config)")


def _conversation(captioner: Path) -> Conversation:
    """Return the template: SmolVLM opens a turn with <|im_start|>, Idefics3 with its BOS token."""
    from edgeprism.convert.read.checkpoint import read_json
    from edgeprism.convert.read.conversations import Conversation

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
    """Return the special tokens in the markers, up to the largest grid."""
    side = math.isqrt(image.max_tiles - 1)
    cells = [f"<row_{r}_col_{c}>" for r in range(1, side + 1) for c in range(1, side + 1)]
    return [_FAKE, "<global-img>", *cells]


def _vision_side(
    captioner: Path,
    config: dict[str, Any],
    path: Path,
    checkpoint: Checkpoint,
    tile: int,
    n_embd: int,
) -> VisionSide:
    from edgeprism.convert.gate import tiling_towers
    from edgeprism.convert.gate import towers as reference
    from edgeprism.convert.read.fields import image_processor_fields
    from edgeprism.convert.vision.config import ProjectorConfig, normalisation
    from edgeprism.convert.vision.side import tower_side
    from edgeprism.convert.vision.weights import (
        VisionWeights,
        projector_weights,
        stock_tower_weights,
        tower_prefix,
    )

    data, processor = image_processor_fields(captioner, _PROCESSOR_FIELDS)
    rescaled = normalisation(data, processor, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    tower = _tower_config(_vision_config(config, path), rescaled, tile)
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
        checkpoint.files, config.get("vision_config") or {}, captioner
    )
    connector = reference.mlp(checkpoint.files, [_PROJECTOR], cell=cell)
    return tower_side(
        [tower],
        projector,
        weights,
        lambda pixels, tick: reference.visual_tokens([features], connector, pixels, tick),
    )


def _tower_config(
    fields: dict[str, Any],
    normalisation: tuple[float, tuple[float, ...], tuple[float, ...]],
    tile: int,
) -> TowerConfig:
    """Return the tower of `fields` (vision_config); factor, mean and deviation of its pixels."""
    from edgeprism.convert.vision.config import TowerConfig

    rescale, mean, std = normalisation
    return TowerConfig(
        n_layers=fields["num_hidden_layers"],
        n_embd=fields["hidden_size"],
        n_heads=fields["num_attention_heads"],
        n_ffn=fields["intermediate_size"],
        image_size=tile,
        patch_size=fields["patch_size"],
        eps=float(fields["layer_norm_eps"]),
        activation=fields["hidden_act"],
        rescale=rescale,
        mean=mean,
        std=std,
        norm_last=True,
    )
