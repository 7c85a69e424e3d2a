"""The perceiver resampler: learned queries attend to a tower's features once.

Whatever the picture's shape, a tile becomes as many visual tokens as there are queries. Keys carry
the place of their patch, values do not. Sources: the published `resampler.py` of MiniCPM-V 2.0 and
MiniCPM-Llama3-V 2.5, and Qwen-VL's `visual.py`, whose layout of tensors they share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgeprism.convert.gate.data import N_PICTURES
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.config import TowerConfig
from edgeprism.convert.vision.eager import module_reference
from edgeprism.convert.vision.graph import Affine, GraphModule, Norm, Tower, placeholder
from edgeprism.convert.vision.quantize import INPUT
from edgeprism.convert.vision.side import VisionSide
from edgeprism.convert.vision.weights import (
    VisionWeights,
    Weight,
    Weights,
    norm_weights,
    resized_positions,
    same,
)
from edgeprism.errors import CheckpointError

_BASE = 10000.0  # of the wavelengths of positions


@dataclass(frozen=True)
class ResamplerConfig:
    """The sizes of a resampler; `n_embd` is a multiple of 4 and of `n_heads`.

    With `grid`, all tiles are squares of grid × grid patches, and the keys' positions are a
    parameter. Without, tiles have any shape, and the graph computes positions from it.
    """

    n_queries: int  # visual tokens of a tile
    n_in: int  # width of the tower's features
    n_embd: int  # width of the attention and of the visual tokens
    n_heads: int
    grid: int = 0
    eps: float = 1e-6


class Resampler(nn.Module):
    """Features [n, patches, n_in] → visual tokens [n, n_queries, n_embd]."""

    def __init__(self, config: ResamplerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        e = config.n_embd
        self.kv = Affine(dtype, config.n_in, e, bias=False)
        self.norm_kv = Norm(dtype, e, config.eps)
        # after their norm, position, matrix and scale: no pixel counts for them
        self.queries = placeholder(dtype, config.n_queries, e)
        self.position = placeholder(dtype, config.grid**2, e) if config.grid else None
        self.k, self.v, self.out = (Affine(dtype, e, e) for _ in range(3))
        self.norm_post = Norm(dtype, e, config.eps)
        self.proj = Affine(dtype, e, e, bias=False)

    def forward(
        self, x: torch.Tensor, down: torch.Tensor | None = None, across: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return visual tokens of features [n, patches, n_in].

        `down` and `across` are the numbers 0, 1, … of a tile's rows and columns of patches; they
        are needed without `config.grid`.
        """
        c = self.config
        n, t, _ = x.shape
        values = self.norm_kv(self.kv(x))
        k, v = self.k(values + self._position(down, across).to(x.dtype)), self.v(values)
        # [n, heads, rows, head_dim]; the queries are repeated for each tile, so that no optimizer
        # folds the placeholder's value into a constant
        q, k, v = (
            part.reshape(n, rows, c.n_heads, c.n_embd // c.n_heads).transpose(1, 2)
            for part, rows in ((self.queries.expand(n, -1, -1), c.n_queries), (k, t), (v, t))
        )
        y = torch.softmax(q @ k.transpose(2, 3), dim=-1) @ v
        y = self.out(y.transpose(1, 2).reshape(n, c.n_queries, c.n_embd))
        tokens: torch.Tensor = self.proj(self.norm_post(y))
        return tokens

    def _position(self, down: torch.Tensor | None, across: torch.Tensor | None) -> torch.Tensor:
        """Return the keys' positions [patches, n_embd]."""
        if self.position is not None:
            return self.position
        if down is None or across is None:
            raise ValueError("tiles of any shape need down and across")
        return waves(down, across, self.config.n_embd)


class ResamplerGraph(GraphModule):
    """uint8 pixels [n, size, size, 3] → visual tokens [n, n_queries, n_embd], float32.

    A tower for squares, and a resampler of its grid.
    """

    def __init__(self, tower: TowerConfig, resampler: ResamplerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.image_size = dtype, tower.image_size
        self.tower = Tower(tower, dtype)
        self.resampler = Resampler(resampler, dtype)

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Pixels of any number of tiles."""
        pixels = torch.zeros((2, self.image_size, self.image_size, 3), dtype=torch.uint8)
        return {INPUT: (pixels, {0: torch.export.Dim("n", min=1, max=1024)})}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [n, size, size, 3] → visual tokens [n, n_queries, n_embd]."""
        tokens: torch.Tensor = self.resampler(self.tower(pixels))
        return tokens.float()


def resampler_side(
    graph: Callable[[torch.dtype], GraphModule], config: ResamplerConfig, weights: VisionWeights
) -> VisionSide:
    """Return the vision half of a graph that ends with a resampler; torch runs the same module."""
    reference = module_reference(graph, weights)
    return VisionSide(graph, (1, config.n_queries), weights, reference, n_ticks=N_PICTURES)


def waves(down: torch.Tensor, across: torch.Tensor, n: int) -> torch.Tensor:
    """Return the position of each patch as sines and cosines, float32 [patches, n].

    `down` and `across` are the numbers of the rows and columns. The first half of a position
    depends on the column, the second on the row; in each, sines come before cosines.
    """
    exponents = torch.arange(n // 4, dtype=torch.float32) / (n // 4)
    rates = 1.0 / _BASE**exponents  # [n / 4]
    by_row, by_column = (place.float()[:, None] * rates for place in (down, across))
    columns = torch.cat([by_column.sin(), by_column.cos()], dim=-1)  # [across, n / 2]
    rows = torch.cat([by_row.sin(), by_row.cos()], dim=-1)
    whole = (down.shape[0], across.shape[0], n // 2)
    both = [columns[None].expand(whole), rows[:, None].expand(whole)]
    return torch.cat(both, dim=-1).reshape(-1, n)


# ---- weights


def resampler_weights(
    config: ResamplerConfig,
    checkpoint: Checkpoint,
    prefix: str,
    *,
    table: str = "",
    behind: str | None = None,
    divisor: float = 1.0,
) -> Weights:
    """Return the parameters of a `Resampler`.

    Args:
        config: The resampler's sizes.
        checkpoint: Holds the published tensors.
        prefix: What stands before `query`, `kv_proj.weight`, `attn.…`, `ln_q` and `ln_kv`.
        table: The name after `prefix` of a stored table of positions, one for each query, which lie
            on a square. The queries get it as it is, the keys of a fixed `config.grid` resized to
            that. Without it, queries have no position.
        behind: What stands before `ln_post` and `proj`; by default `prefix`.
        divisor: Visual tokens are divided by it: by a factor with which llama.cpp multiplies
            whatever enters the language model.

    Raises:
        CheckpointError: There is a table, and the number of queries is no square.
        ValueError: The grid is fixed, and there is no table.
    """
    e, n = config.n_embd, config.n_queries
    if config.grid and not table:
        raise ValueError("the keys of a fixed grid need a table of positions")
    behind = prefix if behind is None else behind
    side = round(n**0.5)
    if table and side**2 != n:
        raise CheckpointError(
            f"{checkpoint.folder}: {n} queries have positions, but make no square.",
            "Use the published config.json.",
        )
    places = {f"{prefix}{table}": (n, e)} if table else {}
    packed = {"weight": (3 * e, e), "bias": (3 * e,)}
    attention = {f"{prefix}attn.in_proj_{kind}": shape for kind, shape in packed.items()}
    norm = {f"{prefix}ln_q.{kind}": (e,) for kind in ("weight", "bias")}
    out = f"{prefix}attn.out_proj"
    weights = {
        "kv.weight": Weight(checkpoint, {f"{prefix}kv_proj.weight": (e, config.n_in)}, _transposed),
        "queries": Weight(
            checkpoint, {f"{prefix}query": (n, e), **norm, **attention, **places}, _queries(config)
        ),
        "out.weight": Weight(checkpoint, {f"{out}.weight": (e, e)}, _transposed),
        "out.bias": Weight(checkpoint, {f"{out}.bias": (e,)}, same),
        "proj.weight": Weight(checkpoint, {f"{behind}proj": (e, e)}, lambda rows: rows / divisor),
    }
    weights |= norm_weights("norm_kv", checkpoint, f"{prefix}ln_kv", e)
    weights |= norm_weights("norm_post", checkpoint, f"{behind}ln_post", e)
    for number, part in ((1, "k"), (2, "v")):
        for kind, shape in packed.items():
            source = {f"{prefix}attn.in_proj_{kind}": shape}
            weights[f"{part}.{kind}"] = Weight(checkpoint, source, _third(number))
    if config.grid:
        resized = partial(resized_positions, grid=config.grid)
        weights["position"] = Weight(checkpoint, places, resized)
    return weights


def _queries(config: ResamplerConfig) -> Callable[..., torch.Tensor]:
    """Return a function that makes the queries as attention takes them, scale and all."""
    e, head = config.n_embd, config.n_embd // config.n_heads

    def turn(query: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        weight, bias, matrix, offset, *table = (tensor.float() for tensor in others)
        x: torch.Tensor = functional.layer_norm(query.float(), (e,), weight, bias, config.eps)
        for places in table:
            x = x + places
        x = (x @ matrix[:e].t() + offset[:e]) * head**-0.5
        return x.to(query.dtype)

    return turn


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.t()


def _third(number: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that takes third `number` of a packed bias, or of a matrix, transposed."""

    def turn(packed: torch.Tensor) -> torch.Tensor:
        part = packed.chunk(3)[number]
        return part.t() if part.dim() == 2 else part

    return turn
