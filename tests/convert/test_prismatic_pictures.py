"""Prismatic's pictures: letterboxed, cropped or stretched as upstream, in each model's colour.

Published models use every pair of LAYOUTS except two models with "resize-crop".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprism.bundle.manifest import ImagePolicy
from edgeprism.convert.parts import FamilyParts
from edgeprism.picture.read import read_picture
from tests.helpers.converting import parts_of, tokens_by_torch
from tests.helpers.tiles import picture_to_tiles
from tests.helpers.tiny_captioners import Case, pictures
from tests.helpers.tiny_prismatic import NORMS, kinds_of, upstreams_picture, write_prismatic

LAYOUTS = [
    ("clip-vit-l", "letterbox"),
    ("clip-vit-l-336px", "letterbox"),
    ("clip-vit-l-336px", "resize-crop"),
    ("clip-vit-l-336px", "resize-naive"),
    ("siglip-vit-so400m", "letterbox"),
    ("siglip-vit-so400m-384px", "letterbox"),
    ("siglip-vit-so400m-384px", "resize-crop"),
    ("dinov2-vit-l", "letterbox"),
    ("dinoclip-vit-l-336px", "letterbox"),
    ("dinosiglip-vit-so-384px", "letterbox"),
    ("dinosiglip-vit-so-384px", "resize-crop"),
    ("dinosiglip-vit-so-384px", "resize-naive"),
]
# (width, height): odd and even differences of the edges, larger and smaller than the tile
SIZES = [(1, 1), (1, 2), (2, 1), (3, 2), (1, 8), (5, 900), (900, 4), (224, 223), (225, 224),
         (336, 337), (335, 336), (385, 384), (500, 333), (334, 501), (640, 427), (80, 60), (61, 96),
         (1200, 7)]  # fmt: skip


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Case]:
    cached: dict[tuple[str, str], Case] = {}

    def get(backbone: str, strategy: str) -> Case:
        if (backbone, strategy) not in cached:
            folder: Path = tmp_path_factory.mktemp("captioner") / "c"
            cached[backbone, strategy] = write_prismatic(
                folder, backbone=backbone, arch="gelu-mlp", lm="vicuna-v15-7b", strategy=strategy
            )
        return cached[backbone, strategy]

    return get


def noise(size: tuple[int, int]) -> Image.Image:
    """Return noise, in which a shift by part of a pixel is visible."""
    rng = np.random.default_rng(size)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize(("backbone", "strategy"), LAYOUTS)
def test_every_view_is_upstreams_to_one_grey_level(
    backbone: str,
    strategy: str,
    case_of: Callable[[str, str], Case],
) -> None:
    policy = parts_of(case_of(backbone, strategy)).manifest.image
    kinds = kinds_of(backbone)
    n_views = len(kinds) if strategy == "letterbox" else 1
    for size in SIZES:
        picture = noise(size)
        (tile,) = picture_to_tiles(read_picture(picture), policy)
        assert tile.shape == (policy.size, policy.size, 3 * n_views)
        for i, kind in enumerate(kinds):
            own = i % n_views
            view = tile[..., 3 * own : 3 * own + 3].astype(int)
            expected = upstreams_picture(picture, strategy, policy.size, NORMS[kind][0])
            assert np.abs(view - np.asarray(expected)).max() <= 1, size


# ---- planted mistakes, which the visual tokens reveal


def _padded_to_a_square(policy: ImagePolicy) -> ImagePolicy:
    return dataclasses.replace(policy, mode="pad")


def _on_the_other_models_colour(policy: ImagePolicy) -> ImagePolicy:
    return dataclasses.replace(policy, second_fill=policy.fill)


def _colours_swapped(policy: ImagePolicy) -> ImagePolicy:
    return dataclasses.replace(policy, fill=policy.second_fill, second_fill=policy.fill)


def _on_black(policy: ImagePolicy) -> ImagePolicy:
    return dataclasses.replace(policy, fill=[0, 0, 0], second_fill=[0, 0, 0])


def _not_letterboxed(policy: ImagePolicy) -> ImagePolicy:
    return dataclasses.replace(policy, mode="center-crop")


def _as_published(policy: ImagePolicy) -> ImagePolicy:
    return policy


def error_of(parts: FamilyParts, case: Case, plant: Callable[[ImagePolicy], ImagePolicy]) -> float:
    """Return the largest relative error over pictures of six shapes; the graph runs in torch."""
    policy = plant(parts.manifest.image)
    errors = []
    for picture in pictures():
        actual = tokens_by_torch(parts, picture, policy)
        expected = case.reference.visual_tokens(picture).numpy()
        errors.append(float(np.linalg.norm(actual - expected) / np.linalg.norm(expected)))
    return max(errors)


@pytest.mark.parametrize("plant", [_padded_to_a_square, _on_the_other_models_colour,
                                   _colours_swapped, _on_black, _not_letterboxed])  # fmt: skip
def test_planted_mistakes_are_seen(
    plant: Callable[[ImagePolicy], ImagePolicy],
    case_of: Callable[[str, str], Case],
) -> None:
    case = case_of("dinoclip-vit-l-336px", "letterbox")
    parts = parts_of(case)
    assert error_of(parts, case, _as_published) < 1e-5
    assert error_of(parts, case, plant) > 1e-4
