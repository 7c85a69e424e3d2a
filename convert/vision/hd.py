"""The vision half of InternLM-XComposer2-4KHD: CLIP-L on tiles, 2 × 2 patches → MLP, learned rows.

A tile's patches become visual tokens four at a time. Two learned rows of the width of four patches
go through the MLP, too: one ends each row of visual tokens, the other stands between the overview
and the tiles. The overview's pixels have fractions.

Sources: `build_mlp.py` and `ixc_utils.py` of the published folder, in copies of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

from edgeprism.bundle.manifest import ImagePolicy, Tiling
from edgeprism.convert.gate import towers as reference
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.clip_l import UNUSED, InnerClip
from edgeprism.convert.vision.config import ProjectorConfig, TowerConfig
from edgeprism.convert.vision.graph import VisionGraph, placeholder, tile_inputs
from edgeprism.convert.vision.quantize import NEWLINE, OUTPUT, SEPARATOR
from edgeprism.convert.vision.side import VisionSide
from edgeprism.convert.vision.weights import VisionWeights, Weight, projector_weights
from edgeprism.errors import CheckpointError

LINE_END, BETWEEN = "plora_sub_GN", "plora_glb_GN"  # learned rows
_CELL = 2  # patches along an edge of what becomes one visual token


class HdGraph(VisionGraph):
    """uint8 pixels [n, size, size, 6] → visual tokens, and the two learned rows for each tile."""

    def __init__(self, tower: TowerConfig, projector: ProjectorConfig, dtype: torch.dtype) -> None:
        super().__init__([tower], projector, drop_first_patch=False, dtype=dtype, newline=True)
        self.separator_row = placeholder(dtype, 1, projector.widths[-1])
        self.outputs = (OUTPUT, SEPARATOR, NEWLINE)

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, torch.export.Dim]]]:
        """Pixels of any number of tiles, two bytes for each colour."""
        return tile_inputs(self.image_size, 2)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pixels [n, size, size, 6] → what `outputs` names."""
        coarse, fine = pixels.float().split(3, dim=-1)
        tokens, newline = super().forward((256 * coarse + fine) / 128 - 128)
        separator = self.separator_row.expand(pixels.shape[0], -1)
        return tokens, separator.float(), newline


def hd_policy(size: int, most_tiles: int) -> ImagePolicy:
    """Return how a picture becomes up to `most_tiles` tiles of `size` pixels, and an overview."""
    grids = [
        [down, across]
        for down in range(1, most_tiles + 1)
        for across in range(1, most_tiles // down + 1)
    ]
    return ImagePolicy(
        mode="stretch",
        size=size,
        fill=[255, 255, 255],
        resample="bilinear",
        max_tiles=1 + most_tiles,
        tiling=Tiling(
            "most-across", grids, 0, "first", "rows", overview_filter="bicubic",
            overview_lines=True,
        ),
    )  # fmt: skip


def hd_side(tower: InnerClip, linears: Sequence[str], n_out: int) -> VisionSide:
    """Return 4KHD's vision half; `linears` are the names of the MLP's two layers."""
    checkpoint, config = tower.checkpoint, tower.config
    if config.grid % _CELL:
        raise CheckpointError(
            f"{checkpoint.folder}: its CLIP has {config.grid} patches along an edge, which cannot "
            "be joined in twos.",
            "Use the files as they were published.",
        )
    n_in = config.n_embd * _CELL**2
    projector = ProjectorConfig((n_in, n_out, n_out), downsample=_CELL, normed=False)
    weights = VisionWeights(
        {
            "towers.0": tower.weights(),
            "projector": projector_weights(projector, checkpoint, list(linears)),
            "": {
                "newline_row": _through_mlp(checkpoint, LINE_END, (1, 1, 1, n_in), linears, n_out),
                "separator_row": _through_mlp(checkpoint, BETWEEN, (1, 1, n_in), linears, n_out),
            },
        }
    )
    features = tower.reference()
    connector = reference.mlp(checkpoint.files, linears, cell=_CELL)

    def expected(pixels: np.ndarray, tick: reference.Tick) -> np.ndarray:
        colours = pixels[..., :3] * np.float32(2) + pixels[..., 3:] / np.float32(128) - 128
        return reference.visual_tokens([features], connector, colours, tick)

    side = config.grid // _CELL
    return VisionSide(
        lambda dtype: HdGraph(config, projector, dtype),
        (side, side),
        weights,
        expected,
        config.n_layers,
        [(checkpoint, UNUSED)],
        newline=True,
        separator=True,
    )


def _through_mlp(
    checkpoint: Checkpoint,
    name: str,
    shape: tuple[int, ...],
    linears: Sequence[str],
    n_out: int,
) -> Weight:
    """Return a learned row of the MLP's input, as it leaves the MLP [1, n_out]."""
    first, second = linears
    shapes = {
        name: shape,
        f"{first}.weight": (n_out, shape[-1]), f"{first}.bias": (n_out,),
        f"{second}.weight": (n_out, n_out), f"{second}.bias": (n_out,),
    }  # fmt: skip

    def made(row: torch.Tensor, w: torch.Tensor, b: torch.Tensor, w2: torch.Tensor,
             b2: torch.Tensor) -> torch.Tensor:  # fmt: skip
        inner = functional.gelu(functional.linear(row.reshape(1, -1), w, b))
        return functional.linear(inner, w2, b2)

    return Weight(checkpoint, shapes, made)
