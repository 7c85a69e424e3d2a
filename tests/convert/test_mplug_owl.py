"""mPLUG-Owl as published, against a reference in torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.vision import abstractor, config, graph
from edgeprism.errors import CheckpointError
from tests.helpers.converting import convert_family, parts_of
from tests.helpers.family_checks import (
    check_pixels,
    check_rows_and_texts,
    converted,
    error_of,
    thirds_of_the_matrix,
)
from tests.helpers.tiny_captioners import Case, clip_processor, processed
from tests.helpers.tiny_mplug_owl import write_mplug_owl

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_mplug_owl(tmp_path_factory.mktemp("mplug-owl") / "c")


@pytest.fixture(scope="module")
def bundle(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(case, tmp_path_factory.mktemp("bundle") / "b")


def test_the_bundle_says_what_the_reference_says(case: Case, bundle: Path) -> None:
    check_rows_and_texts(case.reference, bundle)
    check_pixels(case.reference, bundle)
    manifest = manifest_from_bundle(bundle)
    assert manifest.vision.grid == [1, 9]  # eight queries and the row behind them
    assert manifest.prompts.stop == ["</s>", "\nHuman:"]


def test_either_name_of_the_abstractors_configuration(tmp_path: Path) -> None:
    other = write_mplug_owl(tmp_path / "c", abstractor="abstractor_config", seed=33)
    assert error_of(other) < 1e-5


def test_pictures_are_prepared_as_the_folder_says(tmp_path: Path) -> None:
    other = write_mplug_owl(tmp_path / "c", seed=34)
    processor = clip_processor()
    processor.save_pretrained(other.settings["captioner"])
    assert parts_of(other).manifest.image.mode == "crop"
    cropped = dataclasses.replace(other.reference, pixels=[processed(processor)])
    assert error_of(dataclasses.replace(other, reference=cropped)) < 1e-5


# ---- mistakes that the comparison must notice


def _class_row_dropped(patch: pytest.MonkeyPatch) -> None:
    right = config.TowerConfig
    patch.setattr(
        config, "TowerConfig", lambda **fields: right(**{**fields, "keeps_prefix": False})
    )


def _no_last_norm(patch: pytest.MonkeyPatch) -> None:
    right = config.TowerConfig
    patch.setattr(config, "TowerConfig", lambda **fields: right(**{**fields, "norm_last": False}))


def _erf_gelu(patch: pytest.MonkeyPatch) -> None:
    right = graph.gelu
    patch.setattr(graph, "gelu", lambda x, _name: right(x, "gelu"))


def _residual_without_norm(patch: pytest.MonkeyPatch) -> None:
    right = abstractor.AbstractorLayer.forward

    def planted(
        self: abstractor.AbstractorLayer, x: torch.Tensor, image: torch.Tensor
    ) -> torch.Tensor:
        result: torch.Tensor = right(self, x, image) + x - self.norm_queries(x)
        return result

    patch.setattr(abstractor.AbstractorLayer, "forward", planted)


def _gate_and_up_changed_over(patch: pytest.MonkeyPatch) -> None:
    right = abstractor.abstractor_weights

    def planted(*arguments: Any) -> Any:
        names = {".gate.": ".up.", ".up.": ".gate."}
        result = {}
        for name, weight in right(*arguments).items():
            for part, other in names.items():
                if part in name:
                    result[name.replace(part, other)] = weight
                    break
            else:
                result[name] = weight
        return result

    patch.setattr(abstractor, "abstractor_weights", planted)


def _no_inner_norm(patch: pytest.MonkeyPatch) -> None:
    right = abstractor.AbstractorLayer.__init__

    def planted(self: abstractor.AbstractorLayer, *arguments: Any) -> None:
        right(self, *arguments)
        self.norm_inner = torch.nn.Identity()  # type: ignore[assignment]

    patch.setattr(abstractor.AbstractorLayer, "__init__", planted)


MISTAKES: list[Plant] = [
    thirds_of_the_matrix, _class_row_dropped, _no_last_norm, _erf_gelu, _residual_without_norm,
    _gate_and_up_changed_over, _no_inner_norm,
]  # fmt: skip


def test_without_a_mistake_the_error_is_small(case: Case) -> None:
    assert error_of(case) < 1e-5


@pytest.mark.parametrize("plant", MISTAKES, ids=lambda plant: plant.__name__.strip("_"))
def test_planted_mistakes_are_seen(
    plant: Plant, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert error_of(case) > 1e-4


# ---- refusals


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"vision_config": {"hidden_act": "gelu", "num_channels": 1}},
         ("hidden_act = 'gelu'", "num_channels = 1")),
        ({"vision_config": {"image_size": 0}, "visual_abstractor_config": {"layer_norm_eps": 2}},
         ("vision_config.image_size = 0", "visual_abstractor_config.layer_norm_eps = 2")),
        ({"visual_abstractor_config": {"hidden_size": 51}}, ("differ",)),
        ({"vision_config": {"num_attention_heads": 5}}, ("no multiple of num_attention_heads",)),
        ({"num_query_tokens": 0}, ("num_query_tokens = 0",)),
        ({"num_query_tokens": 9}, ("query_tokens: [1, 8, 48], expected [1, 9, 48]",)),
        ({"vision_config": {"temporal": 4}}, ("temporal = 4",)),
        ({"text_config": {"model_type": "bloom"}}, ("model_type is 'bloom'",)),
        ({"model_type": "mplug_owl2"}, ("is not a checkpoint of mplug-owl",)),
    ],
)  # fmt: skip
def test_what_contradicts_the_published_layout_is_refused(
    fields: dict[str, Any], expected: tuple[str, ...], case: Case, tmp_path: Path
) -> None:
    source, folder, out = case.settings["captioner"], tmp_path / "c", tmp_path / "b"
    folder.mkdir()
    for path in source.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    data = json.loads((source / "config.json").read_text())
    for name, value in fields.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError) as caught:
        convert_family("mplug-owl", out, ConvertOptions(("fp32",), "F32"), {"captioner": folder})
    assert not out.exists()
    text = " ".join([caught.value.message, *caught.value.details])
    assert all(part in text for part in expected), text
