"""InternLM-XComposer2-4KHD in its published layout: tiles, an overview with fractions, rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.vision import graph, hd
from edgeprism.convert.vision.weights import Weight
from edgeprism.errors import CheckpointError
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture import layout, tile
from edgeprism.picture.fractions import bicubic
from edgeprism.picture.layout import picture_to_layout
from edgeprism.picture.read import read_picture
from edgeprism.vision.graph_checks import check_graph
from tests.helpers import tiled
from tests.helpers.captions import plan_of
from tests.helpers.converting import parts_of
from tests.helpers.family_checks import converted, loaded
from tests.helpers.tiny_captioners import Case
from tests.helpers.tiny_xcomposer2 import TILE, recorded_layouts, write_checkpoint
from tests.helpers.xcomposer2_reference import XComposer2Reference, hd_layout, n_rows

MOST = 9  # tiles of a picture
Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("4khd") / "c"
    case = write_checkpoint(folder, "4khd", 2, meta=False, hd_num=MOST)
    case.settings |= {"conversation": "plain", "tiles": str(MOST)}
    return case


@pytest.fixture(scope="module")
def bundle(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(case, tmp_path_factory.mktemp("bundle") / "4khd")


@pytest.fixture(scope="module")
def output(case: Case) -> Callable[[int], tiled.ModelOutput]:
    reference = case.reference
    assert isinstance(reference, XComposer2Reference)
    return cache(lambda number: reference.output(tiled.pictures()[number]))


def made_by(captioner: Captioner, *shown: Image.Image) -> tiled.ModelOutput:
    """Return rows and greedy text, without the published penalty of repetitions."""
    encoded = captioner.encode_together(shown) if len(shown) > 1 else captioner.encode(shown[0])
    plan = plan_of(
        captioner, instruction=tiled.INSTRUCTION, caption_tokens=tiled.N_TOKENS, stop_at_end=False
    )
    plain = dataclasses.replace(plan.sampling, repetition_penalty=1.0)
    stream = captioner.start(encoded, dataclasses.replace(plan, sampling=plain))
    return tiled.ModelOutput(encoded.visual_tokens, stream.finished().ids)


def test_the_bundle_says_what_the_reference_says(
    bundle: Path, output: Callable[[int], tiled.ModelOutput]
) -> None:
    check_graph(bundle / "vision.fp32.onnx", ["vision.fp32.onnx.data"])  # as a stranger's would be
    texts = set()
    with loaded(bundle) as captioner:
        for number, picture in enumerate(tiled.pictures()):
            made, expected = made_by(captioner, picture), output(number)
            assert made.rows.shape == expected.rows.shape
            largest = float(np.abs(expected.rows).max())
            np.testing.assert_allclose(made.rows, expected.rows, atol=1e-4 * largest)
            assert made.ids == expected.ids
            assert len(set(made.ids)) >= 8
            texts.add(tuple(made.ids))
    assert len(texts) == len(tiled.SIZES)


def test_several_pictures_stand_one_behind_the_other(bundle: Path, case: Case) -> None:
    assert isinstance(case.reference, XComposer2Reference)
    shown = tiled.pictures()[:2]
    with loaded(bundle) as captioner:
        made, expected = made_by(captioner, *shown), case.reference.output(*shown)
    assert made.rows.shape == expected.rows.shape
    assert made.ids == expected.ids


def test_the_manifest_lays_pictures_out_as_recorded(bundle: Path) -> None:
    """500 sizes, with tiles of the published 336 pixels."""
    manifest = manifest_from_bundle(bundle)
    vision = dataclasses.replace(manifest.vision, grid=[12, 12], tokens_per_tile=144)
    for (width, height, most), (expected, rows) in recorded_layouts().items():
        policy = hd.hd_policy(336, most)
        planned = dataclasses.replace(manifest, image=policy, vision=vision)
        made = picture_to_layout((width, height), planned)
        assert made.grid == (expected.down, expected.across)
        assert len(made.rows) == rows
        assert made.n_tiles == 1 + expected.n_tiles
        grids = policy.tiling.grids if policy.tiling else []
        assert layout.across_size((width, height), 336, grids) == expected.resized


def test_a_ribbon_on_which_upstream_fails_keeps_one_row_of_pixels(bundle: Path) -> None:
    with pytest.raises(ValueError, match="no row of pixels"):
        hd_layout(2000, 1, MOST, TILE)
    ribbon = Image.fromarray(np.full((1, 2000, 3), 90, np.uint8))
    with loaded(bundle) as captioner:
        rows = captioner.encode(ribbon).visual_tokens
        assert len(rows) == n_rows(hd_layout(500, 1, MOST, TILE), TILE // 28)
        assert np.isfinite(rows).all()
        cost = captioner.cost((2000, 1))
    assert cost.visual_tokens == len(rows)


def test_fewer_visual_tokens(bundle: Path) -> None:
    picture = tiled.pictures()[1]
    with loaded(bundle) as captioner:
        whole = captioner.encode(picture).visual_tokens
    with Captioner.load(bundle, device="cpu", visual_tokens=20) as captioner:
        fewer = captioner.encode(picture).visual_tokens
    assert (len(whole), len(fewer)) == (35, 20)
    assert all((row == whole).all(axis=1).any() for row in fewer)
    seam = whole[(TILE // 28) * (TILE // 28 + 1)]  # behind the overview
    assert (seam == fewer).all(axis=1).any()


# ---- mistakes that the comparison must notice, in the runtime and in the conversion


def _smoothed_overview(patch: pytest.MonkeyPatch) -> None:
    def planted(pixels: np.ndarray, size: int) -> np.ndarray:
        small = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(small, np.float32)

    patch.setattr(tile, "bicubic", planted)


def _rounded_overview(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tile, "bicubic", lambda *a: np.clip(np.rint(bicubic(*a)), 0, 255))


def _black_padding(patch: pytest.MonkeyPatch) -> None:
    right = tile._centred
    patch.setattr(tile, "_centred", lambda rgb, size, _: right(rgb, size, [0, 0, 0]))


def _not_turned(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tile, "_resized_along", lambda rgb, size, resample: rgb.resize(size, resample))


def _line_ends_of_tiles_alone(patch: pytest.MonkeyPatch) -> None:
    right = layout._with_line_ends

    def planted(rows: np.ndarray) -> np.ndarray:
        return right(rows) if rows.min() > 0 else np.pad(rows, ((0, 0), (0, 1)), mode="edge")

    patch.setattr(layout, "_with_line_ends", planted)


def _learned_rows_swapped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layout, "NEWLINE", -2)
    patch.setattr(layout, "SEPARATOR", -1)


def differs(captioner: Captioner, reference: XComposer2Reference, picture: Image.Image) -> bool:
    rows, expected = captioner.encode(picture).visual_tokens, reference.visual_tokens(picture)
    largest = float(expected.abs().max())
    same = rows.shape == expected.shape
    return not same or float(np.abs(rows - expected.numpy()).max()) > 5e-4 * largest


RUNTIME_MISTAKES = (_smoothed_overview, _rounded_overview, _black_padding, _not_turned,
                    _line_ends_of_tiles_alone, _learned_rows_swapped)  # fmt: skip


@pytest.mark.parametrize("plant", RUNTIME_MISTAKES, ids=lambda plant: plant.__name__)
def test_the_comparison_notices_a_mistake_of_the_runtime(
    plant: Plant, bundle: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(case.reference, XComposer2Reference)
    picture = tiled.pictures()[2]  # a tall one
    with loaded(bundle) as captioner:
        assert not differs(captioner, case.reference, picture)
        plant(monkeypatch)
        assert differs(captioner, case.reference, picture)


def _cells_turned(patch: pytest.MonkeyPatch) -> None:
    right = graph.join_cells

    def planted(x: torch.Tensor, s: int) -> torch.Tensor:
        parts = right(x, s).chunk(4, dim=-1)
        return torch.cat([parts[0], parts[2], parts[1], parts[3]], dim=-1)

    patch.setattr(graph, "join_cells", planted)


def _bytes_swapped(patch: pytest.MonkeyPatch) -> None:
    right = hd.HdGraph.forward
    patch.setattr(hd.HdGraph, "forward", lambda self, pixels: right(self, pixels.flip(-1)))


def _row_before_the_mlp(patch: pytest.MonkeyPatch) -> None:
    right = hd._through_mlp

    def planted(*arguments: Any) -> Weight:
        weight = right(*arguments)
        return dataclasses.replace(weight, turn=lambda row, *others: weight.turn(row * 0, *others))

    patch.setattr(hd, "_through_mlp", planted)


CONVERSION_MISTAKES = (_cells_turned, _bytes_swapped, _row_before_the_mlp)


@pytest.mark.parametrize("plant", [None, *CONVERSION_MISTAKES], ids=str)
def test_the_comparison_notices_a_mistake_of_the_conversion(
    plant: Plant | None, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph, run in torch on an overview, against the reference's first rows."""
    assert isinstance(case.reference, XComposer2Reference)
    if plant is not None:
        plant(monkeypatch)
    parts = parts_of(case)
    module = parts.vision(torch.float32)
    state = {n: parts.vision_weights.read(n, torch.float32) for n, _ in module.named_parameters()}
    module.load_state_dict(state, assign=True)
    picture, side = tiled.pictures()[1], TILE // 28
    grid = layout.choose_grid(picture.size, parts.manifest.image)
    tiles = tile.picture_to_tiles(read_picture(picture), parts.manifest.image, grid)
    with torch.inference_mode():
        tokens, separator, newline = module(torch.from_numpy(tiles.copy()))
        expected = case.reference.visual_tokens(picture)
    made = torch.cat([
        torch.cat([tokens[0].unflatten(0, (side, side)), newline[:1].expand(side, 1, -1)], dim=1)
        .flatten(0, 1), separator[:1],
    ])  # fmt: skip
    error = float((made - expected[: len(made)]).abs().max() / expected.abs().max())
    assert error < 1e-4 if plant is None else error > 1e-2


def test_a_tower_that_cannot_be_joined_in_twos_is_refused(tmp_path: Path) -> None:
    case = write_checkpoint(tmp_path / "c", "4khd", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hd, "_CELL", 3)
        with pytest.raises(CheckpointError, match="cannot be joined in twos"):
            parts_of(case)
