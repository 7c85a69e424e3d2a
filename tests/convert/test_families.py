"""Every family: its published layout, converted, says what stock classes say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprism.convert.vision import config, graph, stock, timm, weights
from edgeprism.errors import UsageError
from tests.helpers import tiny_captioners as tiny
from tests.helpers.captions import caption_ids
from tests.helpers.family_checks import (
    N_TOKENS,
    check_pixels,
    check_rows_and_texts,
    converted,
    error_of,
    loaded,
)
from tests.helpers.tiny_captioners import INSTRUCTION, Case, pictures
from tests.helpers.tiny_prismatic import write_prismatic
from tests.helpers.tiny_vila import write_vila

CASES: dict[str, Callable[[Path], Case]] = {
    "llava-1.5": lambda p: tiny.write_llava(p),
    "llava-v1": lambda p: tiny.write_llava(p, projector="linear", aspect="square", seed=5),
    "llava-v1-marks": lambda p: tiny.write_llava(p, projector="linear", marks=True, seed=16),
    "llava-mistral": lambda p: tiny.write_llava(p, lm="mistral", inside=True, seed=6),
    "llava-siglip-qwen": lambda p: tiny.write_llava(p, tower="siglip", lm="qwen2", seed=7),
    "llava-hf": lambda p: tiny.write_llava_hf(p),
    "llava-hf-newer": lambda p: tiny.write_llava_hf(p, newer=True, layer=-1, seed=8),
    "llava-hf-pad": lambda p: tiny.write_llava_hf(p, pad=True, seed=17),
    "llava-hf-siglip": lambda p: tiny.write_llava_hf(p, tower="siglip", layer=2, seed=9),
    "interleave": lambda p: tiny.write_llava_hf(
        p, tower="siglip", lm="qwen2", newer=True, strategy="full", layer=-1, seed=10
    ),
    "share4v": lambda p: tiny.write_llava(p, kind="share4v", seed=20),
    "vila-1.0": lambda p: tiny.write_llava(p, kind="vila", inside=True, seed=21),
    "vila-1.0-linear": lambda p: tiny.write_llava(p, kind="vila", projector="linear", seed=22),
    "vila-1.5": lambda p: write_vila(p),
    "vila-1.5-llama3": lambda p: write_vila(p, lm="llama3", size=56, seed=11),
    "vila-linear": lambda p: write_vila(p, projector="linear", tower="clip", seed=12),
    "prismatic-fused": lambda p: write_prismatic(p),
    "prismatic-dinoclip": lambda p: write_prismatic(
        p, backbone="dinoclip-vit-l-336px", arch="gelu-mlp", lm="vicuna-v15-7b", seed=13
    ),
    "prismatic-siglip": lambda p: write_prismatic(
        p, backbone="siglip-vit-so400m", arch="gelu-mlp", seed=14
    ),
    "prismatic-clip": lambda p: write_prismatic(p, backbone="clip-vit-l", arch="linear", seed=15),
    "prismatic-letterbox": lambda p: write_prismatic(
        p, backbone="clip-vit-l", arch="gelu-mlp", lm="vicuna-v15-7b", strategy="letterbox", seed=18
    ),
    "prismatic-two-letterbox": lambda p: write_prismatic(
        p, lm="vicuna-v15-7b", strategy="letterbox", seed=19
    ),
}
# "vicuna-v1" is what the original layout says to a Llama; Mistral's own form is tried apart
_CONVERSATIONS = {"llava-mistral": "vicuna-v1"}


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    cached: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in cached:
            cached[name] = CASES[name](tmp_path_factory.mktemp("captioner") / "c")
            if name in _CONVERSATIONS:
                cached[name].settings["conversation"] = _CONVERSATIONS[name]
        return cached[name]

    return get


@pytest.fixture(scope="module")
def bundle_of(
    tmp_path_factory: pytest.TempPathFactory, case_of: Callable[[str], Case]
) -> Callable[[str], Path]:
    cached: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in cached:
            cached[name] = converted(case_of(name), tmp_path_factory.mktemp("bundle") / name)
        return cached[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_the_bundle_says_what_the_reference_says(
    name: str, case_of: Callable[[str], Case], bundle_of: Callable[[str], Path]
) -> None:
    check_rows_and_texts(case_of(name).reference, bundle_of(name))


@pytest.mark.parametrize("name", CASES)
def test_several_pictures_stand_in_one_prompt(
    name: str, case_of: Callable[[str], Case], bundle_of: Callable[[str], Path]
) -> None:
    """Of those made for it: two and three pictures, in either order, against the reference."""
    reference = case_of(name).reference
    first, second, *_, last = pictures()
    with loaded(bundle_of(name)) as captioner:
        if reference.between is None:
            with pytest.raises(UsageError, match="takes one picture at a time"):
                captioner.caption([first, second])
            return
        for shown in ([first, second], [second, first], [first, second, last]):
            ids = caption_ids(
                captioner,
                shown,
                instruction=INSTRUCTION,
                caption_tokens=N_TOKENS,
                stop_at_end=False,
            )
            assert ids == reference.greedy(shown[0], N_TOKENS, *shown[1:])


@pytest.mark.parametrize(
    "name",
    ["llava-1.5", "llava-v1", "llava-hf", "llava-hf-pad", "interleave", "share4v", "vila-1.0",
     "vila-1.5", "prismatic-siglip", "prismatic-fused", "prismatic-letterbox"],
)  # fmt: skip
def test_pixels_are_the_processors_to_one_grey_level(
    name: str, case_of: Callable[[str], Case], bundle_of: Callable[[str], Path]
) -> None:
    check_pixels(case_of(name).reference, bundle_of(name))


# ---- the comparison sees mistakes: the vision half, run in torch with a mistake planted


def _one_layer_more(patch: pytest.MonkeyPatch) -> None:
    count = config.n_used_layers
    patch.setattr(stock, "n_used_layers", lambda *a: min(a[0].n_layers, count(*a) + 1))


def _one_layer_less(patch: pytest.MonkeyPatch) -> None:
    count = config.n_used_layers
    patch.setattr(stock, "n_used_layers", lambda *a: count(*a) - 1)


def _every_gelu_erf(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(graph, "gelu", lambda x, _name: torch.nn.functional.gelu(x))


def _every_gelu_tanh(patch: pytest.MonkeyPatch) -> None:
    gelu = torch.nn.functional.gelu
    patch.setattr(graph, "gelu", lambda x, _name: gelu(x, approximate="tanh"))


def _class_row_without_position(patch: pytest.MonkeyPatch) -> None:
    result = weights.stock_tower_weights

    def planted(*arguments: Any) -> weights.Weights:
        by_name = result(*arguments)
        row = by_name["prefix"]
        by_name["prefix"] = weights.Weight(row.checkpoint, row.shapes, lambda r, _: r[None])
        return by_name

    patch.setattr(stock, "stock_tower_weights", planted)


def _no_first_norm(patch: pytest.MonkeyPatch) -> None:
    forward = graph.Norm.forward
    layers: list[object] = []

    def planted(self: graph.Norm, x: torch.Tensor) -> torch.Tensor:
        layers.append(self)
        return x if layers[0] is self else forward(self, x)

    patch.setattr(graph.Norm, "forward", planted)


def _colours_unscaled(patch: pytest.MonkeyPatch) -> None:
    result = config.preparation_from_folder

    def planted(*arguments: Any) -> config.Preparation:
        return dataclasses.replace(result(*arguments), std=(0.5, 0.5, 0.5))

    patch.setattr(stock, "preparation_from_folder", planted)


def _cells_by_columns(patch: pytest.MonkeyPatch) -> None:
    join = graph.join_cells

    def planted(x: torch.Tensor, s: int) -> torch.Tensor:
        n, t, e = x.shape
        g = int(t**0.5)
        return join(x.reshape(n, g, g, e).transpose(1, 2).reshape(n, t, e), s)

    patch.setattr(graph, "join_cells", planted)


def _odd_edge_cut(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(config.ProjectorConfig, "side", lambda self, grid: grid // self.downsample)
    join = graph.join_cells

    def planted(x: torch.Tensor, s: int) -> torch.Tensor:
        n, t, e = x.shape
        g = int(t**0.5)
        even = g - g % s
        return join(x.reshape(n, g, g, e)[:, :even, :even].reshape(n, even * even, e), s)

    patch.setattr(graph, "join_cells", planted)


def _first_patch_dropped(patch: pytest.MonkeyPatch) -> None:
    forward = graph.VisionGraph.forward

    def planted(self: graph.VisionGraph, pixels: torch.Tensor) -> torch.Tensor:
        rows = forward(self, pixels)
        assert isinstance(rows, torch.Tensor)
        return rows[:, 1:]

    patch.setattr(graph.VisionGraph, "forward", planted)


def _towers_swapped(patch: pytest.MonkeyPatch) -> None:
    def planted(self: graph.VisionGraph, pixels: torch.Tensor) -> torch.Tensor:
        features = [tower(pixels) for tower in self.towers]
        rows: torch.Tensor = self.projector(torch.cat(features[::-1], dim=-1))
        return rows

    patch.setattr(graph.VisionGraph, "forward", planted)


def _keys_for_queries(patch: pytest.MonkeyPatch) -> None:
    third = timm._third
    patch.setattr(timm, "_third", lambda number: third((1, 0, 2)[number]))


def _branches_unscaled(patch: pytest.MonkeyPatch) -> None:
    result = timm._weights

    def planted(*arguments: Any) -> weights.Weights:
        by_name = result(*arguments)
        for name, weight in list(by_name.items()):
            if ".scale" in name:
                by_name[name] = weights.Weight(weight.checkpoint, weight.shapes, torch.ones_like)
        return by_name

    patch.setattr(timm, "_weights", planted)


def _positions_not_smoothed(patch: pytest.MonkeyPatch) -> None:
    interpolate = torch.nn.functional.interpolate

    def planted(x: torch.Tensor, **options: Any) -> torch.Tensor:
        return interpolate(x, **{**options, "antialias": False})

    patch.setattr(torch.nn.functional, "interpolate", planted)


def _a_block_less(patch: pytest.MonkeyPatch) -> None:
    result = timm.timm_tower

    def planted(*arguments: Any) -> timm.TimmTower:
        tower = result(*arguments)
        fewer = dataclasses.replace(tower.config, n_layers=tower.config.n_layers - 1)
        return dataclasses.replace(tower, config=fewer)

    patch.setattr(timm, "timm_tower", planted)


MISTAKES: list[tuple[str, Callable[[pytest.MonkeyPatch], None]]] = [
    ("llava-1.5", _one_layer_more),
    ("llava-1.5", _one_layer_less),
    ("llava-1.5", _every_gelu_erf),
    ("llava-1.5", _class_row_without_position),
    ("llava-1.5", _no_first_norm),
    ("llava-v1", _one_layer_more),
    ("llava-v1", _colours_unscaled),
    ("llava-v1", _every_gelu_tanh),
    ("llava-hf", _one_layer_less),
    ("llava-hf", _every_gelu_erf),
    ("llava-hf", _no_first_norm),
    ("interleave", _one_layer_less),
    ("interleave", _first_patch_dropped),
    ("interleave", _every_gelu_erf),
    ("share4v", _one_layer_less),
    ("share4v", _every_gelu_erf),
    ("share4v", _class_row_without_position),
    ("share4v", _no_first_norm),
    ("vila-1.0", _one_layer_more),
    ("vila-1.0", _every_gelu_erf),
    ("vila-1.0", _colours_unscaled),
    ("vila-1.0-linear", _one_layer_less),
    ("vila-1.0-linear", _class_row_without_position),
    ("vila-1.0-linear", _no_first_norm),
    ("vila-1.5", _cells_by_columns),
    ("vila-1.5", _odd_edge_cut),
    ("vila-1.5", _one_layer_more),
    ("vila-1.5", _every_gelu_tanh),
    ("prismatic-fused", _towers_swapped),
    ("prismatic-fused", _keys_for_queries),
    ("prismatic-fused", _branches_unscaled),
    ("prismatic-fused", _a_block_less),
    ("prismatic-fused", _positions_not_smoothed),
    ("prismatic-clip", _every_gelu_erf),
]


@pytest.mark.parametrize("name", ["llava-1.5", "llava-hf", "vila-1.5", "prismatic-fused"])
def test_without_a_mistake_the_error_is_small(name: str, case_of: Callable[[str], Case]) -> None:
    assert error_of(case_of(name)) < 1e-5


@pytest.mark.parametrize(("name", "plant"), MISTAKES)
def test_planted_mistakes_are_seen(
    name: str,
    plant: Callable[[pytest.MonkeyPatch], None],
    case_of: Callable[[str], Case],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = case_of(name)  # made before the mistake is planted
    plant(monkeypatch)
    assert error_of(case) > 1e-4
