"""mPLUG-Owl's visual abstractor: learned queries attend to themselves and to a tower's features.

In each layer the norm of the queries comes first and stays: attention is added to the *normed*
queries. Source: X-PLUG's repository (`modeling_mplug_owl.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgeprism.convert.gate.data import N_PICTURES
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.config import TowerConfig
from edgeprism.convert.vision.eager import module_reference
from edgeprism.convert.vision.graph import (
    Affine,
    GraphModule,
    Norm,
    Tower,
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
)

_EPS = 1e-5  # of the norms around attention: torch's default, not the configuration's


@dataclass(frozen=True)
class AbstractorConfig:
    """The sizes of an abstractor; `eps` belongs to the norm inside the feed-forward network."""

    n_layers: int
    n_embd: int
    n_heads: int
    n_ffn: int
    n_queries: int
    n_out: int  # the language model's width
    eps: float

    @property
    def n_tokens(self) -> int:
        """Visual tokens of a picture: one for each query, and a learned row that ends them."""
        return self.n_queries + 1


class AbstractorLayer(nn.Module):
    """One layer over queries [n, n_queries, n_embd]."""

    def __init__(self, config: AbstractorConfig, dtype: torch.dtype) -> None:
        super().__init__()
        e, f = config.n_embd, config.n_ffn
        self.norm_queries, self.norm_image, self.norm2 = (Norm(dtype, e, _EPS) for _ in range(3))
        self.q, self.k, self.v, self.out = (Affine(dtype, e, e) for _ in range(4))
        self.gate, self.up = (Affine(dtype, e, f) for _ in range(2))
        self.norm_inner = Norm(dtype, f, config.eps)
        self.down = Affine(dtype, f, e)
        self.n_heads = config.n_heads

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Queries and features [n, rows, n_embd] → queries."""
        x = self.norm_queries(x)
        seen = torch.cat([x, self.norm_image(image)], dim=1)
        n, _, e = x.shape
        q, k, v = (
            part.reshape(n, -1, self.n_heads, e // self.n_heads).transpose(1, 2)
            for part in (self.q(x), self.k(seen), self.v(seen))
        )  # [n, heads, rows, head_dim]
        weights = torch.softmax((q * (e // self.n_heads) ** -0.5) @ k.transpose(2, 3), dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, -1, e))
        y = self.norm2(x)
        y = functional.silu(self.gate(y)) * self.up(y)
        result: torch.Tensor = x + self.down(self.norm_inner(y))
        return result


class Abstractor(nn.Module):
    """Features [n, rows, n_embd] → visual tokens [n, n_queries + 1, n_out]."""

    def __init__(self, config: AbstractorConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.queries = placeholder(dtype, config.n_queries, config.n_embd)
        self.layers = nn.ModuleList(AbstractorLayer(config, dtype) for _ in range(config.n_layers))
        self.fc = Affine(dtype, config.n_embd, config.n_out)
        self.last_row = placeholder(dtype, 1, config.n_out)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return visual tokens of features [n, rows, n_embd]."""
        # repeated for each picture, so that no optimizer folds the placeholder's value away
        x = self.queries.expand(image.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, image)
        return torch.cat([self.fc(x), self.last_row.expand(image.shape[0], -1, -1)], dim=1)


class AbstractorGraph(GraphModule):
    """uint8 pixels [n, size, size, 3] → visual tokens [n, n_queries + 1, n_out], float32."""

    def __init__(
        self, tower: TowerConfig, abstractor: AbstractorConfig, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.dtype, self.image_size = dtype, tower.image_size
        self.tower, self.abstractor = Tower(tower, dtype), Abstractor(abstractor, dtype)

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Pixels of any number of tiles."""
        return tile_inputs(self.image_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [n, size, size, 3] → visual tokens."""
        tokens: torch.Tensor = self.abstractor(self.tower(pixels))
        return tokens.float()


def abstractor_side(
    tower: TowerConfig, tower_weights: Weights, abstractor: AbstractorConfig, checkpoint: Checkpoint
) -> VisionSide:
    """Return the vision half of a captioner with an abstractor; torch runs the same module."""
    weights = VisionWeights(
        {"tower": tower_weights, "abstractor": abstractor_weights(abstractor, checkpoint)}
    )

    def graph(dtype: torch.dtype) -> GraphModule:
        return AbstractorGraph(tower, abstractor, dtype)

    reference = module_reference(graph, weights)
    grid = (1, abstractor.n_tokens)
    return VisionSide(graph, grid, weights, reference, N_PICTURES, constant_rows=(0, 1))


def abstractor_weights(config: AbstractorConfig, checkpoint: Checkpoint) -> Weights:
    """Return the parameters of an `Abstractor`."""
    e, f, n = config.n_embd, config.n_ffn, config.n_out
    queries, last = {"query_tokens": (1, config.n_queries, e)}, {"abstractor.vit_eos": (1, 1, n)}
    weights = {
        "queries": Weight(checkpoint, queries, lambda rows: rows[0]),
        "last_row": Weight(checkpoint, last, lambda rows: rows[0]),
        **linear_weights("fc", checkpoint, "abstractor.visual_fc", e, n),
    }
    norms = {"norm_queries": ("norm1", e), "norm_image": ("normk", e),
             "norm2": ("output.norm2", e), "norm_inner": ("output.mlp.ffn_ln", f)}  # fmt: skip
    linears = {
        "q": ("attention.query", e, e), "k": ("attention.key", e, e),
        "v": ("attention.value", e, e), "out": ("output.out_proj", e, e),
        "gate": ("output.mlp.w1", e, f), "up": ("output.mlp.w3", e, f),
        "down": ("output.mlp.w2", f, e),
    }  # fmt: skip
    for i in range(config.n_layers):
        module, source = f"layers.{i}.", f"abstractor.encoder.layers.{i}.crossattention."
        for part, (name, width) in norms.items():
            weights |= norm_weights(f"{module}{part}", checkpoint, f"{source}{name}", width)
        for part, (name, *widths) in linears.items():
            weights |= linear_weights(f"{module}{part}", checkpoint, f"{source}{name}", *widths)
    return weights
