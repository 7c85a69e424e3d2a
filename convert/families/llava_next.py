"""LLaVA-NeXT (LLaVA-1.6): CLIP on an overview and tiles → MLP → a language model.

As LLaVA in both its layouts, with tiles: the picture is fitted into one of `image_grid_pinpoints`,
its rows of patches run across all tiles, rows of padding are left out, and each ends in a learned
row. Sources: the configurations and weights of liuhaotian/llava-v1.6-* and
llava-hf/llava-v1.6-*-hf, LLaVA's public code (`llava_arch.py`, `mm_utils.py`), transformers'
LlavaNextForConditionalGeneration and its image processor.
"""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.convert.families import llava
from edgeprism.convert.family import CONVERSATION, Family, Option
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.progress import Progress

_LLAMA_3 = 128_000  # rows of vocabulary from which on a Llama is a Llama 3


def read(
    captioner: Path, vision: Path | None, conversation: str, progress: Progress
) -> PublishedCaptioner:
    """The folder `captioner`, and `vision` where the original layout names a tower of its own."""
    layout = read_layout(captioner, vision)
    return llava.captioner_of_layout(layout, captioner, conversation, progress)


FAMILY = Family(
    name="llava-next",
    summary="LLaVA-NeXT (1.6): as LLaVA, with tiles; original and llava-hf layouts",
    help="LLaVA-NeXT (LLaVA-1.6), in its original layout or that of llava-hf, into OUT.",
    options=(
        Option("captioner", "folder", "Folder of the checkpoint.", required=True),
        Option("vision", "folder", "Folder of the vision model that an original checkpoint names."),
        CONVERSATION,
    ),
    read=read,
    model_types=("llava_next", "llava_llama", "llava_mistral", "llava_qwen"),
    signs=("image_grid_pinpoints", "mm_patch_merge_type", "text_config", "vision_config"),
)


def read_layout(captioner: Path, vision: Path | None) -> llava.Layout:
    """Which layout the folder has, and what it says; CheckpointError for any other."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.read.checkpoint import read_config, read_json

    path = captioner / "config.json"
    config = read_config(captioner)
    if config.get("model_type") == "llava_next" and "text_config" in config:
        layout = llava.transformers_layout(captioner, config)
        prepare = captioner / "preprocessor_config.json"
        told = read_json(prepare).get("image_grid_pinpoints") if prepare.is_file() else None
        pinpoints = config.get("image_grid_pinpoints")
        if told is not None and pinpoints is not None and told != pinpoints:
            raise CheckpointError(
                f"{path} and {prepare} tell of different image_grid_pinpoints: {pinpoints!r} and "
                f"{told!r}.",
                "Use the files as they were published.",
            )
        pinpoints, turned = pinpoints or told, False
    elif config.get("model_type") in llava.LANGUAGE_MODELS and "mm_hidden_size" in config:
        layout = llava.original_layout(captioner, config, vision, "spatial_unpad", ("anyres",))
        # LLaVA writes (width, height), transformers (height, width)
        pinpoints, turned = config.get("image_grid_pinpoints"), True
    else:
        raise unknown_layout(
            captioner,
            FAMILY.name,
            "model_type llava_next with text_config and vision_config (transformers'), or one of "
            f"{', '.join(llava.LANGUAGE_MODELS)} with mm_hidden_size and image_aspect_ratio "
            "anyres (the original layout)",
        )
    size = _tile_size(layout)
    text = layout.text_config
    llama3 = text["model_type"] == "llama" and text.get("vocab_size", 0) >= _LLAMA_3
    usual = "vicuna-v1" if layout.conversation == "user-assistant" else layout.conversation
    return dataclasses.replace(
        layout,
        several=None,  # a Qwen here is not Interleave
        grids=_grids(pinpoints, size, turned, str(path)),
        conversation="llama-3" if llama3 else "qwen" if usual == "interleave" else usual,
    )


def _tile_size(layout: llava.Layout) -> Any:
    config = layout.tower.config
    return (config.get("vision_config") or config).get("image_size", 224)


def _grids(pinpoints: Any, size: Any, turned: bool, where: str) -> list[list[int]]:
    """[down, across] in tiles; the original writes its list as a text sometimes."""
    if isinstance(pinpoints, str):
        try:
            pinpoints = ast.literal_eval(pinpoints)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pinpoints = None
    good = (
        isinstance(pinpoints, list)
        and pinpoints
        and type(size) is int
        and all(
            isinstance(point, list | tuple)
            and len(point) == 2
            and all(type(edge) is int and edge > 0 and edge % size == 0 for edge in point)
            for point in pinpoints
        )
    )
    if not good:
        raise CheckpointError(
            f"{where}: image_grid_pinpoints {pinpoints!r} is no list of pairs of multiples of the "
            f"vision model's {size!r} pixels.",
            "Use the published config.json.",
        )
    return [[edge // size for edge in (point[::-1] if turned else point)] for point in pinpoints]
