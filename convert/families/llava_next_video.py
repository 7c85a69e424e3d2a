"""LLaVA-NeXT-Video: LLaVA-NeXT that takes the frames of a video, too.

Layouts and still pictures are LLaVA-NeXT's. A frame goes through the same tower and projector as
one tile without others, and the mean of each 2 × 2 patches stands for them: 144 visual tokens a
frame at 336 pixels. Frames follow each other without anything between.

Sources: transformers' LlavaNextVideoForConditionalGeneration and the configurations of
llava-hf/LLaVA-NeXT-Video-*-hf; for the original layout LLaVA-NeXT's public code, branch `inference`
(`llavavid/`), which pools before or after the projector (`mm_pooling_position`).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.convert.families import llava, llava_next
from edgeprism.convert.family import CONVERSATION, Family, Option
from edgeprism.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.progress import Progress

_HF_TYPES = ("llava_next_video", "llava_next", "llava-next-video")
# of transformers' layout: the pool's fields, and those of the pool "conv", which no model has
_HF_FIELDS = ("spatial_pool_mode", "spatial_pool_stride")
_HF_IDLE = ("spatial_pool_out_channels", "video_seq_length", "hidden_size", "video_token_index")
# Of the original layout, as its code trains and its demo calls it. Fields of its other resamplers
# (Q-Former, perceiver) are refused where they have a value that switches them on.
_ORIGINAL_FIELDS = {
    "mm_resampler_type": (None, "spatial_pool"),
    "mm_spatial_pool_mode": (None, "average"),
    "mm_newline_position": (None, "no_token"),
    "mm_pooling_position": (None, "before", "after"),
}
_ORIGINAL_IDLE = (
    "mm_spatial_pool_stride", "mm_spatial_pool_out_channels", "mm_mask_drop_mode",
    "mm_mask_drop_skip_percentage", "mm_mask_drop_ratio", "mm_mask_drop_ratio_upper",
    "mm_mask_drop_ratio_lower", "mm_perceiver_depth", "mm_perceiver_latents",
    "mm_perceiver_ff_mult", "mm_perceiver_pretrained", "mm_qformer_depth", "mm_qformer_latents",
    "mm_qformer_pretrained", "add_faster_video", "delay_load",
)  # fmt: skip
_POSITIONS = ("before", "after")
_YI = range(64_000, 64_128)  # rows of Yi's vocabulary, as it is and padded
# The conversions to transformers' layout wrote this beside `rope_scaling`, where it has no effect
_STRAY_ROPE = ("factor", "type")


def read(
    captioner: Path,
    vision: Path | None,
    conversation: str,
    pooling: str,
    rope_factor: str,
    progress: Progress,
) -> PublishedCaptioner:
    """Read the folder `captioner`, and `vision` if the original layout names a separate tower."""
    layout = read_layout(captioner, vision, pooling, progress)
    if rope_factor:
        layout = _stretched(layout, _factor(rope_factor))
    return llava.captioner_of_layout(_long(layout), captioner, conversation, progress)


FAMILY = Family(
    name="llava-next-video",
    summary="LLaVA-NeXT-Video: LLaVA-NeXT for pictures and videos; original and llava-hf layouts",
    help="""Convert LLaVA-NeXT-Video, original or llava-hf layout, to the bundle OUT.

    The bundle describes pictures as LLaVA-NeXT does, and videos by some of their frames.
    """,
    options=(
        Option("captioner", "folder", "Folder of the checkpoint.", required=True),
        Option("vision", "folder", "Folder of the vision model that an original checkpoint names."),
        CONVERSATION,
        Option(
            "pooling",
            "choice",
            "Average each frame's patches before the projector or after it.  [default: as the "
            "checkpoint says, else before]",
            default="",
            choices=_POSITIONS,
        ),
        Option(
            "rope_factor",
            "text",
            "Stretch the language model's positions by this factor, and its context with them, "
            "e.g. 2 for 32 frames.  [default: as config.json says]",
            default="",
            metavar="NUMBER",
        ),
    ),
    read=read,
    model_types=("llava_next_video", "llava_next", "llava_llama", "llava_mistral"),
    signs=("spatial_pool_mode", "video_token_index", "mm_spatial_pool_mode",
           "video_preprocessor_config.json"),
)  # fmt: skip


def read_layout(
    captioner: Path, vision: Path | None, pooling: str, progress: Progress
) -> llava.Layout:
    """Read the folder's configuration in either layout; CheckpointError for any other folder."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.read.checkpoint import read_config

    path = captioner / "config.json"
    config = read_config(captioner)
    kind = config.get("model_type")
    if kind in _HF_TYPES and "text_config" in config and "spatial_pool_mode" in config:
        return _transformers(captioner, config, pooling, progress)
    if kind in llava.LANGUAGE_MODELS and "mm_hidden_size" in config:
        return _original(captioner, config, vision, pooling)
    raise unknown_layout(
        path.parent,
        FAMILY.name,
        "model_type llava_next_video with text_config, vision_config and spatial_pool_mode "
        f"(transformers'), or one of {', '.join(llava.LANGUAGE_MODELS)} with mm_hidden_size (the "
        "original layout)",
    )


def _transformers(
    captioner: Path, config: dict[str, Any], pooling: str, progress: Progress
) -> llava.Layout:
    path = captioner / "config.json"
    mode = config["spatial_pool_mode"]
    if mode != "average":
        raise CheckpointError(
            f"{path}: spatial_pool_mode is {mode!r}; average is understood.",
            "Use the published checkpoint.",
        )
    text = config.get("text_config")
    if isinstance(text, dict) and text.get("rope_scaling") is None:
        stray = {name: text[name] for name in _STRAY_ROPE if name in text}
        if "factor" in stray:
            progress.say(
                f"{path}: text_config has factor {stray['factor']!r} outside rope_scaling, where "
                "transformers passes over it, and so does this conversion, unless "
                "it is given a rope factor."
            )
    if isinstance(text, dict):
        text = {name: value for name, value in text.items() if name not in _STRAY_ROPE}
    read = {name: value for name, value in config.items() if name not in (*_HF_FIELDS, *_HF_IDLE)}
    read |= {"model_type": "llava_next", "text_config": text}
    layout = llava_next.transformers_layout(captioner, read)
    stride = _stride(config.get("spatial_pool_stride", 2), "spatial_pool_stride", path)
    # the model cards of these repositories leave out the system's text
    said = {"llama": "user-assistant"}.get(layout.text_config["model_type"], layout.conversation)
    layout = dataclasses.replace(layout, conversation=said)
    return _with_frames(layout, stride, pooling or "before")


def _original(
    captioner: Path, config: dict[str, Any], vision: Path | None, pooling: str
) -> llava.Layout:
    path = captioner / "config.json"
    faults = [
        f"{name} {config[name]!r} (known: {', '.join(filter(None, known))})"
        for name, known in _ORIGINAL_FIELDS.items()
        if config.get(name) not in known
    ]
    if faults:
        raise CheckpointError(
            f"{path} is not understood: {'; '.join(faults)}.", "Use the published checkpoint."
        )
    stride = _stride(config.get("mm_spatial_pool_stride") or 2, "mm_spatial_pool_stride", path)
    passed = (*_ORIGINAL_FIELDS, *_ORIGINAL_IDLE)
    read = {name: value for name, value in config.items() if name not in passed}
    layout = llava_next.original_layout(captioner, read, vision)
    return _with_frames(layout, stride, pooling or config.get("mm_pooling_position") or "before")


def _with_frames(layout: llava.Layout, stride: int, position: str) -> llava.Layout:
    from edgeprism.convert.vision.frames import FramePooling

    text = layout.text_config
    is_yi = text["model_type"] == "llama" and text.get("vocab_size") in _YI
    return dataclasses.replace(
        layout,
        pooling=FramePooling(stride, position == "after"),
        conversation="chatml" if is_yi else layout.conversation,
    )


def _stride(value: object, name: str, path: Path) -> int:
    if type(value) is not int or not 1 <= value <= 64:
        raise CheckpointError(
            f"{path}: {name} is {value!r}, expected a whole number above 0.",
            "Use the config.json that was published.",
        )
    return value


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not (math.isfinite(factor) and 1 <= factor <= 64):
        raise UsageError(
            f"rope_factor is {text!r}; a number in 1…64 is expected.",
            "LLaVA-NeXT-Video's demo takes 2 for 32 frames.",
        )
    return factor


def _stretched(layout: llava.Layout, factor: float) -> llava.Layout:
    """Return the layout with linear rope scaling by `factor`, whatever config.json says."""
    text = _older_rope(layout)
    kind = _kind(text.get("rope_scaling"))
    if kind not in (None, "linear"):
        raise CheckpointError(
            f"{layout.where}: rope_scaling is {text['rope_scaling']!r}, which no factor replaces.",
            "Leave out `rope_factor`.",
        )
    scaling = {"type": "linear", "factor": factor} if factor != 1 else None
    return dataclasses.replace(layout, text_config={**text, "rope_scaling": scaling})


def _long(layout: llava.Layout) -> llava.Layout:
    """Return the layout with the context that linear rope scaling makes of the base model's.

    Its configuration gives the base model's length alone; the original code multiplies it too.
    """
    text = _older_rope(layout)
    scaling, length = text.get("rope_scaling"), text.get("max_position_embeddings")
    factor = scaling.get("factor") if isinstance(scaling, dict) else None
    if (
        _kind(scaling) == "linear"
        and isinstance(factor, int | float)
        and factor >= 1
        and isinstance(length, int)
    ):
        text["max_position_embeddings"] = int(length * factor)
    return dataclasses.replace(layout, text_config=text)


def _older_rope(layout: llava.Layout) -> dict[str, Any]:
    from edgeprism.convert.read.fields import with_older_rope

    return with_older_rope(layout.text_config, f"{layout.where} (text_config)")


def _kind(scaling: object) -> object:
    if not isinstance(scaling, dict):
        return None
    return scaling.get("rope_type", scaling.get("type"))
