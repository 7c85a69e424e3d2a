"""Towers that publish queries, keys and values interleaved: for each head its rows of the three.

Sources: Qwen-VL's `visual.py` (OpenCLIP's ViT-bigG without its class row) and mPLUG-Owl's
`modeling_mplug_owl.py` (CLIP's ViT-L).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.config import TowerConfig
from edgeprism.convert.vision.weights import (
    Weight,
    Weights,
    linear_weights,
    norm_weights,
    patch_rows,
    resized_positions,
)
from edgeprism.errors import CheckpointError


@dataclass(frozen=True)
class Names:
    """A layout's names of a tower's tensors; `layer`: EncoderLayer's module → published name."""

    patch: str
    position: str
    norm_first: str
    layers: str
    layer: Mapping[str, str]
    first: str = ""  # the class row
    norm_last: str = ""


QWEN_VL = Names(
    "conv1", "positional_embedding", "ln_pre", "transformer.resblocks.",
    {"norm1": "ln_1", "qkv": "attn.in_proj", "out": "attn.out_proj", "norm2": "ln_2",
     "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"},
)  # fmt: skip
MPLUG_OWL = Names(
    "embeddings.patch_embed", "embeddings.position_embedding", "embeddings.pre_layernorm",
    "encoder.layers.",
    {"norm1": "input_layernorm", "qkv": "self_attn.query_key_value", "out": "self_attn.dense",
     "norm2": "post_attention_layernorm", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
    "embeddings.cls_token", "post_layernorm",
)  # fmt: skip


def interleaved_weights(
    config: TowerConfig, checkpoint: Checkpoint, prefix: str, names: Names
) -> Weights:
    """Return the parameters of a tower whose tensors' names begin with `prefix`.

    Positions of a tower without class row are resized to its grid in float32, bicubic without
    antialiasing, as upstream does for each picture. Raises CheckpointError if they are no square.
    """
    e, f, p = config.n_embd, config.n_ffn, config.patch_size
    weights = {
        "patch.weight": Weight(checkpoint, {f"{prefix}{names.patch}.weight": (e, 3, p, p)},
                               patch_rows),
        **_rows(config, checkpoint, prefix, names),
        **norm_weights("norm_first", checkpoint, f"{prefix}{names.norm_first}", e),
    }  # fmt: skip
    if names.norm_last:
        weights |= norm_weights("norm_last", checkpoint, f"{prefix}{names.norm_last}", e)
    widths = {"fc1": (e, f), "fc2": (f, e)}
    for i in range(config.n_layers):
        for part, published in names.layer.items():
            module, source = f"layers.{i}.{part}", f"{prefix}{names.layers}{i}.{published}"
            if part == "qkv":
                weights |= head_weights(f"layers.{i}.", checkpoint, source, e, config.n_heads)
            elif part.startswith("norm"):
                weights |= norm_weights(module, checkpoint, source, e)
            else:
                weights |= linear_weights(module, checkpoint, source, *widths.get(part, (e, e)))
    return weights


def _rows(config: TowerConfig, checkpoint: Checkpoint, prefix: str, names: Names) -> Weights:
    """Return the patches' positions, and the class row plus its position if there is one."""
    e, n, name = config.n_embd, config.grid**2, f"{prefix}{names.position}"
    if names.first:
        table = {name: (1, 1 + n, e)}
        row = {f"{prefix}{names.first}": (1, 1, e)}
        return {
            "position": Weight(checkpoint, table, lambda rows: rows[0, 1:]),
            "prefix": Weight(
                checkpoint, {**row, **table}, lambda first, rows: first[0] + rows[0, :1]
            ),
        }
    n_old = checkpoint.sizes(name, 2)[0] if name in checkpoint.names else n
    if round(n_old**0.5) ** 2 != n_old:
        raise CheckpointError(
            f"{checkpoint.folder}: {name} has {n_old} positions, which make no square.",
            "Use the published checkpoint.",
        )
    return {
        "position": Weight(
            checkpoint, {name: (n_old, e)}, lambda rows: resized_positions(rows, config.grid)
        )
    }


def head_weights(
    module: str, checkpoint: Checkpoint, source: str, n_embd: int, n_heads: int
) -> Weights:
    """Return q, k and v of `module`, whose rows each head has together in `source`."""
    packed = {"weight": (3 * n_embd, n_embd), "bias": (3 * n_embd,)}
    return {
        f"{module}{part}.{kind}": Weight(
            checkpoint, {f"{source}.{kind}": shape}, _of_each_head(number, n_heads)
        )
        for number, part in enumerate("qkv")
        for kind, shape in packed.items()
    }


def _of_each_head(number: int, n_heads: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that takes rows `number` (of q, k, v) of each head; a matrix transposed."""

    def turn(packed: torch.Tensor) -> torch.Tensor:
        part: torch.Tensor = packed.unflatten(0, (n_heads, 3, -1))[:, number].flatten(0, 1)
        return part.t() if part.dim() == 2 else part

    return turn
