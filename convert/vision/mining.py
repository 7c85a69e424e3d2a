"""Patch-info mining: each patch of one tower asks the cells of a finer map that lie under it.

The finer map is that of a ConvNeXt: its stages, all brought to the size of the first one and laid
behind each other, 36864 cells of 2880 channels for a picture of 768 pixels. What is exported is the
published computation in another order, with the same result:

- A patch's scores are q · (W·z) for each cell z below it. The graph multiplies q by W once for
  each patch, not z by W for each cell; and W is applied to values after their weighted mean.
- The bias of the keys adds the same number to all scores of a patch, so softmax ignores it.
- Both norms of a cell divide by the same deviation. Their weights are in the matrices.
- Enlarging by straight lines between neighbours is a product with a constant matrix, for rows and
  for columns. It is done for some rows of patches at a time, so the whole map never exists.

Source: `mgm_arch.py` and `openclip_encoder.py` in the public repository of Mini-Gemini.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.config import ProjectorConfig, TowerConfig
from edgeprism.convert.vision.convnext import ConvNeXt, ConvNeXtConfig
from edgeprism.convert.vision.graph import Affine, GraphModule, Norm, Projector, Tower
from edgeprism.convert.vision.quantize import INPUT
from edgeprism.convert.vision.weights import Weight, Weights, linear_weights, norm_weights

_EPS = 1e-5  # of the norms before queries, keys and values
# Numbers of the map that exist at a time for one picture: 64 MB in float32
_MAP = 1 << 24


@dataclass(frozen=True)
class MiningConfig:
    """A tower that asks, a ConvNeXt that answers, and how the picture is shown to both.

    Args:
        tower: The tower of the patches.
        detail: The ConvNeXt.
        projector: What follows the mining.
        image_size: Pixels along an edge of the picture that the ConvNeXt sees. The tower sees it
            made smaller by straight lines between pixels.
        cut: The tower sees `cut` × `cut` parts of it, each at the tower's own size.
        overview: It sees the whole picture as well, as a first part.
    """

    tower: TowerConfig
    detail: ConvNeXtConfig
    projector: ProjectorConfig
    image_size: int
    cut: int = 1
    overview: bool = False

    @property
    def n_tokens(self) -> int:
        """Visual tokens of a picture."""
        return (self.cut**2 + int(self.overview)) * self.tower.grid**2

    def faults(self) -> list[str]:
        """Return what does not fit together, in words."""
        sides = self.detail.sides(self.image_size)
        step = self.detail.patch_size * self.detail.factor ** (len(sides) - 1)
        faults = []
        if self.image_size % step:
            faults.append(f"pictures of {self.image_size} pixels are no multiple of {step}")
        elif sides[0] % (self.cut * self.tower.grid):
            faults.append(
                f"{sides[0]} cells along an edge cannot be shared among {self.cut} × "
                f"{self.tower.grid} patches"
            )
        if self.cut == 1 and self.overview:
            faults.append("an overview of a picture that is not cut")
        return faults


class _Resize(nn.Module):
    """[n, h, w, e] → [n, rows, columns, e], by a constant matrix [new, old] for each axis.

    A matrix that takes neighbours as they are is applied as a slice.
    """

    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self, rows: torch.Tensor, columns: torch.Tensor) -> None:
        super().__init__()
        self.n_rows = len(rows)
        self.selected = (_selection(rows), _selection(columns))
        for name, matrix in (("rows", rows), ("columns", columns)):
            self.register_buffer(name, matrix, persistent=False)

    def forward(self, x: torch.Tensor, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Return rows `first` to `last` of the result alone."""
        n, h, w, e = x.shape
        last = self.n_rows if last is None else last
        rows, columns = self.selected
        if rows is None:
            x = (self.rows[first:last] @ x.reshape(n, h, w * e)).reshape(n, last - first, w, e)
        else:
            x = x[:, rows + first : rows + last]
        if columns is None:
            return self.columns @ x
        return x[:, :, columns : columns + len(self.columns)]


def _selection(matrix: torch.Tensor) -> int | None:
    """Return the first of the neighbours that `matrix` takes as they are; None if it mixes some."""
    first = int(matrix[0].argmax())
    selected = torch.eye(matrix.shape[1])[first : first + len(matrix)]
    return first if torch.equal(selected, matrix) else None


class _Part(nn.Module):
    """One part of the picture, as it is cut out of the pixels and of each stage's map."""

    maps: nn.ModuleList

    def __init__(
        self,
        pixels: tuple[torch.Tensor, torch.Tensor],
        maps: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        super().__init__()
        self.side = len(maps[0][0])  # cells along an edge
        self.pixels = _Resize(*pixels)
        self.maps = nn.ModuleList(_Resize(*each) for each in maps)


class Mining(nn.Module):
    """Queries [n, patches, width] and the cells below them → what they find, [n, patches, width].

    `n_cells` is the width of a cell.
    """

    def __init__(self, width: int, n_cells: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = Norm(dtype, width, _EPS)
        self.query = Affine(dtype, width, width)
        self.key = Affine(dtype, width, n_cells, bias=False)
        self.value = Affine(dtype, n_cells, width)

    def asked(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches [n, patches, width] → what each looks for in a cell, [n, patches, n_cells]."""
        result: torch.Tensor = self.key(self.query(self.norm(patches)))
        return result

    def found(self, asked: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Return each patch's mean cell, [n, patches, n_cells].

        `asked` is [n, patches, n_cells], `cells` [n, patches, cells of a patch, n_cells].
        """
        cells = functional.layer_norm(cells, cells.shape[-1:], eps=_EPS)
        shares = torch.softmax((cells @ asked.unsqueeze(-1)).squeeze(-1), dim=-1)
        return (shares.unsqueeze(-2) @ cells).squeeze(-2)


class MiningGraph(GraphModule):
    """uint8 pixels [n, size, size, 3] → visual tokens [n, n_tokens, n_embd of the LM], float32.

    With an overview, its tokens come first; those of the parts follow row by row.
    """

    def __init__(self, config: MiningConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.tower = Tower(config.tower, dtype)
        self.detail = ConvNeXt(config.detail, dtype)
        self.mining = Mining(config.tower.n_embd, sum(config.detail.widths), dtype)
        self.projector = Projector(config.projector, dtype)
        self.parts = nn.ModuleList(_parts(config))

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Pixels of any number of pictures."""
        size = self.config.image_size
        pixels = torch.zeros((2, size, size, 3), dtype=torch.uint8)
        return {INPUT: (pixels, {0: torch.export.Dim("n", min=1, max=1024)})}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [n, size, size, 3] → visual tokens [n, n_tokens, n_embd]."""
        tower = self.config.tower
        levels = pixels.float()
        x = (levels * tower.rescale - torch.tensor(tower.mean)) / torch.tensor(tower.std)
        maps = [each.float() for each in self.detail(x.to(self.dtype))]
        # normalising and resizing commute
        parts = cast(Iterable[_Part], self.parts)
        seen = torch.stack([part.pixels(levels) for part in parts], dim=1)
        patches = self.tower(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
        asked = self.mining.asked(patches)  # [n, parts, patches, n_cells]
        found = [self._found(asked[:, i], maps, part) for i, part in enumerate(parts)]
        patches = patches + self.mining.value(torch.stack(found, dim=1))
        tokens: torch.Tensor = self.projector(patches.flatten(1, 2))
        return tokens.float()

    def _found(
        self, asked: torch.Tensor, maps: Sequence[torch.Tensor], part: _Part
    ) -> torch.Tensor:
        """Return the mean cells [n, patches, n_cells], some rows of patches after others."""
        n, grid, width = asked.shape[0], self.config.tower.grid, asked.shape[-1]
        p = part.side // grid  # cells of a patch along an edge
        step = -(-grid // min(grid, -(-(part.side**2) * width // _MAP)))
        strips = []
        for first in range(0, grid, step):
            last = min(first + step, grid)
            resized = [
                resize(each, first * p, last * p)
                for resize, each in zip(part.maps, maps, strict=True)
            ]
            cells = torch.cat(resized, dim=-1).to(self.dtype)
            cells = cells.reshape(n, last - first, p, grid, p, width).permute(0, 1, 3, 2, 4, 5)
            cells = cells.reshape(n, (last - first) * grid, p * p, width)
            strips.append(self.mining.found(asked[:, first * grid : last * grid], cells))
        return torch.cat(strips, dim=1) if len(strips) > 1 else strips[0]


def _parts(config: MiningConfig) -> list[_Part]:
    """Return the parts of the picture in the order of their visual tokens."""
    own, cut = config.tower.image_size, config.cut
    sides = config.detail.sides(config.image_size)
    pixels = bilinear(config.image_size, own * cut)
    maps = [bilinear(side, sides[0]) for side in sides]
    parts = []
    if config.overview:
        smaller, coarser = bilinear(own * cut, own), bilinear(sides[0], sides[0] // cut)
        whole, reduced = smaller @ pixels, [coarser @ each for each in maps]
        parts.append(_Part((whole, whole), [(each, each) for each in reduced]))
    by_pixels = pixels.split(own)
    by_cells = [each.split(sides[0] // cut) for each in maps]
    for i in range(cut):
        for j in range(cut):
            cells = [(each[i], each[j]) for each in by_cells]
            parts.append(_Part((by_pixels[i], by_pixels[j]), cells))
    return parts


def bilinear(n_in: int, n_out: int) -> torch.Tensor:
    """Return the matrix [n_out, n_in] that resizes by straight lines between neighbours.

    It is torch's `interpolate` with align_corners=False and antialias=False, rounding and all.
    """
    scale = torch.tensor(n_in / n_out, dtype=torch.float32)
    places = (scale * (torch.arange(n_out, dtype=torch.float32) + 0.5) - 0.5).clamp(min=0)
    lower = places.long().clamp(max=n_in - 1)
    upper = (lower + 1).clamp(max=n_in - 1)
    share = (places - lower)[:, None]
    one = torch.eye(n_in)
    matrix: torch.Tensor = (1 - share) * one[lower] + share * one[upper]
    return matrix


# ---- weights


def mining_weights(checkpoint: Checkpoint, lead: str, width: int, n_cells: int) -> Weights:
    """Return the parameters of `Mining`; `lead` stands before "query_projector.0.weight"."""
    query, key, value = (f"{lead}{part}_projector." for part in ("query", "aux", "val"))
    matrix, scale = (width, n_cells), (n_cells,)
    keys = {f"{key}1.weight": matrix, f"{key}0.weight": scale}
    values = {f"{value}1.weight": matrix, f"{value}0.weight": scale}
    offset = {f"{value}1.weight": matrix, f"{value}1.bias": (width,), f"{value}0.bias": scale}

    def key_matrix(weight: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        # scores are divided by the root of the width
        return (weight.float() * gamma.float() / math.sqrt(width)).to(weight.dtype)

    def value_matrix(weight: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return (weight.float() * gamma.float()).t().to(weight.dtype)

    def value_bias(weight: torch.Tensor, bias: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        return (weight.float() @ beta.float() + bias.float()).to(weight.dtype)

    return {
        **norm_weights("norm", checkpoint, f"{query}0", width),
        **linear_weights("query", checkpoint, f"{query}1", width, width),
        "key.weight": Weight(checkpoint, keys, key_matrix),
        "value.weight": Weight(checkpoint, values, value_matrix),
        "value.bias": Weight(checkpoint, offset, value_bias),
    }


def unused_mining(lead: str) -> tuple[str, ...]:
    """Return patterns of the tensors on which no result depends."""
    return (rf"^{lead}aux_projector\.[01]\.bias$",)
