"""Visual tokens of a video's frames: fewer than a picture's, from the same tower and projector."""

from __future__ import annotations

from dataclasses import dataclass

import torch

FRAMES = "frame_tokens"  # the graph's further output [n, n_tokens, n_embd]


@dataclass(frozen=True)
class FramePooling:
    """A frame has the mean of each `stride` × `stride` cell of patches, cells beyond them dropped.

    `after_projector`: the means are taken of the projector's results instead of its inputs, which
    the activation between its layers makes another thing.
    """

    stride: int
    after_projector: bool = False

    def side(self, grid: int) -> int:
        """Visual tokens along one edge of a frame, of `grid` along one edge of a picture."""
        return grid // self.stride


def pool_cells(x: torch.Tensor, stride: int) -> torch.Tensor:
    """[n, g · g, e] → [n, ⌊g/s⌋², e]: the mean of each s × s cell, row by row."""
    n, t, e = x.shape
    g = int(t**0.5)
    side = g // stride
    x = x.reshape(n, g, g, e)[:, : side * stride, : side * stride]
    return x.reshape(n, side, stride, side, stride, e).mean(dim=(2, 4)).reshape(n, side * side, e)
