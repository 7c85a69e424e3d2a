"""A vision half without layers: each patch of a picture of any shape goes through one matrix.

Each line of patches ends with a row that is the same for all pictures. Source: transformers'
`modeling_fuyu.py` and `image_processing_fuyu.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from edgeprism.convert.vision.free_graph import FreeGraph, free_inputs
from edgeprism.convert.vision.graph import Affine, GraphModule, placeholder
from edgeprism.convert.vision.quantize import NEWLINE, OUTPUT


@dataclass(frozen=True)
class PatchConfig:
    """The width of a patch in pixels, of a row, and how pixels are normalised."""

    patch_size: int
    n_embd: int
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class PatchGraph(GraphModule):
    """uint8 pixels [n, height, width, 3] → visual tokens [n, patches, n_embd], and the newline."""

    lengths = FreeGraph.lengths
    outputs = (OUTPUT, NEWLINE)

    def __init__(self, config: PatchConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.patch = Affine(dtype, 3 * config.patch_size**2, config.n_embd)
        self.newline_row = placeholder(dtype, 1, config.n_embd)

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Pixels of any number of tiles of one shape."""
        return free_inputs(self.config.patch_size)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pixels [n, height, width, 3] → visual tokens [n, patches, n_embd], newlines [n, n_embd].

        A patch is flattened row by row, a pixel's channels together.
        """
        c = self.config
        p = c.patch_size
        n, down, across = pixels.shape[0], pixels.shape[1] // p, pixels.shape[2] // p
        x = (pixels.float() * c.rescale - torch.tensor(c.mean)) / torch.tensor(c.std)
        x = x.to(self.dtype).reshape(n, down, p, across, p, 3).permute(0, 1, 3, 2, 4, 5)
        x = self.patch(x.reshape(n, down * across, p * p * 3))
        return x.float(), self.newline_row.expand(n, -1).float()
