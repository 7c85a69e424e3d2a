"""LLaVA-NeXT (LLaVA-1.6): CLIP on an overview and tiles → MLP → a language model.

The layouts are LLaVA's, with tiles in addition. The picture is fitted into one of the sizes in
`image_grid_pinpoints`. Its rows of patches run across all tiles, rows of padding are left out, and
a learned row ends each. Sources: the configurations and weights of liuhaotian/llava-v1.6-* and
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

_LLAMA_3 = 128_000  # a Llama with at least so many rows of vocabulary is a Llama 3


def read(
    captioner: Path, vision: Path | None, conversation: str, progress: Progress
) -> PublishedCaptioner:
    """Read the folder `captioner`, and `vision` if the original layout names a separate tower."""
    layout = read_layout(captioner, vision)
    return llava.captioner_of_layout(layout, captioner, conversation, progress)


FAMILY = Family(
    name="llava-next",
    summary="LLaVA-NeXT (1.6): LLaVA with tiles; original and llava-hf layouts",
    help="Convert LLaVA-NeXT (LLaVA-1.6), original or llava-hf layout, to the bundle OUT.",
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
    """Read the folder's configuration in either layout; CheckpointError for any other folder."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.read.checkpoint import read_config

    config = read_config(captioner)
    if config.get("model_type") == "llava_next" and "text_config" in config:
        return transformers_layout(captioner, config)
    if config.get("model_type") in llava.LANGUAGE_MODELS and "mm_hidden_size" in config:
        return original_layout(captioner, config, vision)
    raise unknown_layout(
        captioner,
        FAMILY.name,
        "model_type llava_next with text_config and vision_config (transformers'), or one of "
        f"{', '.join(llava.LANGUAGE_MODELS)} with mm_hidden_size and image_aspect_ratio "
        "anyres (the original layout)",
    )


def transformers_layout(captioner: Path, config: dict[str, Any]) -> llava.Layout:
    """Read the configuration of a llava-hf repository, whose model_type is llava_next."""
    from edgeprism.convert.read.fields import image_processor_fields
    from edgeprism.convert.vision.config import PREPARATION_FIELDS

    path = captioner / "config.json"
    layout = llava.transformers_layout(captioner, config)
    settings, prepare = image_processor_fields(captioner, PREPARATION_FIELDS)
    prepared = settings.get("image_grid_pinpoints")
    pinpoints = config.get("image_grid_pinpoints")
    if prepared is not None and pinpoints is not None and prepared != pinpoints:
        raise CheckpointError(
            f"{path} and {prepare} have different image_grid_pinpoints: {pinpoints!r} and "
            f"{prepared!r}.",
            "Use the files as they were published.",
        )
    return _tiled(layout, pinpoints or prepared, turned=False)


def original_layout(captioner: Path, config: dict[str, Any], vision: Path | None) -> llava.Layout:
    """Read a configuration of the original layout."""
    layout = llava.original_layout(captioner, config, vision, "spatial_unpad", ("anyres",))
    # LLaVA writes (width, height), transformers (height, width)
    return _tiled(layout, config.get("image_grid_pinpoints"), turned=True)


def _tiled(layout: llava.Layout, pinpoints: Any, *, turned: bool) -> llava.Layout:
    """Return the layout with grids of tiles, and the conversation of the published models."""
    size = _tile_size(layout)
    return dataclasses.replace(
        layout,
        several=None,  # with Qwen, `original_layout` would assume LLaVA-NeXT-Interleave
        grids=_grids(pinpoints, size, turned, layout.where),
        conversation=_conversation(layout),
    )


def _conversation(layout: llava.Layout) -> str:
    """Return the conversation of the published model with such a language model."""
    from edgeprism.convert.language.read_vocabulary import knows_token

    kind, n_vocab = layout.text_config["model_type"], layout.text_config.get("vocab_size", 0)
    if kind == "qwen2":
        return "qwen"
    if kind != "llama":
        return layout.conversation
    if type(n_vocab) is int and n_vocab >= _LLAMA_3:
        return "llama-3"
    # the 34B model: Nous-Hermes-2-Yi
    return (
        "chatml" if knows_token(layout.checkpoint.folder, n_vocab, "<|im_start|>") else "vicuna-v1"
    )


def _tile_size(layout: llava.Layout) -> Any:
    config = layout.tower.config
    return (config.get("vision_config") or config).get("image_size", 224)


def _grids(pinpoints: Any, size: Any, turned: bool, where: str) -> list[list[int]]:
    """Return the grids [down, across] in tiles; original files may hold the list as a text."""
    if isinstance(pinpoints, str):
        try:
            pinpoints = ast.literal_eval(pinpoints)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pinpoints = None
    valid = (
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
    if not valid:
        raise CheckpointError(
            f"{where}: image_grid_pinpoints {pinpoints!r} is not a list of pairs of multiples of "
            f"the vision model's {size!r} pixels.",
            "Use the published config.json.",
        )
    return [[edge // size for edge in (point[::-1] if turned else point)] for point in pinpoints]
