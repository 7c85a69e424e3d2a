"""A picture's tiles in one step: its grid is chosen and it is cut."""

from __future__ import annotations

import numpy as np

from edgeprism.bundle.manifest import ImagePolicy
from edgeprism.picture import tile
from edgeprism.picture.layout import choose_grid
from edgeprism.picture.read import Picture


def picture_to_tiles(picture: Picture, policy: ImagePolicy) -> np.ndarray:
    """uint8 [n_tiles, size, size, 3] of a picture, as a captioner cuts it."""
    return tile.picture_to_tiles(picture, policy, choose_grid(picture.size, policy))
