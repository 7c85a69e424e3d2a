"""Vision towers and projectors: what a graph must compute, read from published configurations.

Sources: transformers' CLIPVisionModel and SiglipVisionModel and their image processors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.bundle.manifest import ImagePolicy
from edgeprism.convert.read.fields import (
    image_processor_fields,
    number_faults,
    require_known,
    size_faults,
)
from edgeprism.errors import CheckpointError

# transformers' number → name of the resampling filter
RESAMPLINGS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_MODEL_TYPES = {"clip": "clip_vision_model", "clip_vision_model": "clip_vision_model",
                "siglip": "siglip_vision_model",
                "siglip_vision_model": "siglip_vision_model"}  # fmt: skip
# The head, which captioners never run, and sizes of the tower's contrastive partner
_WITHOUT_EFFECT = ("vision_use_head", "projection_dim", "vocab_size")
PREPARATION_FIELDS = (
    "size", "crop_size", "do_resize", "do_center_crop", "do_rescale", "do_normalize", "resample",
    "rescale_factor", "image_mean", "image_std", "do_pad", "image_grid_pinpoints",
    "aspect_ratio_setting",
)  # fmt: skip
ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "quick_gelu")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TowerConfig:
    """The sizes and variants of a patch transformer, and how its pixels are normalised."""

    n_layers: int
    n_embd: int
    n_heads: int
    n_ffn: int
    image_size: int
    patch_size: int
    eps: float
    activation: str  # of ACTIVATIONS
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    n_prefix: int = 0  # class and register rows before the patches; see `keeps_prefix`
    patch_bias: bool = True
    norm_first: bool = False  # a norm between the embeddings and the first layer
    layer_scale: bool = False  # a learned scale per channel on each branch's output
    norm_last: bool = False  # a norm after the last layer
    rms: bool = False  # norms divide by the root mean square: no mean, no bias
    qk_norm: bool = False  # RMS norms on queries and keys, over all heads together
    qkv_bias: bool = True
    k_bias: bool = True  # with `qkv_bias`: whether keys have one; it changes no attention weight
    keeps_prefix: bool = False  # the features include the class and register rows
    eps_last: float | None = None  # of the last norm, where it differs from `eps`
    norm_after: bool = False  # norms are of what a branch adds, not of what it reads

    @property
    def grid(self) -> int:
        """Patches along one edge; the tower ignores pixels beyond the last whole patch."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ProjectorConfig:
    """A chain of Linear layers with GELU (erf form) between them.

    `widths` are the widths [in, …, out]. With `downsample` s, the projector first concatenates the
    patches of each s × s cell (zeros fill incomplete cells) and normalises them unless `plain` or
    not `normed`; `plain` layers have no biases either. `transposed`: cells are ordered column by
    column.
    """

    widths: tuple[int, ...]
    downsample: int = 1
    plain: bool = False
    transposed: bool = False
    normed: bool = True

    @property
    def has_norm(self) -> bool:
        """Whether joined patches are normalised."""
        return self.downsample > 1 and self.normed and not self.plain

    def side(self, grid: int) -> int:
        """Visual tokens along one edge of `grid` patches."""
        return -(-grid // self.downsample)


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes the tower's pixels; `mode` as in the manifest's image policy."""

    mode: str  # "crop" or "stretch"
    size: int
    resample: str
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def fill(self) -> list[int]:
        """The colour of LLaVA's padding: the mean, rounded down."""
        return [int(mean * 255) for mean in self.mean]


def one_tile(mode: str, preparation: Preparation) -> ImagePolicy:
    """The whole picture as one tile, prepared as published."""
    return ImagePolicy(
        mode=mode,
        size=preparation.size,
        fill=preparation.fill,
        resample=preparation.resample,
        max_tiles=1,
    )


def tower_config_from_dict(
    data: Mapping[str, Any], preparation: Preparation, where: str
) -> tuple[str, TowerConfig]:
    """Read a CLIP or SigLIP `config.json` (or `vision_config`); return model type and tower.

    Missing fields get transformers' defaults. Raises CheckpointError for another model.
    """
    kind = _MODEL_TYPES.get(str(data.get("model_type")))
    if kind is None:
        raise CheckpointError(
            f"{where}: model_type is {data.get('model_type')!r}, expected 'siglip' or "
            "'siglip_vision_model', 'clip' or 'clip_vision_model'.",
            "Pass the folder of the vision model that the captioner was trained on.",
        )
    inner = data.get("vision_config", data) if data["model_type"] in ("clip", "siglip") else data
    require_known(inner, _WITHOUT_EFFECT, where, kind)
    fields, faults = _fields_and_faults(kind, inner, where)
    if not faults and preparation.size != fields.image_size:
        faults.append(
            f"pictures are prepared at {preparation.size}×{preparation.size}, but the vision model "
            f"takes {fields.image_size}×{fields.image_size}"
        )
    if faults:
        raise CheckpointError(
            f"{where}: {'; '.join(faults)}.",
            "Use the folders as they were published, with their preprocessor_config.json.",
        )
    clip = kind == "clip_vision_model"
    return kind, TowerConfig(
        n_layers=fields.num_hidden_layers,
        n_embd=fields.hidden_size,
        n_heads=fields.num_attention_heads,
        n_ffn=fields.intermediate_size,
        image_size=fields.image_size,
        patch_size=fields.patch_size,
        eps=float(fields.layer_norm_eps),
        activation=fields.hidden_act,
        rescale=preparation.rescale,
        mean=preparation.mean,
        std=preparation.std,
        n_prefix=int(clip),
        patch_bias=not clip,
        norm_first=clip,
    )


def tower_fields(kind: str, data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a vision tower's configuration with transformers' defaults for model type `kind`.

    Raises CheckpointError, which lists all faults.
    """
    require_known(data, _WITHOUT_EFFECT, where, kind)
    fields, faults = _fields_and_faults(kind, data, where)
    if faults:
        raise CheckpointError(
            f"{where}: {'; '.join(faults)}.", "Use the config.json that was published."
        )
    completed: dict[str, Any] = fields.to_dict()
    return completed


def _fields_and_faults(kind: str, data: Mapping[str, Any], where: str) -> tuple[Any, list[str]]:
    from transformers import CONFIG_MAPPING

    if not isinstance(data, Mapping):
        raise CheckpointError(f"{where} is {data!r}, no object.", "Download it again.")
    try:
        fields = CONFIG_MAPPING[kind](**{k: v for k, v in data.items() if k != "model_type"})
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(
            f"{where} is not a vision model: {error}.", "Download it again."
        ) from error
    needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
              "image_size", "patch_size")  # fmt: skip
    faults = size_faults({name: getattr(fields, name, None) for name in needed})
    faults += number_faults({"layer_norm_eps": getattr(fields, "layer_norm_eps", 1e-5)}, 1)
    if fields.hidden_act not in ACTIVATIONS:
        faults.append(f"hidden_act = {fields.hidden_act!r} (known: {', '.join(ACTIVATIONS)})")
    if not faults and fields.hidden_size % fields.num_attention_heads:
        faults.append(
            f"hidden_size {fields.hidden_size} is no multiple of num_attention_heads "
            f"{fields.num_attention_heads}"
        )
    return fields, faults


def n_used_layers(config: TowerConfig, select_layer: Any, where: str) -> int:
    """Return how many layers run for `hidden_states[select_layer]`; [0] is the embeddings."""
    index = select_layer if type(select_layer) is int else None
    if index is not None and index < 0:
        index += config.n_layers + 1
    if index is None or not 1 <= index <= config.n_layers:
        raise CheckpointError(
            f"{where}: the feature layer is {select_layer!r}, but the vision model has "
            f"{config.n_layers} layers.",
            "One layer is understood, counted from the end as published (-2) or from the front.",
        )
    return index


def preparation_from_folder(folder: Path, default_size: int, model_type: str) -> Preparation:
    """Read the settings of a CLIP's, SigLIP's or BLIP's image processor, or the defaults."""
    data, path = image_processor_fields(folder, PREPARATION_FIELDS)
    clip = "clip" in model_type
    size = _edge(data.get("size", default_size))
    crop = data.get("do_center_crop", clip)
    mode = "crop" if crop else "stretch"
    faults = []
    if size is None or (crop and _edge(data.get("crop_size", size)) != size):
        faults.append(f"size {data.get('size')!r} with crop_size {data.get('crop_size')!r}")
    if not crop and isinstance(data.get("size"), dict) and "shortest_edge" in data["size"]:
        faults.append(f"size {data['size']!r} without a crop")
    number = data.get("resample", 3)
    if type(number) is not int or number not in RESAMPLINGS:
        known = ", ".join(f"{n} ({name})" for n, name in RESAMPLINGS.items())
        faults.append(f"resample {number!r} (known: {known})")
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if data.get(name, True) is not True:
            faults.append(f"{name} {data[name]!r}")
    if faults:
        raise CheckpointError(
            f"{path} is not understood: {'; '.join(faults)}.",
            "Use the preprocessor_config.json that was published with the vision model.",
        )
    as_clip = clip or model_type == "blip"
    mean, std = (CLIP_MEAN, CLIP_STD) if as_clip else ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Preparation(
        mode, size or default_size, RESAMPLINGS[number], *normalisation(data, path, mean, std)
    )


def normalisation(
    data: Mapping[str, Any], path: Path, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """Return an image processor's factor of pixels, and each channel's mean and deviation.

    `mean` and `std` are the defaults. Raises CheckpointError, which names `path`, for values that
    are no numbers, or not one for each channel.
    """
    rescale = data.get("rescale_factor", 1 / 255)
    faults = number_faults({"rescale_factor": rescale}, 1e3)
    found = {
        "image_mean": data.get("image_mean") or mean,
        "image_std": data.get("image_std") or std,
    }
    for name, values in found.items():
        least = 0 if name == "image_std" else -math.inf
        three = isinstance(values, list | tuple) and len(values) == 3
        if not three or not all(type(v) in (int, float) and least < v < math.inf for v in values):
            faults.append(f"{name} = {values!r} (expected three numbers)")
    if faults:
        raise CheckpointError(
            f"{path} is not understood: {'; '.join(faults)}.",
            "Use the file that was published with the vision model.",
        )
    means, deviations = (tuple(map(float, values)) for values in found.values())
    return float(rescale), means, deviations


def _edge(size: Any) -> int | None:
    """Return the edge length of a square `size` or `crop_size`; None if it is not square."""
    if isinstance(size, Mapping):
        edges = set(size.values())
        size = edges.pop() if len(edges) == 1 else None
    return size if type(size) is int and size > 0 else None
