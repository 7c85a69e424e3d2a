"""InternVL-Chat V1.0: LLaVA's layout with an InternViT, against transformers' classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.vision import graph, intern_side, intern_vit
from edgeprism.convert.vision.config import n_used_layers
from edgeprism.errors import CheckpointError
from tests.helpers.converting import convert_family
from tests.helpers.family_checks import check_pixels, check_rows_and_texts, converted, error_of
from tests.helpers.tiny_captioners import Case
from tests.helpers.tiny_internvl_chat import write_internvl_chat

CaseOf = Callable[[bool], Case]


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> CaseOf:
    return cache(lambda large: write_internvl_chat(tmp_path_factory.mktemp("c"), large=large))


@pytest.mark.parametrize("large", [False, True], ids=["224-to-336", "448"])
def test_the_bundle_says_what_the_reference_says(
    large: bool, case_of: CaseOf, tmp_path: Path
) -> None:
    case = case_of(large)
    reference, bundle = case.reference, converted(case, tmp_path / "b")
    manifest = manifest_from_bundle(bundle)
    assert manifest.parity.failures == []
    assert (manifest.image.size, manifest.image.mode) == (448 if large else 336, "pad")
    assert manifest.image.fill == [123, 116, 103]
    check_rows_and_texts(reference, bundle)
    check_pixels(reference, bundle)


# ---- mistakes that the comparison must notice


def _one_layer_more(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(intern_side, "n_used_layers", lambda *a: n_used_layers(*a) + 1)


def _keys_before_queries(patch: pytest.MonkeyPatch) -> None:
    right = intern_vit._packed

    def wrong(module: str, *rest: Any) -> Any:
        result = right(module, *rest)
        q, k = f"{module}q.weight", f"{module}k.weight"
        return {**result, q: result[k], k: result[q]}

    patch.setattr(intern_vit, "_packed", wrong)


def _positions_bilinear(patch: pytest.MonkeyPatch) -> None:
    def wrong(grid: int, rows: torch.Tensor) -> torch.Tensor:
        old = round((rows.shape[1] - 1) ** 0.5)
        square = rows[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
        square = torch.nn.functional.interpolate(square, (grid, grid), mode="bilinear")
        return square.flatten(2)[0].t()

    patch.setattr(intern_vit, "_resampled", wrong)


def _means_of_clip(patch: pytest.MonkeyPatch) -> None:
    right = intern_vit.intern_vit_config

    def wrong(*arguments: Any) -> Any:
        import dataclasses

        return dataclasses.replace(right(*arguments), mean=(0.48, 0.458, 0.408))

    patch.setattr(intern_side, "intern_vit_config", wrong)


def _other_gelu(patch: pytest.MonkeyPatch) -> None:
    right = graph.gelu
    patch.setattr(graph, "gelu", lambda x, _: right(x, "quick_gelu"))


def test_without_a_mistake_the_error_is_small(case_of: CaseOf) -> None:
    assert error_of(case_of(False)) < 1e-5


@pytest.mark.parametrize(
    "plant",
    [_one_layer_more, _keys_before_queries, _positions_bilinear, _means_of_clip, _other_gelu],
)
def test_planted_mistakes_are_seen(
    plant: Callable[[pytest.MonkeyPatch], None], case_of: CaseOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(False)  # made before the mistake is planted
    plant(monkeypatch)
    assert error_of(case) > 1e-4


# ---- refusals


@pytest.mark.parametrize(
    ("where", "fields", "expected"),
    [
        ("vision", {"norm_type": "batch_norm"}, "norm_type = 'batch_norm'"),
        ("vision", {"patch_size": 50}, "patches of 50 pixels"),
        ("vision", {"hidden_size": 51}, "class_embedding"),
        ("vision", {"window_size": 7}, "window_size = 7"),
        ("vision", {"image_size": 448}, "position_embedding"),
        ("captioner", {"mm_vision_select_layer": -9}, "the feature layer is -9"),
        ("captioner", {"mm_vision_select_feature": "cls_patch"}, "class row"),
    ],
)
def test_what_contradicts_is_refused(
    case_of: CaseOf, tmp_path: Path, where: str, fields: dict[str, Any], expected: str
) -> None:
    settings = dict(case_of(False).settings)
    folder = tmp_path / where
    folder.mkdir()
    for path in settings[where].iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    config = json.loads((settings[where] / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    settings[where] = folder
    with pytest.raises(CheckpointError) as caught:
        convert_family("llava", tmp_path / "b", ConvertOptions(("fp32",), "F32"), settings)
    assert expected in caught.value.message
    assert not (tmp_path / "b").exists()
