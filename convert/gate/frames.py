"""The gate's reference of a captioner that takes a video's frames, too."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from edgeprism.convert.gate.towers import Connector, Features, Tick


@torch.inference_mode()
def visual_tokens_and_frames(
    features: Features,
    connector: Connector,
    stride: int,
    after_projector: bool,
    pixels: np.ndarray,
    tick: Tick,
) -> np.ndarray:
    """pixels uint8 [n, size, size, 3] → a picture's visual tokens, then those of a frame.

    Both stand in one array [n, n_tokens + n_frame_tokens, n_embd] float32.
    """
    patches = features(pixels, tick)
    tokens = connector(patches)
    pooled = _pooled(tokens if after_projector else patches, stride)
    frames = pooled if after_projector else connector(pooled)
    result: np.ndarray = torch.cat([tokens, frames], dim=1).float().numpy()
    return result


def _pooled(rows: torch.Tensor, stride: int) -> torch.Tensor:
    side = round(rows.shape[1] ** 0.5)
    square = rows.transpose(1, 2).unflatten(2, (side, side))  # [n, e, side, side]
    return F.avg_pool2d(square, stride).flatten(2).transpose(1, 2)
