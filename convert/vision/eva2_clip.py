"""EVA2-CLIP-E with a gated projector, CogVLM's vision half.

The tower normalises what each branch adds. The class row is left out behind it; CogVLM2 then joins
2 × 2 patches by a convolution. The projector is a Linear layer, a norm, GELU, and a gated
feed-forward layer, none with biases; a learned row stands at either end of the rows.

Sources: the code of the published repositories (`visual.py`) in public copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from edgeprism.convert.gate import eva2_clip as reference
from edgeprism.convert.gate import towers
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.config import TowerConfig
from edgeprism.convert.vision.graph import (
    Affine,
    GraphModule,
    Norm,
    Tower,
    gelu,
    join_cells,
    placeholder,
    tile_inputs,
)
from edgeprism.convert.vision.side import VisionSide
from edgeprism.convert.vision.weights import (
    VisionWeights,
    Weight,
    Weights,
    linear_weights,
    norm_weights,
    patch_rows,
    same,
    take_rows,
)

_JOINED = 2  # patches along an edge of what the convolution joins
_EPS = 1e-5  # of the projector's norm: torch's own
# EncoderLayer's module → published name
_NORMS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}


@dataclass(frozen=True)
class GatedConfig:
    """The projector's widths, and whether a convolution joins patches before it."""

    n_in: int
    n_out: int
    n_ffn: int
    joins: bool


class GatedGraph(GraphModule):
    """uint8 pixels [n, size, size, 3] → visual tokens [n, 1 + rows + 1, width of the LM]."""

    def __init__(self, tower: TowerConfig, config: GatedConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.image_size, self.dtype = tower.image_size, dtype
        self.tower = Tower(tower, dtype)
        n_in, n_out, n_ffn = config.n_in, config.n_out, config.n_ffn
        self.join = Affine(dtype, _JOINED**2 * n_in, n_in) if config.joins else None
        self.linear = Affine(dtype, n_in, n_out, bias=False)
        self.norm = Norm(dtype, n_out, _EPS)
        self.gate, self.up = (Affine(dtype, n_out, n_ffn, bias=False) for _ in range(2))
        self.down = Affine(dtype, n_ffn, n_out, bias=False)
        self.first_row, self.last_row = (placeholder(dtype, 1, n_out) for _ in range(2))

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Pixels of any number of tiles."""
        return tile_inputs(self.image_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [n, size, size, 3] → visual tokens [n, 1 + rows + 1, width of the LM]."""
        x = self.tower(pixels)
        if self.join is not None:
            x = self.join(join_cells(x, _JOINED))
        x = gelu(self.norm(self.linear(x)), "gelu")
        rows = self.down(functional.silu(self.gate(x)) * self.up(x))
        first, last = (row.expand(rows.shape[0], -1, -1) for row in (self.first_row, self.last_row))
        return torch.cat([first, rows, last], dim=1).float()


def gated_side(
    tower: TowerConfig, config: GatedConfig, checkpoint: Checkpoint, lead: str
) -> VisionSide:
    """Return the vision half whose tensors' names begin with `lead`."""
    side = tower.grid // _JOINED if config.joins else tower.grid
    weights = VisionWeights(
        {
            "tower": _tower_weights(tower, checkpoint, lead),
            "": _projector_weights(config, checkpoint, lead),
        }
    )
    settings = reference.Eva2Settings(
        tower.n_layers, tower.n_heads, tower.patch_size, tower.eps, lead
    )
    features = reference.eva2_tower(checkpoint.files, settings)
    connector = reference.gated_projector(checkpoint.files, lead)
    return VisionSide(
        lambda dtype: GatedGraph(tower, config, dtype),
        (1, side**2 + 2),
        weights,
        partial(towers.visual_tokens, [features], connector),
        tower.n_layers,
        constant_rows=(1, 1),
    )


def _tower_weights(config: TowerConfig, checkpoint: Checkpoint, lead: str) -> Weights:
    e, f, p, embedding = config.n_embd, config.n_ffn, config.patch_size, f"{lead}patch_embedding."
    table = {f"{embedding}position_embedding.weight": (1 + config.grid**2, e)}
    first = {f"{embedding}cls_embedding": (1, e)}
    kernel = {f"{embedding}proj.weight": (e, 3, p, p)}
    weights = {
        "patch.weight": Weight(checkpoint, kernel, patch_rows),
        "patch.bias": Weight(checkpoint, {f"{embedding}proj.bias": (e,)}, same),
        "position": Weight(checkpoint, table, lambda rows: rows[1:]),
        "prefix": Weight(checkpoint, {**first, **table}, lambda row, rows: row + rows[:1]),
    }
    for i in range(config.n_layers):
        module, source = f"layers.{i}.", f"{lead}transformer.layers.{i}."
        for norm, published in _NORMS.items():
            weights |= norm_weights(f"{module}{norm}", checkpoint, f"{source}{published}", e)
        packed = f"{source}attention.query_key_value"
        for number, part in enumerate("qkv"):
            cut = partial(take_rows, number * e, (number + 1) * e)
            for kind, shape in (("weight", (3 * e, e)), ("bias", (3 * e,))):
                name = f"{module}{part}.{kind}"
                weights[name] = Weight(checkpoint, {f"{packed}.{kind}": shape}, cut)
        weights |= linear_weights(f"{module}out", checkpoint, f"{source}attention.dense", e, e)
        weights |= linear_weights(f"{module}fc1", checkpoint, f"{source}mlp.fc1", e, f)
        weights |= linear_weights(f"{module}fc2", checkpoint, f"{source}mlp.fc2", f, e)
    return weights


def _projector_weights(config: GatedConfig, checkpoint: Checkpoint, lead: str) -> Weights:
    n_in, n, f, source = config.n_in, config.n_out, config.n_ffn, f"{lead}linear_proj."

    def matrix(name: str, n_in: int, n_out: int) -> Weight:
        published = {f"{source}{name}.weight": (n_out, n_in)}
        return Weight(checkpoint, published, lambda tensor: tensor.t())

    weights = {
        "linear.weight": matrix("linear_proj", n_in, n),
        "gate.weight": matrix("gate_proj", n, f),
        "up.weight": matrix("dense_h_to_4h", n, f),
        "down.weight": matrix("dense_4h_to_h", f, n),
        **norm_weights("norm", checkpoint, f"{source}norm1", n),
    }
    for row, published in (("first_row", "boi"), ("last_row", "eoi")):
        weights[row] = Weight(checkpoint, {f"{lead}{published}": (1, 1, n)}, lambda row: row[0])
    if config.joins:
        kernel = {f"{lead}conv.weight": (n_in, n_in, _JOINED, _JOINED)}
        weights["join.weight"] = Weight(checkpoint, kernel, patch_rows)
        weights["join.bias"] = Weight(checkpoint, {f"{lead}conv.bias": (n_in,)}, same)
    return weights
