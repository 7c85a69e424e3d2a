"""EVA-ViT-g, the tower of BLIP-2, InstructBLIP, MiniGPT-4 and InternLM-XComposer, as published.

It is a pre-norm ViT with a class row that stays among the features, and a norm after its last block
whose epsilon differs between layouts. Queries and values have biases, keys have none.

Sources: LAVIS' `eva_vit.py` and `blip2.py`, and transformers' InstructBlipVisionModel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

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
    same,
    take_rows,
)
from edgeprism.errors import CheckpointError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
N_HEADS = 16  # of EVA-g; LAVIS' layout does not tell it
N_BLOCKS = 39  # that captioners run of EVA-g's 40
_EPS = 1e-6


@dataclass(frozen=True)
class Names:
    """A layout's names. `layer`: EncoderLayer's module → published name; `biases`: of q, k, v."""

    first: str
    position: str
    patch: str
    layers: str
    layer: Mapping[str, str]
    biases: Mapping[str, str]  # "qkv" for one packed bias, or one for each part


LAVIS = Names(
    "cls_token", "pos_embed", "patch_embed.proj", "blocks.",
    {"norm1": "norm1", "norm2": "norm2", "qkv": "attn.qkv", "out": "attn.proj",
     "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
    {"q": "attn.q_bias", "v": "attn.v_bias"},
)  # fmt: skip
# of a ViT of timm's, as BLIP has it
TIMM = Names(
    "cls_token", "pos_embed", "patch_embed.proj", "blocks.", LAVIS.layer, {"qkv": "attn.qkv.bias"}
)
TRANSFORMERS = Names(
    "embeddings.class_embedding", "embeddings.position_embedding", "embeddings.patch_embedding",
    "encoder.layers.",
    {"norm1": "layer_norm1", "norm2": "layer_norm2", "qkv": "self_attn.qkv",
     "out": "self_attn.projection", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
    {"qkv": "self_attn.qkv.bias"},
)  # fmt: skip


@dataclass(frozen=True)
class EvaTensors:
    """Where a tower's tensors lie: `lead` stands before its names, e.g. "visual_encoder."."""

    checkpoint: Checkpoint
    lead: str
    names: Names = LAVIS


def eva_vit_config(
    tensors: EvaTensors, eps_last: float, n_heads: int = N_HEADS, whole: bool = False
) -> TowerConfig:
    """Return the tower whose sizes the tensors' shapes tell; CheckpointError if there is none.

    Args:
        tensors: Where they lie.
        eps_last: The epsilon of the norm after the last block.
        n_heads: The number of heads.
        whole: The file is EVA-CLIP's own (eva_vit_g.pth): captioners leave its last block out. One
            that holds just the blocks of a captioner has been cut already.
    """
    checkpoint, names, lead = tensors.checkpoint, tensors.names, tensors.lead
    e, _, p, _ = checkpoint.sizes(f"{lead}{names.patch}.weight", 4)
    n_ffn, _ = checkpoint.sizes(f"{lead}{names.layers}0.{names.layer['fc1']}.weight", 2)
    _, n_rows, _ = checkpoint.sizes(f"{lead}{names.position}", 3)
    grid = round((n_rows - 1) ** 0.5)
    if e % n_heads or grid**2 + 1 != n_rows:
        raise CheckpointError(
            f"{checkpoint.folder} ({checkpoint.role}): an EVA-ViT of width {e} with {n_heads} "
            f"heads and {n_rows} positions is not understood.",
            "Use the files as they were published.",
        )
    n_layers = count_layers(checkpoint.names, f"{lead}{names.layers}")
    return TowerConfig(
        n_layers=n_layers - int(whole and n_layers != N_BLOCKS),
        n_embd=e,
        n_heads=n_heads,
        n_ffn=n_ffn,
        image_size=p * grid,
        patch_size=p,
        eps=_EPS,
        activation="gelu",
        rescale=1 / 255,
        mean=MEAN,
        std=STD,
        n_prefix=1,
        norm_last=True,
        k_bias=False,
        keeps_prefix=True,
        eps_last=eps_last,
    )


def count_layers(names: Iterable[str], lead: str) -> int:
    """Return the number of layers whose tensors are named `lead`0…, `lead`1… without a gap."""
    pattern = re.compile(rf"{re.escape(lead)}(\d+)\.")
    found = {int(match[1]) for name in names if (match := pattern.match(name))}
    return next(n for n in range(len(found) + 1) if n not in found)


def eva_vit_weights(config: TowerConfig, tensors: EvaTensors) -> Weights:
    """Return the parameters of the tower alone, without those of the norm after its last block.

    `norm_last` is published under a name of its own: add `norm_weights("norm_last", …)`.
    """
    checkpoint, lead, names = tensors.checkpoint, tensors.lead, tensors.names
    e, p = config.n_embd, config.patch_size
    first, table = {f"{lead}{names.first}": (1, 1, e)}, f"{lead}{names.position}"
    # the positions of another grid are resampled, so their number is the file's
    rows = checkpoint.shape(table)[-2] if table in checkpoint.names else 1 + config.grid**2
    position = {table: (1, rows, e)}
    patches = {f"{lead}{names.patch}.weight": (e, 3, p, p)}
    resampled = partial(_resampled, config.grid)
    weights = {
        "patch.weight": Weight(checkpoint, patches, patch_rows),
        "patch.bias": Weight(checkpoint, {f"{lead}{names.patch}.bias": (e,)}, same),
        "position": Weight(checkpoint, position, resampled),
        "prefix": Weight(checkpoint, {**first, **position}, lambda row, t: row[0] + t[0, :1]),
    }
    for i in range(config.n_layers):
        weights |= _layer_weights(config, tensors, f"layers.{i}.", f"{lead}{names.layers}{i}.")
    return weights


def _layer_weights(config: TowerConfig, tensors: EvaTensors, module: str, source: str) -> Weights:
    checkpoint, e, f = tensors.checkpoint, config.n_embd, config.n_ffn
    layer, biases = tensors.names.layer, tensors.names.biases
    weights: Weights = {}
    for norm in ("norm1", "norm2"):
        weights |= norm_weights(f"{module}{norm}", checkpoint, f"{source}{layer[norm]}", e)
    packed = {f"{source}{layer['qkv']}.weight": (3 * e, e)}
    for i, part in enumerate("qkv"):
        rows = partial(take_rows, i * e, (i + 1) * e)
        weights[f"{module}{part}.weight"] = Weight(checkpoint, packed, rows)
        if part in biases:
            bias = {f"{source}{biases[part]}": (e,)}
            weights[f"{module}{part}.bias"] = Weight(checkpoint, bias, same)
        elif part != "k" and "qkv" in biases:
            # a bias on keys adds the same to all scores of a query, which softmax takes out again
            bias = {f"{source}{biases['qkv']}": (3 * e,)}
            weights[f"{module}{part}.bias"] = Weight(checkpoint, bias, rows)
    weights |= linear_weights(f"{module}out", checkpoint, f"{source}{layer['out']}", e, e)
    weights |= linear_weights(f"{module}fc1", checkpoint, f"{source}{layer['fc1']}", e, f)
    weights |= linear_weights(f"{module}fc2", checkpoint, f"{source}{layer['fc2']}", f, e)
    return weights


def _resampled(grid: int, table: torch.Tensor) -> torch.Tensor:
    """[1, 1 + old², e] → [grid², e] without the class row, bicubic as LAVIS resamples positions."""
    return resized_positions(table[0, 1:], grid)
