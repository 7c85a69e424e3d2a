"""A text decoder among whose tokens a picture's rows stand, as a torch module for export.

It is Persimmon's: norms with biases in front of both halves of a layer, norms of each head's
queries and keys, rotations of the first part of a head, and squared ReLU. Source: transformers'
`modeling_persimmon.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgeprism.convert.language.decoder import DOMAIN, MOST, DecoderSizes, kept_names
from edgeprism.convert.vision.graph import Affine, GraphModule, Norm


@dataclass(frozen=True)
class RowDecoderConfig(DecoderSizes):
    """The sizes of Persimmon; `rotary` channels of each head turn with the position."""

    rope_theta: float
    rotary: int
    # llama.cpp reads the vocabulary of an architecture that it knows
    architecture = "llama"

    def graph(self) -> GraphModule:
        """Return the module of the manifest's `Decoder.file`."""
        return RowDecoderGraph(self)


class RowDecoderLayer(nn.Module):
    """Attention to the rows so far, and a feed-forward part."""

    def __init__(self, config: RowDecoderConfig) -> None:
        super().__init__()
        e, f, d = config.n_embd, config.n_ffn, config.head_dim
        self.n_heads = config.n_heads
        self.norm1, self.norm2 = (Norm(torch.float32, e, config.eps) for _ in range(2))
        self.q, self.k, self.v, self.out = (Affine(torch.float32, e, e) for _ in range(4))
        self.q_norm, self.k_norm = (Norm(torch.float32, d, config.eps) for _ in range(2))
        self.fc1, self.fc2 = Affine(torch.float32, e, f), Affine(torch.float32, f, e)

    def forward(
        self,
        x: torch.Tensor,
        kept: tuple[torch.Tensor, torch.Tensor],
        cells: tuple[torch.Tensor, torch.Tensor],
        turns: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [batch, n, n_embd] → the same shape, with the layer's keys and values.

        `kept` are keys and values [batch, heads, cells, head_dim]; `cells` are their last indices
        and the largest of these plus 1; `turns` are cosines and sines [positions, rotary / 2].
        """
        y = self.norm1(x)
        q = normed_heads(self.q(y), self.q_norm, self.n_heads)
        k = normed_heads(self.k(y), self.k_norm, self.n_heads)
        attended, keys, values = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::GroupQueryAttention",
            (q, k, self.v(y), *kept, *cells, *turns),
            attrs={"num_heads": self.n_heads, "kv_num_heads": self.n_heads, "do_rotary": 1},
            dtypes=(x.dtype,) * 3,
            shapes=(x.shape, kept[0].shape, kept[1].shape),
            version=1,
        )
        x = x + self.out(attended)
        inner = torch.relu(self.fc1(self.norm2(x)))
        return x + self.fc2(inner * inner), keys, values


def normed_heads(x: torch.Tensor, norm: nn.Module, n_heads: int) -> torch.Tensor:
    """Normalise queries or keys [batch, n, n_embd], those of each head by themselves."""
    heads: torch.Tensor = norm(x.unflatten(-1, (n_heads, -1)))
    return heads.flatten(-2)


class RowDecoderGraph(GraphModule):
    """Rows and what is kept of those before → logits; see the manifest's Decoder."""

    dtype = torch.float32

    def __init__(self, config: RowDecoderConfig) -> None:
        super().__init__()
        e = config.n_embd
        self.config = config
        self.layers = nn.ModuleList(RowDecoderLayer(config) for _ in range(config.n_layers))
        self.norm_last = Norm(self.dtype, e, config.eps)
        self.head = Affine(self.dtype, e, config.n_vocab, bias=False)
        cos, sin = turns_of(config)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        self.outputs = ("logits", *(f"new_{name}" for name in kept_names(config)))

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Return examples of all inputs, with the names of the lengths that may differ."""
        c = self.config
        batch, n, m, cells = (
            torch.export.Dim(name, min=1, max=MOST) for name in ("batch", "n", "m", "cells")
        )
        kept = torch.zeros((2, c.n_heads, 8, c.head_dim))
        return {
            "rows": (torch.zeros((2, 3, c.n_embd)), {0: batch, 1: n}),
            "last": (torch.tensor([2, 2], dtype=torch.int32), {0: batch}),
            "total": (torch.tensor([3], dtype=torch.int32), {}),
            "wanted": (torch.tensor([0, 2], dtype=torch.int64), {0: m}),
            **{name: (kept.clone(), {0: batch, 2: cells}) for name in kept_names(c)},
        }

    def arranged(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Return keys and values as one tuple."""
        first = len(values) - 2 * self.config.n_layers
        return (*values[:first], tuple(values[first:]))

    def forward(
        self,
        rows: torch.Tensor,
        last: torch.Tensor,
        total: torch.Tensor,
        wanted: torch.Tensor,
        kept: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, ...]:
        """Rows [batch, n, n_embd] → logits [batch, m, n_vocab], keys and values afterwards."""
        x, made = rows, []
        for i, layer in enumerate(self.layers):
            pair = (kept[2 * i], kept[2 * i + 1])
            x, keys, values = layer(x, pair, (last, total), (self.cos, self.sin))
            made += [keys, values]
        return (self.head(self.norm_last(x.index_select(1, wanted))), *made)


def turns_of(config: RowDecoderConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines [positions, rotary / 2] of the angles by which channels turn."""
    channels = torch.arange(0, config.rotary, 2, dtype=torch.int64).float() / config.rotary
    places = torch.arange(config.context_length).float()
    angles = torch.outer(places, 1 / config.rope_theta**channels)
    return angles.cos(), angles.sin()
