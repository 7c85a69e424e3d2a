"""Choose a picture's grid and cut its tiles in one step."""

from __future__ import annotations

import numpy as np

from edgeprism.bundle.manifest import ImagePolicy
from edgeprism.picture import tile
from edgeprism.picture.layout import choose_grid
from edgeprism.picture.read import Picture


def picture_to_tiles(picture: Picture, policy: ImagePolicy) -> np.ndarray:
    """Return a picture's tiles uint8 [n_tiles, size, size, 3], as a captioner cuts it."""
    return tile.picture_to_tiles(picture, policy, choose_grid(picture.size, policy))
