"""LLaVA v1, LLaVA-1.5 and kin: CLIP, SigLIP or InternViT → linear or MLP → a language model.

This file reads both published layouts:

- The original layout (liuhaotian/llava-v1.5-7b, ShareGPT4V, …): the language model's config.json
  has `mm_*` fields, and its tensors include `model.mm_projector.*`. `mm_vision_tower` names the
  vision tower's repository; a tower that was trained too is among the tensors. InternVL-Chat V1.0
  has this layout, too, with an InternViT.
- transformers' layout (llava-hf/llava-1.5-7b-hf, llava-interleave-qwen-*-hf): `text_config`,
  `vision_config`, and all tensors in one set of files.

Sources: these repositories' configurations and weights, LLaVA's public code (`llava_arch.py`,
`clip_encoder.py`, `mm_utils.py`), transformers' LlavaForConditionalGeneration.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.bundle.manifest import ImagePolicy, Several, Tiling, Video
from edgeprism.convert.family import CONVERSATION, Family, Option
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.vision.config import Preparation
    from edgeprism.convert.vision.frames import FramePooling
    from edgeprism.convert.vision.stock import StockTower
    from edgeprism.progress import Progress

# the original layout's model_type → the language model's
LANGUAGE_MODELS = {
    "llava": "llama", "llava_llama": "llama", "share4v": "llama", "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
}  # fmt: skip
# Of the original layout: what this file reads, and what only its training read
_ORIGINAL_FIELDS = frozenset((
    "mm_hidden_size", "mm_vision_tower", "mm_projector_type", "mm_patch_merge_type",
    "mm_vision_select_layer", "mm_vision_select_feature", "mm_use_im_start_end",
    "image_aspect_ratio", "image_grid_pinpoints", "mm_use_im_patch_token", "use_mm_proj",
    "image_crop_resolution", "image_split_resolution", "vision_tower", "mm_projector",
    "resume_path", "model_dtype",
))  # fmt: skip
_HF_FIELDS = ("vision_feature_layer", "use_image_newline_parameter", "vocab_size")
_MLP = re.compile(r"mlp(\d+)x_gelu")
_MARKS = ("<im_start>", "<im_end>")  # LLaVA v1 adds them if `mm_use_im_start_end` is set
_CONVERSATIONS = {"llama": "vicuna-v1", "mistral": "mistral", "qwen2": "qwen"}
# LLaVA-NeXT-Interleave's demo joins pictures like this; no other one-tile model is on Qwen
_INTERLEAVED = Several("", "")
_FRAMES = 8  # of a video, as llava-hf's model cards sample it; LLaVA's own demo takes 32
# of the command by which the original code shows how a video is described
_VIDEO_INSTRUCTION = (
    "Please provide a detailed description of the video, focusing on the main subjects, their "
    "actions, the background scenes."
)
_HF_CONVERSATIONS = {"llama": "user-assistant", "mistral": "mistral", "qwen2": "interleave"}


@dataclass(frozen=True)
class Layout:
    """A checkpoint's settings, the same for both published layouts."""

    where: str  # path of config.json
    checkpoint: Checkpoint  # the captioner's tensors
    text_config: dict[str, Any]
    tower: StockTower
    projector: list[str]  # the endings of its layers' names, in order
    aspect: str  # what happens to a picture that is not square: "pad" or "as prepared"
    conversation: str
    marks: tuple[str, str] = ("", "")  # special tokens around the picture
    several: Several | None = None  # how a prompt joins several pictures
    grids: list[list[int]] | None = None  # of tiles [down, across]; rows then end in newlines
    named_tower: str = ""  # the original layout's name of a separately published tower
    tower_name: str = ""  # the original layout's name of the tower, wherever its weights are
    pooling: FramePooling | None = None  # of a video's frames, for models that take them


def read(
    captioner: Path, vision: Path | None, conversation: str, progress: Progress
) -> PublishedCaptioner:
    """Read the folder `captioner`, and `vision` if the original layout names a separate tower."""
    return captioner_of_layout(read_layout(captioner, vision), captioner, conversation, progress)


FAMILY = Family(
    name="llava",
    summary="LLaVA v1 and 1.5, ShareGPT4V, LLaVA-NeXT-Interleave, InternVL-Chat V1.0",
    help="""Convert LLaVA v1, LLaVA-1.5, LLaVA-NeXT-Interleave or a similar model to the bundle OUT.

    Reads the original layout (with --vision) and that of the llava-hf repositories.
    """,
    options=(
        Option("captioner", "folder", "Folder of the LLaVA checkpoint.", required=True),
        Option("vision", "folder", "Folder of the vision model that an original checkpoint names."),
        CONVERSATION,
    ),
    read=read,
    model_types=("llava", "llava_llama", "llava_mistral", "llava_qwen", "share4v"),
    signs=("mm_hidden_size", "mm_vision_tower", "text_config", "vision_config"),
)


def captioner_of_layout(
    layout: Layout, captioner: Path, conversation: str, progress: Progress
) -> PublishedCaptioner:
    """Return the captioner in the folder `captioner` with the given `layout`.

    `conversation` is one of CONVERSATIONS, or "" for that of the layout's published models.
    """
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.conversations import conversation_named
    from edgeprism.convert.read.sources import (
        SourceFiles,
        report_other_tower,
        source_without_weights,
    )
    from edgeprism.convert.vision.intern_side import MODEL_TYPE, intern_vision_side
    from edgeprism.convert.vision.stock import StockProjector, stock_vision_side

    checkpoint, tower = layout.checkpoint, layout.tower
    form = conversation_named(conversation or layout.conversation)
    if layout.marks[0]:
        begin, end = layout.marks
        form = dataclasses.replace(
            form, needed=(*form.needed, begin, end), picture_begin=begin, picture_end=end
        )
    rules = TokenRules(eos=form.eos, needed=form.needed)
    lm = open_language_model(checkpoint, layout.text_config, layout.where, captioner, rules)
    projector = StockProjector(checkpoint, layout.projector)
    if tower.config.get("model_type") == MODEL_TYPE and layout.grids is None:
        side, preparation = intern_vision_side(
            tower, projector, lm.config.n_embd, layout.tower_name
        )
    else:
        side, preparation = stock_vision_side(
            tower, projector, lm.config.n_embd, layout.grids is not None, layout.pooling
        )
    sources = [SourceFiles("captioner", captioner, checkpoint.files)]
    if tower.checkpoint is not checkpoint:
        sources.append(SourceFiles("vision", tower.folder, tower.checkpoint.files))
        report_other_tower(tower.folder, layout.named_tower, layout.where, progress)
    elif tower.folder != captioner:
        sources.append(source_without_weights("vision", tower.folder))
    return PublishedCaptioner(
        captioner,
        sources,
        _image_policy(layout, preparation),
        side,
        lm,
        dataclasses.replace(form, several=layout.several),
        video=_video(layout.pooling, side.grid, preparation) if layout.pooling else None,
    )


def _video(pooling: FramePooling, grid: tuple[int, int], preparation: Preparation) -> Video:
    from edgeprism.convert.vision.frames import FRAMES

    return Video(
        output=FRAMES,
        grid=[pooling.side(edge) for edge in grid],
        mode=preparation.mode,
        fill=preparation.fill,
        resample=preparation.resample,
        frames=_FRAMES,
        instruction=_VIDEO_INSTRUCTION,
    )


def _image_policy(layout: Layout, preparation: Preparation) -> ImagePolicy:
    from edgeprism.convert.vision.config import one_tile

    if layout.grids is None:
        return one_tile("pad" if layout.aspect == "pad" else preparation.mode, preparation)
    # the overview is stretched; the tiles are cut from the picture on a black canvas
    return dataclasses.replace(
        one_tile("stretch", preparation),
        fill=[0, 0, 0],
        max_tiles=1 + max(down * across for down, across in layout.grids),
        tiling=Tiling("best-fit", layout.grids, 0, "first", "rows-unpadded"),
    )


def read_layout(captioner: Path, vision: Path | None) -> Layout:
    """Read the folder's configuration in either layout; CheckpointError for any other folder."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.read.checkpoint import read_config

    config = read_config(captioner)
    if config.get("model_type") == "llava" and "text_config" in config:
        return transformers_layout(captioner, config)
    if config.get("model_type") in LANGUAGE_MODELS and "mm_hidden_size" in config:
        return original_layout(captioner, config, vision)
    raise unknown_layout(
        captioner,
        FAMILY.name,
        f"model_type one of {', '.join(LANGUAGE_MODELS)} with mm_hidden_size (the original "
        "layout), or model_type llava with text_config and vision_config (transformers')",
    )


def transformers_layout(captioner: Path, config: dict[str, Any]) -> Layout:
    """Read the configuration of a llava-hf repository."""
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.fields import image_processor_fields, require_known, text_fields
    from edgeprism.convert.vision.config import PREPARATION_FIELDS
    from edgeprism.convert.vision.stock import StockTower

    where = str(captioner / "config.json")
    require_known(config, _HF_FIELDS, where, config["model_type"])
    strategy = config.get("vision_feature_select_strategy", "default")
    activation = config.get("projector_hidden_act", "gelu")
    faults = []
    if strategy not in ("default", "full"):
        faults.append(f"vision_feature_select_strategy {strategy!r}")
    if activation != "gelu":
        faults.append(f"projector_hidden_act {activation!r}")
    if not config.get("multimodal_projector_bias", True):
        faults.append("multimodal_projector_bias False")
    for part in ("text_config", "vision_config"):
        if not isinstance(config.get(part), dict):
            faults.append(f"{part} {config.get(part)!r}")
    if faults:
        raise CheckpointError(
            f"{where} is not understood: {'; '.join(faults)}.", "Use the published checkpoint."
        )
    prepare, _ = image_processor_fields(captioner, PREPARATION_FIELDS)
    checkpoint = Checkpoint(captioner, "captioner")
    text = text_fields(config, checkpoint.names, "llama")
    return Layout(
        where=where,
        checkpoint=checkpoint,
        text_config=text,
        tower=StockTower(
            checkpoint,
            {"model_type": "clip_vision_model", **config["vision_config"]},
            f"{where}: vision_config",
            captioner,
            config.get("vision_feature_layer", -2),
            keeps_first=strategy == "full",
        ),
        projector=["multi_modal_projector.linear_1", "multi_modal_projector.linear_2"],
        aspect="pad" if prepare.get("do_pad") else "as prepared",
        conversation=_HF_CONVERSATIONS.get(text["model_type"], "user-assistant"),
        several=_INTERLEAVED if text["model_type"] == "qwen2" else None,
    )


def original_layout(
    captioner: Path,
    config: dict[str, Any],
    vision: Path | None,
    merge: str = "flat",
    aspects: tuple[str | None, ...] = ("pad", "square", None),
) -> Layout:
    """Read a configuration of the original layout.

    Its `mm_patch_merge_type` must be `merge` and its `image_aspect_ratio` one of `aspects`.
    """
    from edgeprism.convert.read.checkpoint import Checkpoint, read_json
    from edgeprism.convert.vision.stock import StockTower

    path = captioner / "config.json"
    _check_original(config, path, merge, aspects)
    if vision is None:
        raise CheckpointError(
            f"{path}: the vision model is {config.get('mm_vision_tower')!r}, which is published "
            "on its own.",
            "Download it and pass its folder as `vision` (its configuration is needed even if "
            "its weights are in the captioner's files).",
        )
    vision_config = read_json(vision / "config.json")
    checkpoint = Checkpoint(captioner, "captioner")
    inside = any("embeddings.patch_embedding.weight" in name for name in checkpoint.names)
    # LLaVA drops SigLIP's last layer when it loads the model, and keeps all patches
    siglip = "siglip" in str(vision_config.get("model_type"))
    language_model = LANGUAGE_MODELS[config["model_type"]]
    mlp = _MLP.fullmatch(str(config.get("mm_projector_type", "linear")))
    layers = [f"mm_projector.{2 * i}" for i in range(int(mlp[1]))] if mlp else ["mm_projector"]
    return Layout(
        where=str(path),
        checkpoint=checkpoint,
        text_config={
            **{name: value for name, value in config.items() if name not in _ORIGINAL_FIELDS},
            "model_type": language_model,
        },
        tower=StockTower(
            checkpoint if inside else Checkpoint(vision, "vision model"),
            vision_config,
            str(vision / "config.json"),
            vision,
            -2 if siglip else config.get("mm_vision_select_layer", -2),
            keeps_first=siglip or config.get("mm_vision_select_feature") == "cls_patch",
        ),
        projector=layers,
        aspect="pad" if config.get("image_aspect_ratio") == "pad" else "as prepared",
        conversation=_CONVERSATIONS[language_model],
        several=_INTERLEAVED if language_model == "qwen2" and merge == "flat" else None,
        marks=_MARKS if config.get("mm_use_im_start_end") else ("", ""),
        named_tower="" if inside else str(config.get("mm_vision_tower", "")),
        tower_name=str(config.get("mm_vision_tower", "")),
    )


def _check_original(
    config: dict[str, Any], path: Path, merge: str, aspects: tuple[str | None, ...]
) -> None:
    """Raise CheckpointError, with all faults, for settings that the converter does not support."""
    kind = str(config.get("mm_projector_type", "linear"))
    faults = []
    if kind != "linear" and not _MLP.fullmatch(kind):
        faults.append(f"mm_projector_type {kind!r} (known: linear, mlpNx_gelu)")
    if config.get("mm_patch_merge_type", "flat") != merge:
        faults.append(f"mm_patch_merge_type {config.get('mm_patch_merge_type', 'flat')!r} (tiles)")
    aspect = config.get("image_aspect_ratio", "square")
    if aspect not in aspects:
        known = ", ".join(filter(None, aspects))
        faults.append(f"image_aspect_ratio {aspect!r} (known: {known})")
    feature = config.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        faults.append(f"mm_vision_select_feature {feature!r}")
    if faults:
        raise CheckpointError(
            f"{path} is not understood: {'; '.join(faults)}.",
            "For pictures in tiles, use the family llava-next.",
        )
