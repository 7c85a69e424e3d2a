"""A stand-in for the assets of nano's renderer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeprism.models.nano.recipe.world.draw import Assets


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the icons: two styles of five flat discs; Pillow's own font."""
    place = tmp_path_factory.mktemp("assets")
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    sprites = np.zeros((2, 5, 96, 96, 4), np.uint8)
    sprites[..., 3] = 255 * (x * x + y * y < 1)
    sprites[..., :3] = np.random.default_rng(0).integers(0, 255, (2, 5, 1, 1, 3))
    np.save(place / "sprites.npy", sprites)
    return place


@pytest.fixture(scope="session")
def drawn(folder: Path) -> Assets:
    return Assets(folder)
