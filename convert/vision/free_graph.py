"""A tower whose tiles have any shape, with a resampler behind it: MiniCPM-V's graph.

Everything that depends on a tile's shape is computed in the graph, from the shape of its input.
Sources: the published `modeling_minicpmv.py` and `resampler.py` of MiniCPM-V 2.0 and
MiniCPM-Llama3-V 2.5, timm's `resample_abs_pos_embed`, torch's antialiased bicubic interpolation,
transformers' Idefics2VisionEmbeddings of 4.40.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from edgeprism.convert.vision.config import TowerConfig
from edgeprism.convert.vision.graph import (
    Affine,
    EncoderLayer,
    GraphModule,
    Norm,
    placeholder,
)
from edgeprism.convert.vision.quantize import INPUT
from edgeprism.convert.vision.resampler import Resampler, ResamplerConfig

_MOST_PATCHES = 4096  # along an edge of a tile
_BLOCK = 8  # float32 numbers of AVX2's registers
_CUBIC = -0.5  # the coefficient of torch's antialiased bicubic filter, which is PIL's


def free_inputs(patch: int) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
    """Return GraphModule's inputs for pixels of any number of tiles of one shape."""
    # three lengths that differ, because torch would take equal ones for the same
    pixels = torch.zeros((2, 3 * patch, 5 * patch, 3), dtype=torch.uint8)
    down, across = (torch.export.Dim(name, min=1, max=_MOST_PATCHES) for name in ("down", "across"))
    lengths = {0: torch.export.Dim("n", min=1, max=1024), 1: patch * down, 2: patch * across}
    return {INPUT: (pixels, lengths)}


class FreeGraph(GraphModule):
    """uint8 pixels [n, height, width, 3] → visual tokens [n, n_queries, n_embd], float32.

    Height and width are multiples of the tower's patch. The tower has a table of positions of
    `tower.grid` × `tower.grid` places; with `in_a_row` only its first row is used.
    """

    # torch calls the product of two lengths that differ from tile to tile e.g. s15*s53
    lengths: ClassVar[Mapping[str, str]] = {
        r"\d+\*down": "height", r"\d+\*across": "width", r"s\d+\*s\d+": "patches",
    }  # fmt: skip

    def __init__(
        self, tower: TowerConfig, resampler: ResamplerConfig, in_a_row: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.config, self.dtype = tower, dtype
        e = tower.n_embd
        self.patch = Affine(dtype, 3 * tower.patch_size**2, e, tower.patch_bias)
        places = RowOfPlaces if in_a_row else SquareOfPlaces
        self.places = places(dtype, tower.grid, e)
        self.layers = nn.ModuleList(EncoderLayer(tower, dtype) for _ in range(tower.n_layers))
        self.norm_last = Norm(dtype, e, tower.eps)
        self.resampler = Resampler(resampler, dtype)

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Pixels of any number of tiles of one shape."""
        return free_inputs(self.config.patch_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [n, height, width, 3] → visual tokens [n, n_queries, n_embd]."""
        c = self.config
        p = c.patch_size
        n, down, across = pixels.shape[0], pixels.shape[1] // p, pixels.shape[2] // p
        x = (pixels.float() * c.rescale - torch.tensor(c.mean)) / torch.tensor(c.std)
        x = x.to(self.dtype).reshape(n, down, p, across, p, 3).permute(0, 1, 3, 2, 4, 5)
        rows, columns = torch.arange(down), torch.arange(across)
        x = self.patch(x.reshape(n, down * across, p * p * 3)) + self.places(rows, columns)
        for layer in self.layers:
            x = layer(x)
        tokens: torch.Tensor = self.resampler(self.norm_last(x), rows, columns)
        return tokens.float()


class SquareOfPlaces(nn.Module):
    """A table of positions that is resized to each tile's patches: bicubic, antialiased.

    The table lies [n_embd, side, side], so that one product with it resizes a direction.
    """

    def __init__(self, dtype: torch.dtype, side: int, n_embd: int) -> None:
        super().__init__()
        self.side = side
        self.table = placeholder(dtype, n_embd, side, side)

    def forward(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Numbers of the rows [down] and columns [across] → positions [down · across, n_embd]."""
        dtype = self.table.dtype
        across, down = (resizing(n, self.side).to(dtype) for n in (columns, rows))
        x = down @ (self.table @ across.t())  # [n_embd, down, across]
        return x.flatten(1).t()


class RowOfPlaces(nn.Module):
    """A row of positions for tiles that the published code lays out as a single row of patches.

    Each patch gets the position at the same share of the row.
    """

    def __init__(self, dtype: torch.dtype, side: int, n_embd: int) -> None:
        super().__init__()
        self.side = side
        self.table = placeholder(dtype, side, n_embd)

    def forward(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Numbers of the rows [down] and columns [across] → positions [down · across, n_embd]."""
        numbers = torch.arange(rows.shape[0] * columns.shape[0])
        return self.table.index_select(0, row_places(numbers, self.side))


def row_places(numbers: torch.Tensor, side: int) -> torch.Tensor:
    """Return the place in a row of `side` of each of the patches 0, 1, … [n].

    A patch between two places belongs to the second; but the published code compares what
    `torch.arange(0, 1 - 1e-6, 1 / n)` gives, and a float32 number may be a little too small. So
    this computes that function's very numbers, as it does on x86: blocks of eight count from their
    first number, which was rounded already; what does not fill two blocks is computed one by one.
    """
    places = numbers.double()
    count = places[-1:] + 1
    step = (1.0 / count.float()).double()
    first = (places / _BLOCK).floor() * _BLOCK
    alone = (places * step).float()
    begun = (first * step).float()
    in_block = (begun.double() + (places - first) * step).float()
    in_blocks = (count / (2 * _BLOCK)).floor() * (2 * _BLOCK)
    share = torch.where(places < in_blocks, in_block, alone)
    bounds = torch.arange(1 / side, 1.0, 1 / side)
    passed = ~(share[:, None] < bounds)
    return passed.to(torch.int64).sum(dim=1)


def resizing(numbers: torch.Tensor, side: int) -> torch.Tensor:
    """Return the matrix [n, side] that resizes `side` places to the n that `numbers` counts.

    A row holds the weights of torch's antialiased bicubic interpolation without aligned corners.
    """
    places = numbers.float()
    scale = side / (places[-1:] + 1)
    centres = (places + 0.5) * scale
    width = torch.clamp(scale, min=1.0)  # wider than a place only where the table shrinks
    d = ((torch.arange(side) + 0.5 - centres[:, None]) / width).abs()
    near = ((_CUBIC + 2) * d - (_CUBIC + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * _CUBIC - 4 * _CUBIC
    zero = torch.zeros_like(d)
    weights = torch.where(d < 1, near, torch.where(d < 2, far, zero))
    return weights / weights.sum(dim=1, keepdim=True)
