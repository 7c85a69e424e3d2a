"""MiniCPM-V 1.0 and 2.0, MiniCPM-Llama3-V 2.5: SigLIP → resampler → MiniCPM or Llama 3.

Sources: the published repositories openbmb/MiniCPM-V-2 and openbmb/MiniCPM-Llama3-V-2_5 with the
code in them (`configuration_minicpm.py`, `modeling_minicpmv.py`, `resampler.py`,
`image_processing_minicpmv.py`); of openbmb/MiniCPM-V (1.0) its description, as its config.json was
not seen: it is taken for one like that of 2.0 without slices. Version 2.6 and later ones run as a
pair of GGUF files.

Slices are LLaVA-UHD's: a picture is cut into parts of about one area, whose shape follows the
picture's, and the tower sees each, and an overview, at that shape.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.bundle.manifest import FreeShape, ImagePolicy, Several, Tiling
from edgeprism.convert.family import Family, Option
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.vision.config import TowerConfig
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.convert.vision.weights import Weights
    from edgeprism.progress import Progress

_TIMM_TOWER = "vit_so400m_patch14_siglip_384.webli"
_MEAN = [0.5, 0.5, 0.5]
_PENALTY = 1.05  # with which the published `chat` samples by default
_HEAD = 128  # width of the resampler's heads, in all versions
# The most pixels of a tile, in squares of the usual size: long ones have more than a square. So a
# picture gets the published shape if it is up to 2000 times as long as it is high.
_LONGEST = 1.5
# Fields of config.json that are not the language model's, with the published code's defaults
_OF_BOTH: dict[str, Any] = {
    "query_num": 64, "image_size": 448, "drop_vision_last_layer": True, "slice_mode": None,
    "mm_use_im_start_end": True, "patch_size": 14, "version": None,
}  # fmt: skip
_OF_TIMM: dict[str, Any] = {
    "vision_encoder": _TIMM_TOWER,
    "max_slice_nums": 9,
    "scale_resolution": 448,
}
_OF_IDEFICS2: dict[str, Any] = {
    "vision_config": None,
    "slice_config": None,
    "batch_vision_input": True,
}
_VISION_CONFIG = {
    "hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "num_attention_heads": 16,
    "num_hidden_layers": 27, "patch_size": 14,
}  # fmt: skip
_PROCESSOR = {
    "max_slice_nums": "max_slices", "scale_resolution": "edge", "patch_size": "patch",
    "image_feature_size": "queries",
}  # fmt: skip
_PROCESSOR_TEXTS = {
    "im_start": "<image>", "im_end": "</image>", "slice_start": "<slice>", "slice_end": "</slice>",
    "norm_mean": _MEAN, "norm_std": _MEAN,
}  # fmt: skip
_TABLE = "vpm.pos_embed"  # [1, places, width]
_MARKS = ("<image>", "</image>")
_SLICE_MARKS = (*_MARKS, "<slice>", "</slice>")


def read(captioner: Path, progress: Progress) -> PublishedCaptioner:
    """Read the published folder of any of the three versions."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint, read_config
    from edgeprism.convert.read.conversations import MINICPM_SLICES
    from edgeprism.convert.read.sources import SourceFiles

    config = read_config(captioner)
    if config.get("model_type") != "minicpmv":
        expected = "model_type minicpmv with query_num, and vision_encoder (1.0, 2.0) or "
        expected += "vision_config (Llama3-V 2.5)"
        raise unknown_layout(captioner, FAMILY.name, expected)
    path = captioner / "config.json"
    layout = _read_layout(config, path)
    _check_processor(captioner, layout)
    checkpoint = Checkpoint(captioner, "captioner")
    form = _conversation(layout)
    lm = open_language_model(
        checkpoint, layout.text, str(path), captioner, TokenRules(form.eos, form.needed)
    )
    scale = lm.config.scales.embedding if lm.config.scales else 1.0
    return PublishedCaptioner(
        captioner,
        [SourceFiles("captioner", captioner, checkpoint.files)],
        _image_policy(layout),
        _vision_side(layout, checkpoint, path, lm.config.n_embd, scale),
        lm,
        form,
        MINICPM_SLICES if layout.max_slices else None,
    )


FAMILY = Family(
    name="minicpm-v",
    summary="MiniCPM-V 1.0 and 2.0, MiniCPM-Llama3-V 2.5: SigLIP on slices, resampler",
    help="Convert MiniCPM-V 1.0 or 2.0 (MiniCPM), or MiniCPM-Llama3-V 2.5 (Llama 3), to OUT.",
    options=(Option("captioner", "folder", "Folder of the checkpoint.", required=True),),
    read=read,
    model_types=("minicpmv",),
    signs=("query_num", "drop_vision_last_layer", "vision_encoder", "scale_emb"),
)


# ---- config.json


@dataclass(frozen=True)
class _Layout:
    """The settings of one version."""

    newer: bool  # Llama3-V 2.5
    queries: int
    edge: int  # of a square tile in pixels
    patch: int
    max_slices: int  # without the overview; 0: the picture is one square
    text: dict[str, Any]  # the language model's fields
    vision: dict[str, Any]  # those of the newer version's tower


def _read_layout(config: dict[str, Any], path: Path) -> _Layout:
    """Return the settings; CheckpointError lists all that are not understood."""
    from edgeprism.convert.read.fields import variant_error

    newer = config.get("version") is not None or "vision_config" in config
    defaults = {**_OF_BOTH, **(_OF_IDEFICS2 if newer else _OF_TIMM)}
    fields = {**defaults, **{n: v for n, v in config.items() if v is not None and n in defaults}}
    faults = _faults(fields, newer)
    sizes = {} if faults else _sizes(fields, newer)
    # without slices, and without a resampler of free shapes, a picture is one square
    squares = not newer and fields["slice_mode"] is not True
    faults += [
        f"{name} = {value!r} (expected a whole number in 1…{most})"
        for name, (value, most) in sizes.items()
        if type(value) is not int or not 0 < value <= most
    ]
    if not faults and sizes["scale_resolution"][0] % sizes["patch_size"][0]:
        edge, patch = sizes["scale_resolution"][0], sizes["patch_size"][0]
        faults.append(f"{edge} pixels are no multiple of patch_size {patch}")
    if faults:
        raise variant_error(
            path,
            faults,
            "Supported are MiniCPM-V 1.0, 2.0 and Llama3-V 2.5; later ones run as a pair of GGUFs.",
        )
    text = {name: value for name, value in config.items() if name not in defaults}
    return _Layout(
        newer,
        queries=sizes["query_num"][0],
        edge=sizes["scale_resolution"][0],
        patch=sizes["patch_size"][0],
        max_slices=0 if squares else sizes["max_slice_nums"][0],
        text={**text, "model_type": "llama" if newer else "minicpm"},
        vision={**_VISION_CONFIG, **(fields["vision_config"] or {})} if newer else {},
    )


def _sizes(fields: dict[str, Any], newer: bool) -> dict[str, tuple[Any, int]]:
    """Return {size: (its value, the most that is supported)}."""
    slices = fields
    if newer:
        # without slice_config the published code cuts nothing
        own = fields["slice_config"] or {"max_slice_nums": 1}
        slices = {"patch_size": 14, "scale_resolution": 448, "max_slice_nums": 9, **own}
    elif fields["slice_mode"] is not True:
        slices = {**fields, "scale_resolution": fields["image_size"]}
    return {
        "query_num": (fields["query_num"], 1024),
        "patch_size": (slices["patch_size"], 256),
        "scale_resolution": (slices["scale_resolution"], 2048),
        "max_slice_nums": (slices["max_slice_nums"], 255),
    }


def _faults(fields: dict[str, Any], newer: bool) -> list[str]:
    """Return the settings that differ from the published ones."""
    expected: dict[str, tuple[Any, ...]] = {"mm_use_im_start_end": (True,)}
    if newer:
        # the published code sets slice_mode itself
        expected |= {"version": ("2.5", 2.5, None), "slice_mode": (True, None),
                     "drop_vision_last_layer": (False, True)}  # fmt: skip
    else:
        expected |= {"vision_encoder": (_TIMM_TOWER,), "slice_mode": (True, False, None),
                     "drop_vision_last_layer": (True,)}  # fmt: skip
    faults = [
        f"{name} = {fields[name]!r} (expected {' or '.join(map(repr, values))})"
        for name, values in expected.items()
        if not any(type(value) is type(fields[name]) and value == fields[name] for value in values)
    ]
    for name in ("vision_config", "slice_config") if newer else ():
        if fields[name] is not None and not isinstance(fields[name], dict):
            faults.append(f"{name} = {fields[name]!r} (expected an object)")
    known = ("patch_size", "max_slice_nums", "scale_resolution", "model_type")
    if newer and isinstance(fields["slice_config"], dict):
        slices = fields["slice_config"].items()
        faults += [
            f"slice_config.{n} = {v!r} (not understood)" for n, v in slices if n not in known
        ]
    return faults


def _check_processor(folder: Path, layout: _Layout) -> None:
    """Raise CheckpointError if the image processor's file contradicts config.json."""
    from edgeprism.convert.read.fields import image_processor_fields

    known = (*_PROCESSOR, *_PROCESSOR_TEXTS, "unk", "version")
    data, path = image_processor_fields(folder, known)
    own = dataclasses.asdict(layout)
    expected = {name: own[field] for name, field in _PROCESSOR.items()} | _PROCESSOR_TEXTS
    if not layout.max_slices:
        del expected["max_slice_nums"], expected["scale_resolution"]
    faults = [
        f"{name} {data[name]!r} (expected {value!r})"
        for name, value in expected.items()
        if data.get(name, value) != value
    ]
    if faults:
        raise CheckpointError(
            f"{path} is not understood: {'; '.join(faults)}.",
            "Use the files as they were published.",
        )


# ---- pictures and prompts


def _image_policy(layout: _Layout) -> ImagePolicy:
    edge, patch = layout.edge, layout.patch
    if not layout.max_slices:
        return ImagePolicy("stretch", edge, [0, 0, 0], "bicubic", 1)
    free = FreeShape("equal-area", patch, edge**2, int(_LONGEST * edge**2), layout.queries)
    # the counts in order, and of each the grids with the fewest columns first: ties go to the first
    grids = [
        [count // across, across]
        for count in range(2, layout.max_slices + 1)
        for across in range(1, count + 1)
        if count % across == 0
    ]
    tiling = Tiling("by-pixels", grids, 0, "first", "tiles") if grids else None
    most = 1 + layout.max_slices if tiling else 1
    return ImagePolicy("free", edge, [0, 0, 0], "bicubic", most, tiling, free=free)


def _conversation(layout: _Layout) -> Conversation:
    """Return the text of the published `chat`."""
    from edgeprism.convert.read.conversations import Conversation

    needed = _SLICE_MARKS if layout.max_slices else _MARKS
    if layout.newer:
        header = "<|start_header_id|>{}<|end_header_id|>\n\n"
        return Conversation(
            header.format("user"),
            "\n",
            before_caption=f"<|eot_id|>{header.format('assistant')}",
            stop=("<|eot_id|>", "<|end_of_text|>"),
            eos="<|eot_id|>",
            needed=(*needed, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            several=Several("", "\n"),
            repetition_penalty=_PENALTY,
        )
    # the roles are no special tokens: the tokenizer reads the second one with the instruction
    form = Conversation("<用户>", "\n", "<AI>", needed=needed, repetition_penalty=_PENALTY)
    if layout.max_slices:
        return form
    return dataclasses.replace(form, picture_begin=_MARKS[0], picture_end=_MARKS[1])


# ---- the vision half


def _vision_side(
    layout: _Layout, checkpoint: Checkpoint, path: Path, n_embd: int, scale: float
) -> VisionSide:
    """Return tower and resampler; llama.cpp multiplies rows by `scale`, as it does embeddings."""
    from edgeprism.convert.vision.free_graph import FreeGraph
    from edgeprism.convert.vision.resampler import (
        ResamplerConfig,
        ResamplerGraph,
        resampler_side,
        resampler_weights,
    )
    from edgeprism.convert.vision.weights import VisionWeights

    if n_embd % _HEAD:
        raise CheckpointError(
            f"{path}: hidden_size {n_embd} is no multiple of {_HEAD}, the width of the "
            "resampler's heads.",
            "Use the published config.json.",
        )
    tower, weights = _tower(layout, checkpoint, path)
    grid = 0 if layout.max_slices else layout.edge // layout.patch
    config = ResamplerConfig(layout.queries, tower.n_embd, n_embd, n_embd // _HEAD, grid)
    table = "" if layout.newer else "pos_embed"
    resampler = resampler_weights(config, checkpoint, "resampler.", table=table, divisor=scale)
    if not layout.max_slices:
        parts = {"tower": weights, "resampler": resampler}
        return resampler_side(
            lambda dtype: ResamplerGraph(tower, config, dtype), config, VisionWeights(parts)
        )
    return resampler_side(
        lambda dtype: FreeGraph(tower, config, layout.newer, dtype),
        config,
        VisionWeights({"": _with_places(weights, layout, tower), "resampler": resampler}),
    )


def _tower(layout: _Layout, checkpoint: Checkpoint, path: Path) -> tuple[TowerConfig, Weights]:
    """Return the tower and its weights; of one with slices, the grid is its table's."""
    from edgeprism.convert.vision.config import TowerConfig, tower_fields
    from edgeprism.convert.vision.timm import ARCHITECTURES, timm_tower
    from edgeprism.convert.vision.weights import stock_tower_weights

    if not layout.newer:
        side = layout.edge // layout.patch
        if layout.max_slices and _TABLE in checkpoint.names:
            places = checkpoint.sizes(_TABLE, 3)[1]
            side = math.isqrt(places)
            if side**2 != places:
                raise CheckpointError(
                    f"{checkpoint.folder}: {_TABLE} has {places} places, which make no square.",
                    "Use the published weights.",
                )
        architecture = ARCHITECTURES["siglip-so"]
        # published files lack the last layer, which nothing runs: all that they hold does
        found = timm_tower(checkpoint, architecture, side * layout.patch, whole=True)
        tower = found.config
        strange = tower.n_prefix or tower.norm_first or tower.layer_scale or not tower.patch_bias
        if strange or tower.patch_size != layout.patch:
            raise CheckpointError(
                f"{checkpoint.folder}: not {_TIMM_TOWER}: class rows, a norm before its layers or "
                f"scales of them, no bias of patches, or patches of {tower.patch_size} pixels "
                f"where patch_size is {layout.patch}.",
                "Use the published files.",
            )
        return tower, found.weights
    where = f"{path} (vision_config)"
    vision = dict(layout.vision)
    if vision.pop("model_type", "idefics2") != "idefics2":
        raise CheckpointError(
            f"{where}: model_type is {layout.vision['model_type']!r}, expected 'idefics2'.",
            "Use the published config.json.",
        )
    # SigLIP's configuration has the same fields and, but for sizes, the same defaults
    fields = tower_fields("siglip_vision_model", vision, where)
    if fields["patch_size"] != layout.patch:
        raise CheckpointError(
            f"{path}: patch_size is {layout.patch} in slice_config, and {fields['patch_size']} in "
            "vision_config.",
            "Use the published config.json.",
        )
    tower = TowerConfig(
        n_layers=fields["num_hidden_layers"],
        n_embd=fields["hidden_size"],
        n_heads=fields["num_attention_heads"],
        n_ffn=fields["intermediate_size"],
        image_size=fields["image_size"],
        patch_size=fields["patch_size"],
        eps=float(fields["layer_norm_eps"]),
        activation=fields["hidden_act"],
        rescale=1 / 255,
        mean=tuple(_MEAN),
        std=tuple(_MEAN),
        norm_last=True,
    )
    return tower, stock_tower_weights(tower, checkpoint, "vpm.")


def _with_places(weights: Weights, layout: _Layout, tower: TowerConfig) -> Weights:
    """Return the tower's weights with its table of positions as a graph of free shapes has it."""
    side, e = tower.grid, tower.n_embd
    published = weights["position"]
    if layout.newer:
        table = dataclasses.replace(published, turn=lambda rows: rows[:side])
    else:
        table = dataclasses.replace(published, turn=lambda rows: rows[0].t().reshape(e, side, side))
    others = {name: weight for name, weight in weights.items() if name != "position"}
    return {**others, "places.table": table}
