"""InternVL 1.5 in its original layout, against transformers' InternVL with the same weights."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeprism.convert.families import internvl
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.vision import graph, intern_vit
from edgeprism.convert.vision.config import ProjectorConfig
from edgeprism.errors import CheckpointError
from tests.helpers import tiled
from tests.helpers.converting import convert_family
from tests.helpers.tiny_internvl import SPECS, Spec, TinyCheckpoint, write


@pytest.fixture(scope="module")
def made_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Spec], TinyCheckpoint]:
    return tiled.once_per_spec(write, tmp_path_factory, "internvl")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_rows_and_text_are_transformers(
    spec: Spec, made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path
) -> None:
    tiny = made_of(spec)
    bundle = tiled.converted(internvl.FAMILY, tiny.folder, tmp_path / "b")
    tiled.same_as_reference(tiny, bundle)
    if not spec.llama:  # whose code takes one picture
        tiled.several_as_reference(tiny.output, bundle)


# ---- mistakes that the comparison must notice


def _cells_down_first(patch: pytest.MonkeyPatch) -> None:
    def turned(*arguments: Any, **options: Any) -> ProjectorConfig:
        return ProjectorConfig(*arguments, **{**options, "transposed": True})

    patch.setattr("edgeprism.convert.vision.config.ProjectorConfig", turned)


def _other_gelu(patch: pytest.MonkeyPatch) -> None:
    right = graph.gelu
    patch.setattr(graph, "gelu", lambda x, _: right(x, "gelu_pytorch_tanh"))


def _keys_before_queries(patch: pytest.MonkeyPatch) -> None:
    right = intern_vit._packed

    def wrong(ours: str, *rest: Any) -> Any:
        result = right(ours, *rest)
        q, k = f"{ours}q.weight", f"{ours}k.weight"
        return {**result, q: result[k], k: result[q]}

    patch.setattr(intern_vit, "_packed", wrong)


def _layer_scales_changed_over(patch: pytest.MonkeyPatch) -> None:
    right = intern_vit.intern_vit_weights

    def wrong(*arguments: Any) -> Any:
        result = right(*arguments)
        names = {"scale1": "scale2", "scale2": "scale1"}
        return {
            re.sub("scale[12]", lambda match: names[match[0]], name): weight
            for name, weight in result.items()
        }

    patch.setattr(intern_vit, "intern_vit_weights", wrong)


def _no_markers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(internvl, "MARKERS", dataclasses.replace(internvl.MARKERS, end=""))


MISTAKES = [_cells_down_first, _other_gelu, _keys_before_queries, _layer_scales_changed_over,
            tiled.tiles_down_first, tiled.overview_first, _no_markers]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__.strip("_"))
def test_mistakes_are_seen(
    mistake: tiled.Mistake,
    made_of: Callable[[Spec], TinyCheckpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, picture = made_of(SPECS[0]), tiled.pictures()[0]
    picture = picture.resize((120, 80))  # two rows of three tiles
    expected = result.output(picture)
    mistake(monkeypatch)
    bundle = tiled.converted(internvl.FAMILY, result.folder, tmp_path / "b")
    assert not tiled.equal(tiled.bundle_output(bundle, picture), expected)


# ---- refusals


def refused(folder: Path, out: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        convert_family("internvl", out, ConvertOptions(("fp32",), "F32"), {"captioner": folder})
    assert not out.exists()
    return caught.value.message


def linked(source: Path, folder: Path, **config: Any) -> Path:
    """Return a folder of links with a changed config.json."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    data = json.loads((source / "config.json").read_text())
    for name, value in config.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(data))
    return folder


def test_every_unknown_setting_is_told_at_once(
    made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path
) -> None:
    folder = linked(made_of(SPECS[0]).folder, tmp_path / "c", downsample_ratio=0.25,
                    ps_version="v3", template="Hermes-2", pad2square=True, use_thumbnail=False,
                    max_dynamic_patch=0, llm_config={"model_type": "llama"})  # fmt: skip
    message = refused(folder, tmp_path / "b")
    for name in ("downsample_ratio", "ps_version", "template", "pad2square", "use_thumbnail",
                 "max_dynamic_patch", "llm_config.model_type"):  # fmt: skip
        assert name in message


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "internvl_x"}, "expected: model_type internvl_chat"),
        ({"select_layer": -9}, "feature layer is -9"),
        ({"force_image_size": 64}, "force_image_size 64"),
        ({"vision_config": {"norm_type": "batch_norm"}}, "norm_type"),
        ({"vision_config": {"num_attention_heads": 5}}, "multiple"),
    ],
)
def test_what_would_be_computed_differently_is_refused(
    made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path, config: dict[str, Any], expected: str
) -> None:
    folder = linked(made_of(SPECS[0]).folder, tmp_path / "c", **config)
    assert expected in refused(folder, tmp_path / "b")


def test_every_fault_of_the_tensors_is_told_at_once(
    made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path
) -> None:
    folder = linked(made_of(SPECS[0]).folder, tmp_path / "c",
                    vision_config={"qk_normalization": True, "intermediate_size": 81})  # fmt: skip
    message = refused(folder, tmp_path / "b")
    for i in range(3):
        assert f"missing: vision_model.encoder.layers.{i}.attn.q_norm.weight [48]" in message
        assert f"wrong shape: vision_model.encoder.layers.{i}.mlp.fc1.weight" in message
