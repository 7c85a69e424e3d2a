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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.bundle.manifest import ImagePolicy, Manifest, Several, Source, Tiling
from edgeprism.bundle.writer import BundleWriter
from edgeprism.convert.families.layouts import unknown_layout
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
from edgeprism.convert.read.checkpoint import Checkpoint, Requirements, read_config, read_json
from edgeprism.convert.read.conversations import conversation_named
from edgeprism.convert.vision.config import Preparation
from edgeprism.convert.vision.stock import StockProjector, StockTower, stock_vision_side
from edgeprism.errors import CheckpointError
from edgeprism.progress import Progress

FAMILY = "llava"
# model_type of the original layout → that of its language model
LANGUAGE_MODELS = {
    "llava": "llama", "llava_llama": "llama", "share4v": "llama", "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
}  # fmt: skip
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


def convert(
    out: Path,
    options: ConvertOptions,
    progress: Progress,
    captioner: Path,
    vision: Path | None = None,
    conversation: str = "",
) -> Manifest:
    """Convert the folder `captioner` into the bundle `out`.

    `vision` is the folder of the tower that the original layout names; `conversation` one of
    CONVERSATIONS, by default the one that published models of this layout use. Raises UsageError,
    CheckpointError (every fault of the tensors at once) and ParityError.
    """
    return convert_layout(
        FAMILY, read_layout, out, options, progress, captioner, vision, conversation
    )


def convert_layout(
    family: str,
    read: Callable[[Path, Path | None], Layout],
    out: Path,
    options: ConvertOptions,
    progress: Progress,
    captioner: Path,
    vision: Path | None,
    conversation: str,
) -> Manifest:
    """`convert` of every family that is laid out so: `read` says which layout a folder has."""
    check_options(options)
    with BundleWriter(out, options.overwrite) as writer:
        progress.stage("Reading the checkpoints")
        card = card_from_folder(captioner, INSTRUCTION, FOCUS, MAX_TOKENS)
        layout = read(captioner, vision)
        checkpoint = layout.checkpoint
        talk = conversation_named(conversation or layout.conversation)
        if layout.marks[0]:
            begin, end = layout.marks
            talk = dataclasses.replace(
                talk, needed=(*talk.needed, begin, end), picture_begin=begin, picture_end=end
            )
        talk = dataclasses.replace(talk, several=layout.several)
        lm = open_language_model(
            checkpoint, layout.text_config, layout.where, captioner,
            TokenRules(eos=talk.eos, needed=talk.needed),
        )  # fmt: skip
        requirements = Requirements()
        projector = StockProjector(checkpoint, layout.projector)
        side, preparation = stock_vision_side(
            layout.tower, projector, lm.config.n_embd, requirements, layout.grids is not None
        )
        requirements.add(checkpoint, lm.shapes, UNUSED[lm.config.model_type])
        requirements.check()
        sources = _sources(captioner, layout, checkpoint)
        _say_which_tower(layout, sources, progress)
        parts = captioner_parts(
            family,
            options.name or card.name or captioner.resolve().name,
            sources,
            _image_policy(layout, preparation),
            side,
            lm,
            talk,
            card,
        )
        return write_bundle(parts, writer, options, progress)


def _image_policy(layout: Layout, preparation: Preparation) -> ImagePolicy:
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
    config = read_config(captioner)
    if config.get("model_type") == "llava" and "text_config" in config:
        return transformers_layout(captioner, config)
    if config.get("model_type") in LANGUAGE_MODELS and "mm_hidden_size" in config:
        return original_layout(captioner, config, vision)
    raise unknown_layout(
        captioner,
        FAMILY,
        f"model_type one of {', '.join(LANGUAGE_MODELS)} with mm_hidden_size (the original "
        "layout), or model_type llava with text_config and vision_config (transformers')",
    )


def transformers_layout(captioner: Path, config: dict[str, Any]) -> Layout:
    """What a folder of a llava-hf repository says."""
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
    path = captioner / "config.json"
    kind = str(config.get("mm_projector_type", "linear"))
    mlp = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    faults = []
    if kind != "linear" and not mlp:
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
    if vision is None:
        raise CheckpointError(
            f"{path}: the vision model is {config.get('mm_vision_tower')!r}, which is published "
            "on its own.",
            "Download it and pass its folder with --vision (its configuration is needed even if "
            "its weights are in the captioner's files).",
        )
    vision_config = read_json(vision / "config.json")
    checkpoint = Checkpoint(captioner, "captioner")
    inside = any("embeddings.patch_embedding.weight" in name for name in checkpoint.names)
    # LLaVA's SigLIP loses its last layer when it is loaded, and all patches are taken
    siglip = "siglip" in str(vision_config.get("model_type"))
    language_model = LANGUAGE_MODELS[config["model_type"]]
    last = [f"mm_projector.{2 * i}" for i in range(int(mlp[1]))] if mlp else ["mm_projector"]
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
            keeps_first=siglip or feature == "cls_patch",
        ),
        projector=last,
        aspect="pad" if aspect == "pad" else "as prepared",
        conversation=_CONVERSATIONS[language_model],
        several=_INTERLEAVED if language_model == "qwen2" and merge == "flat" else None,
        marks=_MARKS if config.get("mm_use_im_start_end") else ("", ""),
        named_tower="" if inside else str(config.get("mm_vision_tower", "")),
    )


def _sources(captioner: Path, layout: Layout, checkpoint: Checkpoint) -> list[Source]:
    sources = [source_of("captioner", captioner, checkpoint.files)]
    tower = layout.tower
    if tower.checkpoint is not checkpoint:
        sources.append(source_of("vision", tower.folder, tower.checkpoint.files))
    return sources


def _say_which_tower(layout: Layout, sources: list[Source], progress: Progress) -> None:
    """A tower trained further has the same shapes as the one it comes from: only names differ."""
    given = sources[-1].name.partition("@")[0]
    if layout.named_tower and Path(layout.named_tower).name != Path(given).name:
        progress.say(
            f"The vision model given is {given}; {layout.where} names {layout.named_tower}. "
            "If their weights differ, captions will be poor."
        )
