"""Mini-Gemini in its published layout, against transformers' CLIP, ConvNeXt, Gemma and Llama."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.families import mini_gemini
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.vision import convnext, graph, mining
from edgeprism.convert.vision.weights import Weight, Weights
from edgeprism.errors import CheckpointError
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.read import read_picture
from edgeprism.progress import Progress
from edgeprism.vision.graph_checks import check_graph
from tests.helpers.captions import caption_ids
from tests.helpers.converting import convert_family
from tests.helpers.family_checks import converted, error_of
from tests.helpers.tiles import picture_to_tiles
from tests.helpers.tiny_captioners import INSTRUCTION, Case, pictures
from tests.helpers.tiny_lm import write_any_tokenizer
from tests.helpers.tiny_mini_gemini import write_mini_gemini

N_TOKENS = 32
CASES: dict[str, dict[str, Any]] = {
    "2b": {},
    "7b-inside": {"lm": "7b", "inside": True, "container": "bin", "seed": 40},
    "8b-hd": {"lm": "8b", "hd": True, "seed": 50},
}


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    places = tmp_path_factory
    return cache(lambda name: write_mini_gemini(places.mktemp("mgm") / "c", **CASES[name]))


@pytest.fixture(scope="module")
def bundle_of(
    tmp_path_factory: pytest.TempPathFactory, case_of: Callable[[str], Case]
) -> Callable[[str], Path]:
    places = tmp_path_factory
    return cache(lambda name: converted(case_of(name), places.mktemp("bundle") / name))


@pytest.mark.parametrize("name", CASES)
def test_the_bundle_says_what_the_reference_says(
    name: str, case_of: Callable[[str], Case], bundle_of: Callable[[str], Path]
) -> None:
    reference, texts = case_of(name).reference, set()
    graph_file = bundle_of(name) / "vision.fp32.onnx"
    check_graph(graph_file, [f"{graph_file.name}.data"])  # as a stranger's would be
    with Captioner.load(
        bundle_of(name), device="cpu", kv_type="f32", flash_attention=False
    ) as captioner:
        for picture in pictures():
            encoded = captioner.encode(picture)
            expected = reference.visual_tokens(picture).numpy()
            assert encoded.visual_tokens.shape == expected.shape
            largest = float(np.abs(expected).max())
            np.testing.assert_allclose(encoded.visual_tokens, expected, atol=1e-4 * largest)
            ids = caption_ids(
                captioner, encoded, instruction=INSTRUCTION, caption_tokens=N_TOKENS,
                stop_at_end=False,
            )  # fmt: skip
            assert ids == reference.greedy(picture, N_TOKENS)
            assert len(set(ids)) >= 8
            texts.add(tuple(ids))
    assert len(texts) == len(pictures())


@pytest.mark.parametrize("name", ["2b", "8b-hd"])
def test_pixels_are_the_processors_to_one_grey_level(
    name: str, case_of: Callable[[str], Case], bundle_of: Callable[[str], Path]
) -> None:
    reference, policy = case_of(name).reference, manifest_from_bundle(bundle_of(name)).image
    for picture in pictures():
        (tile,) = picture_to_tiles(read_picture(picture), policy).astype(np.float32)
        expected = reference.pixels[0](picture)[0].permute(1, 2, 0).numpy()
        std, mean = np.array(reference.std, np.float32), np.array(reference.mean, np.float32)
        assert np.abs(tile - (expected * std + mean) * 255).max() <= 1.001


@pytest.mark.parametrize(("n_in", "n_out"), [(768, 336), (24, 192), (5, 7), (384, 192), (9, 9)])
def test_the_matrix_resizes_as_torch_does(n_in: int, n_out: int) -> None:
    x = torch.randn(1, 1, n_in, 3, generator=torch.Generator().manual_seed(n_in))
    expected = functional.interpolate(x, size=(n_out, 3), mode="bilinear", align_corners=False)
    torch.testing.assert_close(mining.bilinear(n_in, n_out) @ x, expected, atol=1e-5, rtol=0)


# ---- the comparison sees mistakes: the vision half, run in torch with a mistake planted


def _gelu_of_clip(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(convnext, "gelu", lambda x, _name: graph.gelu(x, "quick_gelu"))


def _larger_eps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(convnext, "_EPS", 1e-3)


def _smaller_eps_of_mining(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mining, "_EPS", 1e-1)


def _branch_unscaled(patch: pytest.MonkeyPatch) -> None:
    result = convnext._block_weights

    def planted(module: str, *arguments: Any) -> Weights:
        weights = result(module, *arguments)
        scale = weights[f"{module}.scale"]
        weights[f"{module}.scale"] = Weight(scale.checkpoint, scale.shapes, torch.ones_like)
        return weights

    patch.setattr(convnext, "_block_weights", planted)


def _corners_aligned(patch: pytest.MonkeyPatch) -> None:
    def planted(n_in: int, n_out: int) -> torch.Tensor:
        one = torch.eye(n_in)[None, None]
        result = functional.interpolate(one, (n_out, n_in), mode="bilinear", align_corners=True)
        return result[0, 0]

    patch.setattr(mining, "bilinear", planted)


def _pixels_smoothed(patch: pytest.MonkeyPatch) -> None:
    right = mining.bilinear

    def planted(n_in: int, n_out: int) -> torch.Tensor:
        if n_out > n_in:
            return right(n_in, n_out)
        one = torch.eye(n_in)[None, None]
        result = functional.interpolate(one, (n_out, n_in), mode="bilinear", antialias=True)
        return result[0, 0]

    patch.setattr(mining, "bilinear", planted)


def _stages_reversed(patch: pytest.MonkeyPatch) -> None:
    forward = mining.Mining.found

    def planted(self: mining.Mining, asked: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        return forward(self, asked, cells.flip(-1))

    patch.setattr(mining.Mining, "found", planted)


def _cells_of_neighbours(patch: pytest.MonkeyPatch) -> None:
    forward = mining.Mining.found
    patch.setattr(mining.Mining, "found", lambda s, q, cells: forward(s, q, cells.roll(1, 1)))


def _keys_and_values_swapped(patch: pytest.MonkeyPatch) -> None:
    result = mining.mining_weights

    def planted(*arguments: Any) -> Weights:
        weights = result(*arguments)
        key, value = weights["key.weight"], weights["value.weight"]
        weights["key.weight"] = Weight(key.checkpoint, value.shapes, key.turn)
        weights["value.weight"] = Weight(key.checkpoint, key.shapes, value.turn)
        return weights

    patch.setattr(mining, "mining_weights", planted)


def _scores_unscaled(patch: pytest.MonkeyPatch) -> None:
    forward = mining.Mining.asked
    patch.setattr(mining.Mining, "asked", lambda s, x: forward(s, x) * x.shape[-1] ** 0.5)


def _rows_not_added(patch: pytest.MonkeyPatch) -> None:
    forward = graph.Tower.forward
    kept: list[torch.Tensor] = []

    def tower(self: graph.Tower, pixels: torch.Tensor) -> torch.Tensor:
        kept.append(forward(self, pixels))
        return kept[-1]

    projector = graph.Projector.forward

    def planted(self: graph.Projector, x: torch.Tensor) -> torch.Tensor:
        return projector(self, x - kept[-1].reshape(x.shape))

    patch.setattr(graph.Tower, "forward", tower)
    patch.setattr(graph.Projector, "forward", planted)


def _overview_last(patch: pytest.MonkeyPatch) -> None:
    result = mining._parts

    def planted(config: mining.MiningConfig) -> Any:
        first, *others = result(config)
        return [*others, first]

    patch.setattr(mining, "_parts", planted)


def _parts_by_columns(patch: pytest.MonkeyPatch) -> None:
    result = mining._parts

    def planted(config: mining.MiningConfig) -> Any:
        whole, *parts = result(config)
        return [whole, parts[0], parts[2], parts[1], parts[3]]

    patch.setattr(mining, "_parts", planted)


def _overview_from_all_pixels(patch: pytest.MonkeyPatch) -> None:
    """Make the overview of the whole picture in one step, not in two."""
    result = mining._parts

    def planted(config: mining.MiningConfig) -> Any:
        whole, *parts = result(config)
        direct = mining.bilinear(config.image_size, config.tower.image_size)
        whole.pixels = mining._Resize(direct, direct)
        return [whole, *parts]

    patch.setattr(mining, "_parts", planted)


def _one_layer_more(patch: pytest.MonkeyPatch) -> None:
    result = mini_gemini._tower

    def planted(*arguments: Any) -> Any:
        tower = result(*arguments)
        more = dataclasses.replace(tower.config, n_layers=tower.config.n_layers + 1)
        return dataclasses.replace(tower, config=more, unused=(".",))

    patch.setattr(mini_gemini, "_tower", planted)


MISTAKES: list[tuple[str, Callable[[pytest.MonkeyPatch], None]]] = [
    *(("2b", plant) for plant in (
        _gelu_of_clip, _larger_eps, _smaller_eps_of_mining, _branch_unscaled, _corners_aligned,
        _pixels_smoothed, _stages_reversed, _cells_of_neighbours, _keys_and_values_swapped,
        _scores_unscaled, _rows_not_added, _one_layer_more,
    )),
    ("8b-hd", _overview_last),
    ("8b-hd", _parts_by_columns),
    ("8b-hd", _overview_from_all_pixels),
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_without_a_mistake_the_error_is_small(name: str, case_of: Callable[[str], Case]) -> None:
    assert error_of(case_of(name)) < 1e-5


@pytest.mark.parametrize("name", ["2b", "8b-hd"])
def test_some_rows_at_a_time_are_the_same(
    name: str, case_of: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the published sizes, where the whole map and the widest layer would take too much."""
    monkeypatch.setattr(mining, "_MAP", 20_000)
    monkeypatch.setattr(convnext, "_WIDEST", 5_000)
    assert error_of(case_of(name)) < 1e-5


@pytest.mark.parametrize(
    ("name", "plant"), MISTAKES, ids=lambda value: getattr(value, "__name__", value).strip("_")
)
def test_planted_mistakes_are_seen(
    name: str,
    plant: Callable[[pytest.MonkeyPatch], None],
    case_of: Callable[[str], Case],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = case_of(name)
    plant(monkeypatch)
    assert error_of(case) > 1e-4


# ---- which conversation, and refusals


def test_a_tokenizer_with_chatml_is_that_of_the_34b_model(
    case_of: Callable[[str], Case], tmp_path: Path
) -> None:
    settings = copied(case_of("7b-inside"), tmp_path)
    write_any_tokenizer(settings["captioner"], "yi")
    captioner = mini_gemini.read(**settings, vision_aux=None, conversation="", progress=Progress())
    prompt = captioner.conversation
    assert prompt.before_image == (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n"
    )
    assert prompt.before_caption == "<|im_end|><|im_start|>assistant\n"
    assert not captioner.lm.vocabulary.add_bos


def copied(case: Case, place: Path) -> dict[str, Any]:
    """Return the settings of a copy in which files can be replaced."""
    settings = {}
    for name, folder in case.settings.items():
        settings[name] = place / folder.name
        settings[name].mkdir()
        for path in folder.iterdir():
            if path.suffix == ".json":
                shutil.copy(path, settings[name])
            else:
                (settings[name] / path.name).symlink_to(path)
    return settings


def changed(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(settings: dict[str, Any], out: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        convert_family("mini-gemini", out, ConvertOptions(("fp32",), "F32"), settings)
    assert not out.exists()
    error = caught.value
    return "\n".join([error.summary, *error.details])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model_type": "llava"}, "model_type one of mgm"),
        ({"image_aspect_ratio": "anyres", "image_grid": 0}, "image_grid 0 (expected"),
        ({"image_size_aux": None}, "image_size_aux None"),
        ({"mm_projector_type": "linear"}, "mm_projector_type 'linear'"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature 'cls_patch'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True"),
        ({"image_size_aux": 100}, "pictures of 100 pixels are no multiple of 32"),
        ({"image_grid": 5}, "24 cells along an edge cannot be shared among 5 × 4 patches"),
        ({"image_global": True}, "an overview of a picture that is not cut"),
        ({"mm_hidden_size_aux": 2880}, "mm_hidden_size_aux is 2880, but the tower given has 80"),
        ({"hidden_activation": "silu"}, "hidden activation 'silu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"image_split": 3}, "image_split = 3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_be_computed_differently_is_refused(
    case_of: Callable[[str], Case], tmp_path: Path, fields: dict[str, Any], expected: str
) -> None:
    settings = copied(case_of("2b"), tmp_path)
    changed(settings["captioner"] / "config.json", **fields)
    assert expected in refused(settings, tmp_path / "b")


def test_towers_that_do_not_fit_are_refused(case_of: Callable[[str], Case], tmp_path: Path) -> None:
    settings = copied(case_of("2b"), tmp_path)
    missing = {**settings, "vision_aux": None}
    assert "published on its own" in refused(missing, tmp_path / "b")
    clip = {**settings, "vision_aux": settings["vision"]}
    assert "open_clip_pytorch_model.bin" in refused(clip, tmp_path / "b")
    both = {**settings, "vision": settings["vision_aux"]}
    assert "config.json is missing" in refused(both, tmp_path / "b")
    path = settings["vision_aux"] / "open_clip_config.json"
    path.write_text('{"model_cfg": {"vision_cfg": {"timm_model_name": "convnext_xxlarge"}}}')
    assert "timm_model_name is 'convnext_xxlarge'" in refused(settings, tmp_path / "b")


def test_every_fault_of_the_tensors_is_told(case_of: Callable[[str], Case], tmp_path: Path) -> None:
    settings = copied(case_of("2b"), tmp_path)
    path = settings["vision_aux"] / "open_clip_pytorch_model.bin"
    tensors = torch.load(path)
    path.unlink()
    tensors["visual.trunk.stages.1.blocks.0.mlp.grn.weight"] = torch.zeros(1)
    del tensors["visual.trunk.stages.2.blocks.0.gamma"]
    torch.save(tensors, path)
    told = refused(settings, tmp_path / "b")
    assert "missing: visual.trunk.stages.2.blocks.0.gamma [24]" in told
    assert "unexpected: visual.trunk.stages.1.blocks.0.mlp.grn.weight [1]" in told
