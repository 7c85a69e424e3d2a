"""InternViT: its configuration, and its parameters in both published layouts.

Sources: OpenGVLab's repositories (`configuration_intern_vit.py`, `modeling_intern_vit.py`) and
transformers' InternVLVisionModel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.read.fields import number_faults, require_known, size_faults
from edgeprism.convert.vision.config import ACTIVATIONS, TowerConfig
from edgeprism.convert.vision.weights import (
    Weight,
    Weights,
    linear_weights,
    norm_weights,
    patch_rows,
    resized_positions,
    same,
    take_rows,
)
from edgeprism.errors import CheckpointError

# ImageNet's, which the published code hard-codes
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# the published configuration class's defaults
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 3200, "num_hidden_layers": 48, "num_attention_heads": 25,
    "intermediate_size": 12800, "image_size": 224, "patch_size": 14, "qkv_bias": False,
    "qk_normalization": True, "norm_type": "rms_norm", "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}  # fmt: skip


def intern_vit_fields(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a vision_config with defaults; CheckpointError lists every fault."""
    require_known(data, (*_DEFAULTS, "num_channels", "use_bfloat16"), where)
    fields = {**_DEFAULTS, **data}
    sizes = {name: fields[name] for name, default in _DEFAULTS.items() if type(default) is int}
    faults = size_faults(sizes) + number_faults({"layer_norm_eps": fields["layer_norm_eps"]}, 1)
    if fields["norm_type"] not in ("rms_norm", "layer_norm"):
        faults.append(f"norm_type = {fields['norm_type']!r} (known: rms_norm, layer_norm)")
    if fields["hidden_act"] not in ACTIVATIONS:
        faults.append(f"hidden_act = {fields['hidden_act']!r} (known: {', '.join(ACTIVATIONS)})")
    if not faults and fields["hidden_size"] % fields["num_attention_heads"]:
        faults.append("hidden_size is no multiple of num_attention_heads")
    if faults:
        raise CheckpointError(
            f"{where}: {'; '.join(faults)}.", "Use the config.json that was published."
        )
    return fields


def intern_vit_config(fields: Mapping[str, Any], image_size: int, n_layers: int) -> TowerConfig:
    """Return the first `n_layers` of the tower that `fields` describe."""
    return TowerConfig(
        n_layers=n_layers,
        n_embd=fields["hidden_size"],
        n_heads=fields["num_attention_heads"],
        n_ffn=fields["intermediate_size"],
        image_size=image_size,
        patch_size=fields["patch_size"],
        eps=float(fields["layer_norm_eps"]),
        activation=fields["hidden_act"],
        rescale=1 / 255,
        mean=MEAN,
        std=STD,
        n_prefix=1,
        layer_scale=True,
        rms=fields["norm_type"] == "rms_norm",
        qk_norm=bool(fields["qk_normalization"]),
        qkv_bias=bool(fields["qkv_bias"]),
    )


@dataclass(frozen=True)
class Names:
    """A layout's names of a tower's tensors; `layer`: EncoderLayer's module → published name."""

    first: str
    position: str
    patch: str
    layers: str
    layer: Mapping[str, str]


ORIGINAL = Names(
    "embeddings.class_embedding", "embeddings.position_embedding", "embeddings.patch_embedding",
    "encoder.layers.",
    {"norm1": "norm1", "norm2": "norm2", "qkv": "attn.qkv", "q_norm": "attn.q_norm",
     "k_norm": "attn.k_norm", "out": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2",
     "scale1": "ls1", "scale2": "ls2"},
)  # fmt: skip
TRANSFORMERS = Names(
    "embeddings.cls_token", "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection", "encoder.layer.",
    {"norm1": "layernorm_before", "norm2": "layernorm_after", "q": "attention.q_proj",
     "k": "attention.k_proj", "v": "attention.v_proj", "q_norm": "attention.q_norm",
     "k_norm": "attention.k_norm", "out": "attention.projection_layer", "fc1": "mlp.fc1",
     "fc2": "mlp.fc2", "scale1": "lambda_1", "scale2": "lambda_2"},
)  # fmt: skip


def intern_vit_weights(
    config: TowerConfig,
    checkpoint: Checkpoint,
    prefix: str,
    names: Names = ORIGINAL,
    table_grid: int = 0,
) -> Weights:
    """Return the tower's parameters in the layout `names`; `prefix` e.g. "vision_model.".

    Positions of `table_grid` places along an edge, by default the tower's, are resampled to it.
    """
    e, p = config.n_embd, config.patch_size
    table_grid = table_grid or config.grid
    first = {f"{prefix}{names.first}": (1, 1, e)}
    table = {f"{prefix}{names.position}": (1, 1 + table_grid**2, e)}
    patches = {f"{prefix}{names.patch}.weight": (e, 3, p, p)}
    weights = {
        "patch.weight": Weight(checkpoint, patches, patch_rows),
        "patch.bias": Weight(checkpoint, {f"{prefix}{names.patch}.bias": (e,)}, same),
        "position": Weight(checkpoint, table, partial(_resampled, config.grid)),
        "prefix": Weight(checkpoint, {**first, **table}, lambda row, rows: row[0] + rows[0, :1]),
    }
    for i in range(config.n_layers):
        theirs = f"{prefix}{names.layers}{i}."
        sources = {module: f"{theirs}{name}" for module, name in names.layer.items()}
        weights |= _layer_weights(config, checkpoint, f"layers.{i}.", sources)
    return weights


def _resampled(grid: int, rows: torch.Tensor) -> torch.Tensor:
    """Return positions [1, 1 + n, e] without the class row's, for `grid` places along an edge.

    InternViT resamples in float32, bicubically and without smoothing, whatever the weights' type.
    """
    return resized_positions(rows[0, 1:], grid)


def _layer_weights(
    config: TowerConfig, checkpoint: Checkpoint, module: str, sources: Mapping[str, str]
) -> Weights:
    e, f = config.n_embd, config.n_ffn
    weights: Weights = {}
    for norm in ("norm1", "norm2"):
        weights |= norm_weights(f"{module}{norm}", checkpoint, sources[norm], e)
    if "qkv" in sources:
        weights |= _packed(module, sources["qkv"], checkpoint, e)
    else:
        for part in "qkv":
            weights |= linear_weights(f"{module}{part}", checkpoint, sources[part], e, e)
    weights |= linear_weights(f"{module}out", checkpoint, sources["out"], e, e)
    weights |= linear_weights(f"{module}fc1", checkpoint, sources["fc1"], e, f)
    weights |= linear_weights(f"{module}fc2", checkpoint, sources["fc2"], f, e)
    if config.qk_norm:
        for norm in ("q_norm", "k_norm"):
            name = f"{sources[norm]}.weight"
            weights[f"{module}{norm}.weight"] = Weight(checkpoint, {name: (e,)}, same)
    for scale in ("scale1", "scale2"):
        weights[f"{module}{scale}"] = Weight(checkpoint, {sources[scale]: (e,)}, same)
    absent = [f"{module}{norm}.bias" for norm in ("norm1", "norm2") if config.rms]
    absent += [f"{module}{part}.bias" for part in "qkv" if not config.qkv_bias]
    return {name: weight for name, weight in weights.items() if name not in absent}


def _packed(module: str, source: str, checkpoint: Checkpoint, e: int) -> Weights:
    """Return queries, keys and values, which are published as one matrix [3 · e, e] and bias."""
    weights: Weights = {}
    for i, part in enumerate("qkv"):
        take = partial(take_rows, i * e, (i + 1) * e)
        weights[f"{module}{part}.weight"] = Weight(
            checkpoint, {f"{source}.weight": (3 * e, e)}, take
        )
        weights[f"{module}{part}.bias"] = Weight(checkpoint, {f"{source}.bias": (3 * e,)}, take)
    return weights
