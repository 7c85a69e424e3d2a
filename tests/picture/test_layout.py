"""Cutting pictures: grids, pixels and the order of rows, against the models' own preprocessing.

The reference is upstream's image processors and row packing (transformers).
"""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    LlavaNextImageProcessor,
)
from transformers.models.idefics3.processing_idefics3 import get_image_prompt_string
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from edgeprism.bundle import manifest as m
from edgeprism.bundle.read_manifest import manifest_from_json
from edgeprism.picture.layout import choose_grid, most_visual_tokens, picture_to_layout
from edgeprism.picture.read import enough_for, read_picture
from edgeprism.segments import ImageRows, Text, Tokens
from tests.helpers import bundles
from tests.helpers.tiles import picture_to_tiles

TILE = bundles.SIZE
# (width, height); the last row has extreme shapes, which cameras never produce but people do
SIZES = [(56, 56), (100, 75), (75, 100), (300, 211), (97, 301), (640, 120), (41, 500), (29, 28),
         (1, 1), (2, 900), (900, 3), (333, 334)]  # fmt: skip
PINPOINTS = [[56, 28], [28, 56], [56, 56], [84, 28], [28, 84]]  # (down, across) in pixels
RAW = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_last"}

BEST_FIT = m.Tiling(
    "best-fit", [[d // TILE, a // TILE] for d, a in PINPOINTS], 0, "first", "rows-unpadded"
)
RATIO_GRIDS = sorted(
    ([d, a] for a in range(1, 13) for d in range(1, 13) if a * d <= 12),
    key=lambda grid: grid[0] * grid[1],
)
CLOSEST = m.Tiling("closest-ratio", RATIO_GRIDS, 0, "last", "tiles")
LONGEST = m.Tiling("longest-edge", [], 4 * TILE, "last", "tiles")
MARKERS = m.Markers(
    begin="",
    before_overview="<fake><global-img>",
    before_tile="<fake><row_{row}_col_{column}>",
    after_row="\n",
    between="\n",
    end="<fake>",
)


def policy(tiling: m.Tiling | None, max_tiles: int = 1, **changes: Any) -> m.ImagePolicy:
    base = m.ImagePolicy("stretch", TILE, [0, 0, 0], "bicubic", max_tiles, tiling)
    return dataclasses.replace(base, **changes)


BEST_FIT_POLICY = policy(BEST_FIT, 5)
CLOSEST_POLICY = policy(CLOSEST, 13)
LONGEST_POLICY = policy(LONGEST, 17, resample="lanczos")


def manifest(image: m.ImagePolicy, *, newline: str = "", markers: m.Markers | None = None) -> Any:
    files = {name: m.FileEntry("0" * 64, 1) for name in ("lm.gguf", "vision.fp32.onnx")}
    base = bundles.make_manifest(files, image=image)
    base = dataclasses.replace(
        base,
        vision=dataclasses.replace(base.vision, newline=newline),
        prompts=dataclasses.replace(base.prompts, markers=markers),
    )
    return manifest_from_json(base.to_json(), "m")  # raises an error if it is not valid


def picture(size: tuple[int, int]) -> np.ndarray:
    """Return a colour gradient with edges and noise, uint8 [height, width, 3]."""
    width, height = size
    rng = np.random.default_rng(width * 1000 + height)
    y, x = np.mgrid[0:height, 0:width]
    ground = np.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1),
                       (x // 7 + y // 5) % 2 * 255], axis=-1)  # fmt: skip
    return np.clip(ground + rng.normal(0, 20, ground.shape), 0, 255).astype(np.uint8)


def assert_one_grey_level(tiles: np.ndarray, expected: np.ndarray) -> None:
    assert tiles.shape == expected.shape
    assert np.abs(tiles.astype(int) - expected.astype(int)).max() <= 1


def tiles_of(pixels: np.ndarray, image: m.ImagePolicy) -> np.ndarray:
    return picture_to_tiles(read_picture(pixels), image)


def upstream(processor: Any, pixels: np.ndarray, **settings: Any) -> np.ndarray:
    """Return the tiles [n, S, S, 3] that an upstream processor makes from one picture."""
    values = np.asarray(processor(pixels, **RAW, **settings, return_tensors="np")["pixel_values"])
    tiles = values.reshape(-1, *values.shape[-3:])  # [n, 3, S, S]
    return tiles.transpose(0, 2, 3, 1).astype(np.uint8)


# ---- pixels


@pytest.mark.parametrize("size", SIZES)
def test_best_fit_equals_llava_next(size: tuple[int, int]) -> None:
    if min(size) < 4:
        pytest.skip("upstream finds no resolution for such a line, or makes empty features")
    processor = LlavaNextImageProcessor(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
    )
    pixels = picture(size)
    assert_one_grey_level(tiles_of(pixels, BEST_FIT_POLICY), upstream(processor, pixels))


@pytest.mark.parametrize("size", SIZES)
def test_closest_ratio_equals_internvl(size: tuple[int, int]) -> None:
    processor = GotOcr2ImageProcessor(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, min_patches=1, max_patches=12
    )
    pixels = picture(size)
    assert_one_grey_level(tiles_of(pixels, CLOSEST_POLICY), upstream(processor, pixels))


@pytest.mark.parametrize("size", SIZES)
def test_longest_edge_equals_idefics3(size: tuple[int, int]) -> None:
    processor = Idefics3ImageProcessor(
        size={"longest_edge": 4 * TILE}, max_image_size={"longest_edge": TILE}
    )
    pixels = picture(size)
    assert_one_grey_level(tiles_of(pixels, LONGEST_POLICY), upstream(processor, pixels))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos"])
def test_crop_equals_clip(size: tuple[int, int], resample: str) -> None:
    processor = CLIPImageProcessor(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        resample=Image.Resampling[resample.upper()],
    )
    pixels = picture(size)
    cropped = policy(None, mode="crop", resample=resample)
    assert_one_grey_level(tiles_of(pixels, cropped), upstream(processor, pixels))


@pytest.mark.parametrize("size", SIZES)
def test_a_cropped_line_is_that_of_the_whole(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The middle is the same whether it is resampled alone or with the rest of the picture.

    The filter is bilinear, which never overshoots: so the order of Pillow's two passes, which
    depends on the shape, does not matter.
    """
    cropped, pixels = policy(None, mode="crop", resample="bilinear"), picture(size)
    whole = tiles_of(pixels, cropped)
    monkeypatch.setattr("edgeprism.picture.tile.STRIP_PIXELS", 1)
    assert_one_grey_level(tiles_of(pixels, cropped), whole)


@pytest.mark.parametrize("image", [BEST_FIT_POLICY, CLOSEST_POLICY, LONGEST_POLICY,
                                   policy(None, mode="crop")])  # fmt: skip
@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (3, 4000), (4000, 3)])
def test_lines_of_pixels_are_cut_too(image: m.ImagePolicy, size: tuple[int, int]) -> None:
    layout = picture_to_layout(size, manifest(image))
    tiles = tiles_of(picture(size), image)
    assert tiles.shape == (layout.n_tiles, TILE, TILE, 3)
    assert len(layout.rows) >= bundles.N_TOKENS


def test_a_picture_read_at_reduced_scale_is_cut_as_the_whole_one() -> None:
    """The grid depends on the size of the picture in the file, not on the size after decoding."""
    pixels = picture((1333, 401))
    read = read_picture(pixels)
    reduced = dataclasses.replace(read, rgb=read.rgb.resize((167, 51), Image.Resampling.BOX))
    for image in (BEST_FIT_POLICY, CLOSEST_POLICY, LONGEST_POLICY):
        full, less = picture_to_tiles(read, image), picture_to_tiles(reduced, image)
        assert full.shape == less.shape
        assert enough_for(image) >= 4 * max(choose_grid(read.size, image) or (1,)) * TILE


# ---- rows


def by_llava_next(size: tuple[int, int]) -> np.ndarray:
    """Return upstream's order of rows: it packs features that are their own index; newline: -1."""
    grid = choose_grid(size, BEST_FIT_POLICY)
    assert grid is not None
    n_tiles, n = 1 + grid[0] * grid[1], bundles.N_TOKENS
    features = torch.arange(n_tiles * n, dtype=torch.float64).reshape(n_tiles, n, 1)
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=TILE, patch_size=bundles.PATCH),
        image_grid_pinpoints=PINPOINTS,
    )
    packed, _ = LlavaNextModel.pack_image_features(
        cast(LlavaNextModel, SimpleNamespace(config=config)),  # the method reads only the config
        [features], [(size[1], size[0])], "default", torch.tensor([-1.0]),
    )  # fmt: skip
    indices: np.ndarray = packed[0][:, 0].numpy().astype(int)
    return indices


@pytest.mark.parametrize("size", [s for s in SIZES if s != (1, 1)])
def test_unpadded_rows_equal_llava_next(size: tuple[int, int]) -> None:
    if min(size) < 4:
        pytest.skip("upstream finds no resolution for such a line")
    layout = picture_to_layout(size, manifest(BEST_FIT_POLICY, newline="newline"))
    assert layout.rows.tolist() == by_llava_next(size).tolist()
    assert layout.segments == (ImageRows(0, len(layout.rows)),)


def test_rows_with_padding_kept() -> None:
    whole = dataclasses.replace(BEST_FIT, order="rows")
    layout = picture_to_layout((300, 100), manifest(policy(whole, 5), newline="newline"))
    assert layout.grid == (1, 3)
    n, g = bundles.N_TOKENS, bundles.GRID
    grid_rows = layout.rows[n:].reshape(g, 3 * g + 1)
    assert layout.rows[:n].tolist() == list(range(n))
    assert (grid_rows[:, -1] == -1).all()
    # the second row of patches runs through the first, second and third tile
    assert grid_rows[1, :-1].tolist() == [n * (1 + t) + g + i for t in range(3) for i in range(g)]


@pytest.mark.parametrize("size", SIZES)
def test_markers_stand_where_idefics3_puts_them(size: tuple[int, int]) -> None:
    layout = picture_to_layout(size, manifest(LONGEST_POLICY, markers=MARKERS))
    down, across = layout.grid or (0, 0)
    expected = get_image_prompt_string(
        down, across, bundles.N_TOKENS, fake_token_around_image="<fake>", image_token="*",
        global_img_token="<global-img>",
    )  # fmt: skip
    written = ""
    for segment in layout.segments:
        assert not isinstance(segment, Tokens)
        if isinstance(segment, Text):
            written += segment.text
        else:
            written += "*" * (segment.stop - segment.start)
    assert written == expected
    assert all(s.template for s in layout.segments if isinstance(s, Text))
    assert layout.rows.tolist() == list(range((1 + down * across) * bundles.N_TOKENS))
    kinds = [type(segment) for segment in layout.segments]
    # neighbours are of different kinds: texts and rows are joined as far as possible
    assert all(a is not b for a, b in itertools.pairwise(kinds))


def test_a_whole_picture_has_the_markers_of_the_overview() -> None:
    layout = picture_to_layout((9, 9), manifest(policy(None), markers=MARKERS))
    assert layout.segments == (
        Text("<fake><global-img>", True), ImageRows(0, bundles.N_TOKENS), Text("<fake>", True)
    )  # fmt: skip


def test_an_overview_in_front() -> None:
    front = dataclasses.replace(CLOSEST, overview="first")
    image = policy(front, 13)
    layout = picture_to_layout((90, 30), manifest(image, markers=MARKERS))
    n = bundles.N_TOKENS
    places = ["<fake><row_1_col_1>", "<fake><row_1_col_2>", "<fake><row_1_col_3>"]
    assert layout.segments == (
        Text("<fake><global-img>", True), ImageRows(0, n), Text("\n" + places[0], True),
        ImageRows(n, 2 * n), Text(places[1], True), ImageRows(2 * n, 3 * n),
        Text(places[2], True), ImageRows(3 * n, 4 * n), Text("\n<fake>", True),
    )  # fmt: skip
    pixels = picture((90, 30))
    last = tiles_of(pixels, CLOSEST_POLICY)
    np.testing.assert_array_equal(tiles_of(pixels, image), np.concatenate([last[-1:], last[:-1]]))


def test_no_picture_has_more_tokens_than_the_most() -> None:
    rng = np.random.default_rng(4)
    sizes = np.exp(rng.uniform(0, np.log(3000), (400, 2))).astype(int).tolist()
    for image, newline in (
        (BEST_FIT_POLICY, "newline"),
        (policy(dataclasses.replace(BEST_FIT, order="rows"), 5), "newline"),
        (CLOSEST_POLICY, ""),
        (LONGEST_POLICY, ""),
        (policy(None), ""),
    ):
        parsed = manifest(image, newline=newline)
        layouts = [picture_to_layout((w, h), parsed) for w, h in sizes]
        counts = [len(layout.rows) for layout in layouts]
        assert max(counts) <= most_visual_tokens(parsed)
        assert max(layout.n_tiles for layout in layouts) == image.max_tiles
