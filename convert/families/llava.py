"""LLaVA v1, LLaVA-1.5 and their descendants: CLIP or SigLIP → linear or MLP → a language model.

Two published layouts are read as they are:

- the original one (liuhaotian/llava-v1.5-7b, ShareGPT4V, …): the language model's own config.json
  with `mm_*` fields, `model.mm_projector.*` among its tensors, the vision tower in another
  repository that `mm_vision_tower` names, or inside if it was trained too;
- transformers' (llava-hf/llava-1.5-7b-hf, llava-interleave-qwen-*-hf): `text_config`,
  `vision_config`, and everything in one set of files.

Sources: those repositories' configurations and weights, LLaVA's public code (`llava_arch.py`,
`clip_encoder.py`, `mm_utils.py`), transformers' LlavaForConditionalGeneration.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.bundle.manifest import ImagePolicy, Several, Tiling
from edgeprism.convert.family import CONVERSATION, Family, Option
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.vision.config import Preparation
    from edgeprism.convert.vision.stock import StockTower
    from edgeprism.progress import Progress

# model_type of the original layout → that of its language model
LANGUAGE_MODELS = {
    "llava": "llama", "llava_llama": "llama", "share4v": "llama", "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
}  # fmt: skip
_MLP = re.compile(r"mlp(\d+)x_gelu")
_MARKS = ("<im_start>", "<im_end>")  # what LLaVA v1 adds with `mm_use_im_start_end`
_CONVERSATIONS = {"llama": "vicuna-v1", "mistral": "mistral", "qwen2": "qwen"}
# of one-tile models LLaVA-NeXT-Interleave alone is on Qwen: its demo joins pictures so
_INTERLEAVED = Several("", "")
_HF_CONVERSATIONS = {"llama": "user-assistant", "mistral": "mistral", "qwen2": "interleave"}


@dataclass(frozen=True)
class Layout:
    """What either published layout says, in the same words."""

    where: str  # the config.json
    checkpoint: Checkpoint  # the captioner's
    text_config: dict[str, Any]
    tower: StockTower
    projector: list[str]  # the endings of its layers' names, in order
    aspect: str  # "pad" or "as prepared": how a picture that is not square is treated
    conversation: str
    marks: tuple[str, str] = ("", "")  # special tokens around the picture
    several: Several | None = None  # how several pictures stand in one prompt
    grids: list[list[int]] | None = None  # of tiles [down, across]; the rows then end in newlines
    named_tower: str = ""  # what the original layout calls the tower that is published apart


def read(
    captioner: Path, vision: Path | None, conversation: str, progress: Progress
) -> PublishedCaptioner:
    """The folder `captioner`, and `vision` where the original layout names a tower of its own."""
    return captioner_of_layout(read_layout(captioner, vision), captioner, conversation, progress)


FAMILY = Family(
    name="llava",
    summary="LLaVA v1 and 1.5, ShareGPT4V, LLaVA-NeXT-Interleave: original and llava-hf layouts",
    help="""LLaVA v1, LLaVA-1.5, LLaVA-NeXT-Interleave and their like, into OUT.

    Both the original layout (with --vision) and that of the llava-hf repositories.
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
    """What the folder `captioner` holds, whichever family's it is.

    `conversation` is one of CONVERSATIONS, or "" for the one of published models of this layout.
    """
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.conversations import conversation_named
    from edgeprism.convert.read.sources import SourceFiles
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
    side, preparation = stock_vision_side(
        tower, projector, lm.config.n_embd, newline=layout.grids is not None
    )
    sources = [SourceFiles("captioner", captioner, checkpoint.files)]
    if tower.checkpoint is not checkpoint:
        sources.append(SourceFiles("vision", tower.folder, tower.checkpoint.files))
        _say_which_tower(layout, progress)
    return PublishedCaptioner(
        captioner,
        sources,
        _image_policy(layout, preparation),
        side,
        lm,
        dataclasses.replace(form, several=layout.several),
    )


def _image_policy(layout: Layout, preparation: Preparation) -> ImagePolicy:
    from edgeprism.convert.vision.config import one_tile

    if layout.grids is None:
        return one_tile("pad" if layout.aspect == "pad" else preparation.mode, preparation)
    # the overview is stretched, and the tiles are cut from a canvas of black
    return dataclasses.replace(
        one_tile("stretch", preparation),
        fill=[0, 0, 0],
        max_tiles=1 + max(down * across for down, across in layout.grids),
        tiling=Tiling("best-fit", layout.grids, 0, "first", "rows-unpadded"),
    )


def read_layout(captioner: Path, vision: Path | None) -> Layout:
    """Which layout the folder has, and what it says; CheckpointError for any other."""
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
    """What a folder of a llava-hf repository says."""
    from edgeprism.convert.read.checkpoint import Checkpoint, read_json
    from edgeprism.convert.vision.stock import StockTower

    where = str(captioner / "config.json")
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
    text = {"model_type": "llama", **config["text_config"]}
    prepare_path = captioner / "preprocessor_config.json"
    prepare = read_json(prepare_path) if prepare_path.is_file() else {}
    checkpoint = Checkpoint(captioner, "captioner")
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
    """What an original folder says; it must say `merge` and one of `aspects` of tiles."""
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
    # LLaVA's SigLIP loses its last layer when it is loaded, and all patches are taken
    siglip = "siglip" in str(vision_config.get("model_type"))
    language_model = LANGUAGE_MODELS[config["model_type"]]
    mlp = _MLP.fullmatch(str(config.get("mm_projector_type", "linear")))
    layers = [f"mm_projector.{2 * i}" for i in range(int(mlp[1]))] if mlp else ["mm_projector"]
    return Layout(
        where=str(path),
        checkpoint=checkpoint,
        text_config={**config, "model_type": language_model},
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
    )


def _check_original(
    config: dict[str, Any], path: Path, merge: str, aspects: tuple[str | None, ...]
) -> None:
    """Refuse what the original code would compute differently, all faults at once."""
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
            "Pictures in tiles are the family llava-next's.",
        )


def _say_which_tower(layout: Layout, progress: Progress) -> None:
    """A tower trained further has the same shapes as the one it comes from: only names differ."""
    from edgeprism.convert.read.sources import published_name

    given = published_name(layout.tower.folder).partition("@")[0]
    if layout.named_tower and Path(layout.named_tower).name != Path(given).name:
        progress.say(
            f"The vision model given is {given}; {layout.where} names {layout.named_tower}. "
            "If their weights differ, captions will be poor."
        )
