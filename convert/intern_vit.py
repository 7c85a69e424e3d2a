"""InternViT's published layout: its configuration, and where a tower's parameters come from.

Source: OpenGVLab's repositories (`configuration_intern_vit.py`, `modeling_intern_vit.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from edgeprism.convert.checkpoint import Checkpoint
from edgeprism.convert.vision_config import ACTIVATIONS, TowerConfig
from edgeprism.convert.vision_weights import (
    Weight,
    Weights,
    linear_weights,
    norm_weights,
    patch_rows,
    same,
)
from edgeprism.errors import CheckpointError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, written in the code
# what the published configuration class sets where config.json says nothing
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 3200, "num_hidden_layers": 48, "num_attention_heads": 25,
    "intermediate_size": 12800, "image_size": 224, "patch_size": 14, "qkv_bias": False,
    "qk_normalization": True, "norm_type": "rms_norm", "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}  # fmt: skip


def intern_vit_fields(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A vision_config, completed; CheckpointError tells every fault at once."""
    fields = {**_DEFAULTS, **data}
    faults = [
        f"{name} = {fields[name]!r} (expected a whole number above 0)"
        for name, default in _DEFAULTS.items()
        if type(default) is int and (type(fields[name]) is not int or fields[name] < 1)
    ]
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
    """The first `n_layers` of a tower of these fields."""
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


def intern_vit_weights(config: TowerConfig, checkpoint: Checkpoint, prefix: str) -> Weights:
    """Under the published names; `prefix` e.g. "vision_model."."""
    e, f, p = config.n_embd, config.n_ffn, config.patch_size
    embeddings = f"{prefix}embeddings."
    first = {f"{embeddings}class_embedding": (1, 1, e)}
    table = {f"{embeddings}position_embedding": (1, 1 + config.grid**2, e)}
    patches = {f"{embeddings}patch_embedding.weight": (e, 3, p, p)}
    weights = {
        "patch.weight": Weight(checkpoint, patches, patch_rows),
        "patch.bias": Weight(checkpoint, {f"{embeddings}patch_embedding.bias": (e,)}, same),
        "position": Weight(checkpoint, table, lambda rows: rows[0, 1:]),
        "prefix": Weight(checkpoint, {**first, **table}, lambda row, rows: row[0] + rows[0, :1]),
    }
    for i in range(config.n_layers):
        ours, theirs = f"layers.{i}.", f"{prefix}encoder.layers.{i}."
        for norm in ("norm1", "norm2"):
            weights |= norm_weights(f"{ours}{norm}", checkpoint, f"{theirs}{norm}", e)
        weights |= _packed(ours, f"{theirs}attn.qkv", checkpoint, e)
        if config.qk_norm:
            for part in "qk":
                weights[f"{ours}{part}_norm.weight"] = Weight(
                    checkpoint, {f"{theirs}attn.{part}_norm.weight": (e,)}, same
                )
        weights |= linear_weights(f"{ours}out", checkpoint, f"{theirs}attn.proj", e, e)
        weights |= linear_weights(f"{ours}fc1", checkpoint, f"{theirs}mlp.fc1", e, f)
        weights |= linear_weights(f"{ours}fc2", checkpoint, f"{theirs}mlp.fc2", f, e)
        for number in "12":
            weights[f"{ours}scale{number}"] = Weight(
                checkpoint, {f"{theirs}ls{number}": (e,)}, same
            )
    absent = [
        name
        for name in weights
        if (config.rms and name.endswith(("norm1.bias", "norm2.bias")))
        or (not config.qkv_bias and name.endswith((".q.bias", ".k.bias", ".v.bias")))
    ]
    return {name: weight for name, weight in weights.items() if name not in absent}


def _packed(ours: str, source: str, checkpoint: Checkpoint, e: int) -> Weights:
    """Queries, keys and values, published as one matrix [3 · e, e] and bias."""
    weights: Weights = {}
    for i, part in enumerate("qkv"):
        rows = slice(i * e, (i + 1) * e)
        take = partial(_taken, rows)
        weights[f"{ours}{part}.weight"] = Weight(checkpoint, {f"{source}.weight": (3 * e, e)}, take)
        weights[f"{ours}{part}.bias"] = Weight(checkpoint, {f"{source}.bias": (3 * e,)}, take)
    return weights


def _taken(rows: slice, tensor: torch.Tensor) -> torch.Tensor:
    """Rows of a bias, or of a matrix [out, in], which is turned to [in, out]."""
    part = tensor[rows]
    return part.t() if part.dim() == 2 else part
