"""MiniCPM-V 1.0, 2.0 and Llama3-V 2.5 as published, against what upstream computes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgeprism.bundle.open import open_bundle
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.gate.judge import judge_lm
from edgeprism.convert.gate.tiles import gate_tiles
from edgeprism.convert.language.write_gguf import write_gguf
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.vision import free_graph, graph, resampler
from edgeprism.convert.vision.eager import with_weights
from edgeprism.errors import CheckpointError
from edgeprism.language.model import LanguageModel
from edgeprism.memory.language import LanguageUse
from edgeprism.perceive.footprint import CaptionerFootprint
from edgeprism.picture.layout import picture_to_layout, tiles_by_shape
from edgeprism.picture.read import read_picture
from edgeprism.picture.tile import picture_to_tiles
from edgeprism.progress import Progress
from tests.helpers import tiled
from tests.helpers.converting import convert_family, lm_of, parts_of
from tests.helpers.tiny_minicpm_v import N_EMBD, Case, write_minicpm_v

# version → the graphs that are made of it
VERSIONS = {"1.0": ("fp32",), "2.0": ("fp32", "int8"), "2.5": ("fp32", "fp16")}
PENALTY = 1.05
RECORDED = Path(__file__).with_name("minicpm_slices.txt")


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    cached: dict[str, Case] = {}

    def get(version: str) -> Case:
        if version not in cached:
            folder = tmp_path_factory.mktemp("minicpm") / "c"
            cached[version] = write_minicpm_v(folder, version)
            generation = cached[version].reference.lm.generation_config
            assert generation is not None
            # with which upstream's `chat` generates; transformers counts no row of the prompt
            generation.repetition_penalty = PENALTY
        return cached[version]

    return get


@pytest.fixture(scope="module")
def bundle_of(
    tmp_path_factory: pytest.TempPathFactory, case_of: Callable[[str], Case]
) -> Callable[[str], Path]:
    cached: dict[str, Path] = {}

    def get(version: str) -> Path:
        if version not in cached:
            out = tmp_path_factory.mktemp("bundle") / version
            options = ConvertOptions(VERSIONS[version], "F32")
            convert_family("minicpm-v", out, options, case_of(version).settings)
            cached[version] = out
        return cached[version]

    return get


@pytest.mark.parametrize("version", VERSIONS)
def test_rows_and_text_are_upstreams(
    version: str, case_of: Callable[[str], Case], bundle_of: Callable[[str], Path]
) -> None:
    tiled.same_as_reference(case_of(version).reference, bundle_of(version))
    assert manifest_from_bundle(bundle_of(version)).prompts.repetition_penalty == PENALTY


def test_several_pictures_stand_in_one_prompt(
    case_of: Callable[[str], Case], bundle_of: Callable[[str], Path]
) -> None:
    tiled.several_as_reference(case_of("2.5").reference.output, bundle_of("2.5"))


@pytest.mark.parametrize("version", VERSIONS)
def test_tiles_are_upstreams_to_one_grey_level(
    version: str, case_of: Callable[[str], Case], bundle_of: Callable[[str], Path]
) -> None:
    manifest, n_cut = manifest_from_bundle(bundle_of(version)), 0
    for picture in tiled.pictures():
        expected, (across, down) = case_of(version).reference.pictures(picture)
        layout = picture_to_layout(picture.size, manifest)
        tiles = [tile for part in tiles_of(picture, manifest) for tile in part]
        assert len(tiles) == len(expected)
        assert layout.grid in (None, (down, across))
        n_cut += layout.grid is not None
        for actual, right in zip(tiles, expected, strict=True):
            assert (actual.shape[1], actual.shape[0]) == right.size
            assert np.abs(actual.astype(int) - np.asarray(right).astype(int)).max() <= 1
    assert n_cut >= (4 if version != "1.0" else 0)


def tiles_of(picture: Image.Image, manifest: Any) -> list[np.ndarray]:
    """Return a picture's tiles [n, height, width, 3], an array for each run of one shape."""
    layout = picture_to_layout(picture.size, manifest)
    tiles = picture_to_tiles(read_picture(picture), manifest.image, layout.grid)
    return list(tiles_by_shape(tiles, layout.shapes))


def test_slices_of_many_sizes_are_upstreams(tmp_path: Path) -> None:
    case = write_minicpm_v(tmp_path / "c", "2.0", scale=448, most=9)
    manifest = parts_of(case).manifest  # type: ignore[arg-type]
    lines = [line for line in RECORDED.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) >= 500
    for line in lines:
        width, height, *expected = map(int, line.split())
        layout = picture_to_layout((width, height), manifest)
        down, across = layout.grid or (0, 0)
        overview, *slices = layout.shapes
        if expected[0] * expected[1] > manifest.image.free.most_pixels:  # type: ignore[union-attr]
            assert max(width, height) > 2000 * min(width, height)
            continue
        ((tall, wide),) = set(slices) or {(0, 0)}
        assert [overview[1], overview[0], across, down, wide, tall] == expected, line
        assert len(slices) == down * across


@pytest.mark.parametrize(("version", "quant"), [("2.0", "int8"), ("2.5", "fp16")])
def test_coarser_graphs_were_measured_on_tiles_of_several_shapes(
    version: str, quant: str, bundle_of: Callable[[str], Path]
) -> None:
    manifest = manifest_from_bundle(bundle_of(version))
    figures = manifest.parity.figures[f"vision {quant}"]
    assert 1e-6 < figures["relative_error"] < {"fp16": 0.02, "int8": 0.08}[quant]
    tiles = gate_tiles(manifest)
    assert figures["pictures"] == sum(map(len, tiles)) == 8
    assert len({tile.shape[1:] for tile in tiles}) >= 5
    assert any(len(tile) > 1 for tile in tiles)


def test_the_plan_counts_the_largest_tile(bundle_of: Callable[[str], Path]) -> None:
    bundle = open_bundle(bundle_of("2.0"))
    variants = {variant.quant: variant for variant in bundle.manifest.vision.variants}
    for quant in ("fp32", "int8"):
        counted = CaptionerFootprint(bundle, variants[quant], LanguageUse(cells=1))
        (activations,) = [p for p in counted.parts().parts if p.what == "vision activations"]
        free = bundle.manifest.image.free
        assert free is not None
        keys = free.most_pixels // free.unit**2 * N_EMBD * 4  # of the resampler, the largest
        assert 2 * keys < activations.size < 10 * keys, quant


# ---- mistakes that the comparison must notice


def error_of(case: Case) -> float:
    """Return the relative error over a wide picture in slices and a small one, run by torch."""
    parts = parts_of(case)  # type: ignore[arg-type]
    module = with_weights(parts.vision(torch.float32), parts.vision_weights)
    worst = 0.0
    for picture in (tiled.pictures()[1], tiled.pictures()[5]):
        with torch.inference_mode():
            runs = [module(torch.from_numpy(t.copy())) for t in tiles_of(picture, parts.manifest)]
        actual = torch.cat([run.flatten(0, 1) for run in runs])
        expected = case.reference.visual_tokens(picture)
        assert actual.shape == expected.shape
        worst = max(worst, float((actual - expected).norm() / expected.norm()))
    return worst


def _other_gelu(patch: pytest.MonkeyPatch) -> None:
    right, others = graph.gelu, {"gelu": "gelu_pytorch_tanh", "gelu_pytorch_tanh": "gelu"}
    patch.setattr(graph, "gelu", lambda x, name: right(x, others[name]))


def _places_not_smoothed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(free_graph, "_CUBIC", -0.75)


def _places_in_two_directions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(free_graph, "row_places", lambda numbers, side: numbers % side)


def _rows_before_columns(patch: pytest.MonkeyPatch) -> None:
    right = resampler.waves

    def wrong(down: torch.Tensor, across: torch.Tensor, n: int) -> torch.Tensor:
        return right(down, across, n).roll(n // 2, dims=1)

    patch.setattr(resampler, "waves", wrong)


def _queries_without_places(patch: pytest.MonkeyPatch) -> None:
    right = resampler._queries
    patch.setattr(resampler, "_queries", lambda config: lambda *t: right(config)(*t[:5]))


def _queries_with_the_keys_matrix(patch: pytest.MonkeyPatch) -> None:
    right = resampler._third
    patch.setattr(resampler, "_third", lambda number: right(number - 1))


def _rows_not_divided(patch: pytest.MonkeyPatch) -> None:
    right = resampler.resampler_weights
    patch.setattr(
        resampler, "resampler_weights", lambda *a, **k: right(*a, **{**k, "divisor": 1.0})
    )


MISTAKES: list[tuple[str, Callable[[pytest.MonkeyPatch], None]]] = [
    ("1.0", _other_gelu),
    ("1.0", _queries_without_places),
    ("1.0", _rows_not_divided),
    ("2.0", _other_gelu),
    ("2.0", _places_not_smoothed),
    ("2.0", _rows_before_columns),
    ("2.0", _queries_without_places),
    ("2.0", _rows_not_divided),
    ("2.5", _other_gelu),
    ("2.5", _places_in_two_directions),
    ("2.5", _rows_before_columns),
    ("2.5", _queries_with_the_keys_matrix),
]


@pytest.mark.parametrize("version", VERSIONS)
def test_without_a_mistake_the_error_is_small(version: str, case_of: Callable[[str], Case]) -> None:
    assert error_of(case_of(version)) < 1e-5


@pytest.mark.parametrize(("version", "plant"), MISTAKES)
def test_planted_mistakes_are_seen(
    version: str,
    plant: Callable[[pytest.MonkeyPatch], None],
    case_of: Callable[[str], Case],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = case_of(version)
    plant(monkeypatch)
    assert error_of(case) > 1e-4


@pytest.mark.parametrize("scale", ["embedding", "residual", "logit"])
def test_scales_of_the_language_model_count(
    scale: str, case_of: Callable[[str], Case], tmp_path: Path
) -> None:
    lm = lm_of(parts_of(case_of("1.0")))  # type: ignore[arg-type]
    assert lm.config.scales is not None
    scales = dataclasses.replace(lm.config.scales, **{scale: 1.0})
    lm = dataclasses.replace(lm, config=dataclasses.replace(lm.config, scales=scales))
    path, texts = tmp_path / "lm.gguf", [[1, *lm.reference_ids("On it are two red apples.")]]
    write_gguf(path, "F32", lm, "tiny", Progress())
    model = LanguageModel(path, threads=1)
    try:
        context = model.context(n_ctx=64, kv_type="f32", flash_attention=False, all_logits=True)
        logits = [context.logits_of_tokens(texts[0])]
        context.close()
    finally:
        model.close()
    _, failures = judge_lm("F32", logits, lm.reference_logits(texts, lambda: None))
    assert failures


# ---- refusals


def refused(folder: Path, out: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        convert_family("minicpm-v", out, ConvertOptions(("fp32",), "F32"), {"captioner": folder})
    assert not out.exists()
    return caught.value.message


def linked(source: Path, folder: Path, file: str = "config.json", **changes: Any) -> Path:
    """Return a folder of links to `source`, with a changed file."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name != file:
            (folder / path.name).symlink_to(path)
    data = json.loads((source / file).read_text())
    for name, value in changes.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    (folder / file).write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(
    ("version", "changes", "expected"),
    [
        ("2.0", {"model_type": "minicpmo"}, "expected: model_type minicpmv"),
        ("2.0", {"vision_encoder": "vit_other", "drop_vision_last_layer": False,
                 "mm_use_im_start_end": False}, "vision_encoder = 'vit_other'"),
        ("2.0", {"scale_resolution": 60, "max_slice_nums": 9}, "no multiple of patch_size"),
        ("2.0", {"max_slice_nums": 0}, "max_slice_nums = 0"),
        ("2.0", {"scale_emb": "12"}, "scale_emb = '12'"),
        ("2.0", {"patch_size": 7}, "patches of 14 pixels where patch_size is 7"),
        ("2.0", {"slice_mode": 1}, "slice_mode = 1"),
        ("2.0", {"query_num": 10}, "10 queries have positions, but make no square"),
        ("2.0", {"new_switch": 3}, "new_switch = 3"),
        ("2.5", {"version": "2.6"}, "version = '2.6'"),
        ("2.5", {"query_num": 7}, "image_feature_size"),
        ("2.5", {"slice_config": {"overlap": 3}}, "slice_config.overlap = 3"),
        ("2.5", {"vision_config": {"patch_size": 10}}, "patch_size is 14 in slice_config"),
        ("2.5", {"vision_config": {"model_type": "siglip"}}, "expected 'idefics2'"),
        ("2.5", {"vision_config": {"num_hidden_layers": 3}}, "layers.2.mlp.fc1.bias"),
    ],
)  # fmt: skip
def test_what_would_be_computed_differently_is_refused(
    version: str, changes: dict[str, Any], expected: str, case_of: Callable[[str], Case],
    tmp_path: Path,
) -> None:  # fmt: skip
    source = case_of(version).settings["captioner"]
    message = refused(linked(source, tmp_path / "c", **changes), tmp_path / "b")
    assert expected in message


def test_an_image_processor_that_differs_is_refused(
    case_of: Callable[[str], Case], tmp_path: Path
) -> None:
    source, file = case_of("2.5").settings["captioner"], "preprocessor_config.json"
    folder = linked(source, tmp_path / "c", file, norm_mean=[0.4] * 3, max_slice_nums=5)
    message = refused(folder, tmp_path / "b")
    assert "norm_mean [0.4, 0.4, 0.4]" in message
    assert "max_slice_nums 5" in message
