"""Bundles from strangers: none ends, hangs or fills the process that captions with it.

Each is used in a forked child, as `Captioner` uses it, so that a native abort fails one test.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeprism.bundle import manifest as m
from edgeprism.bundle.manifest_language import LanguageModelFile
from edgeprism.bundle.open import open_bundle
from edgeprism.errors import ModelError
from edgeprism.files.home import data_dir
from edgeprism.machine import child
from edgeprism.perceive.captioner import Captioner
from edgeprism.vision.pair import write_pair
from tests.helpers import bundles, mmprojs
from tests.helpers.children import Outcome, in_child
from tests.helpers.strangers import graph_with, of_architecture, write_in_parts

node = helper.make_node


def caption_of(folder: Path) -> str:
    with Captioner.load(folder, device="cpu", threads=1) as captioner:
        picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        return captioner.caption(picture, caption_tokens=4).text


def outcome(folder: Path, seconds: int = 100) -> Outcome:
    return in_child(lambda: caption_of(folder), seconds)


def bundle_of(folder: Path, parts: bundles.GgufParts) -> Path:
    base = bundles.make_manifest({}).lm
    lm = LanguageModelFile(
        base.file, base.quant, parts.architecture, base.n_embd, base.n_vocab,
        parts.metadata[f"{parts.architecture}.context_length"][1], base.image_attention,
    )  # fmt: skip
    return bundles.write_bundle(folder, model=parts, lm=lm)


# ---- language models


def changed(key: str, kind: str, value: Any) -> Callable[[], bundles.GgufParts]:
    def make() -> bundles.GgufParts:
        parts = of_architecture(bundles.lm_parts(1), "internlm2")
        parts.metadata[f"internlm2.{key}"] = (kind, value)
        return parts

    return make


ABORTS = {
    "heads of another width": changed("attention.key_length", "uint32", 3),
    "more rotary dimensions than a head has": changed("rope.dimension_count", "uint32", 1000),
    "a negative number of experts": changed("expert_used_count", "array", [-1] * 4),
    "values of another width": changed("attention.value_length", "uint32", 8),
}


@pytest.mark.parametrize("name", ABORTS)
def test_a_language_model_that_ends_llama_cpp(name: str, tmp_path: Path) -> None:
    folder = bundle_of(tmp_path / "b", ABORTS[name]())
    result = outcome(folder)
    assert (result.error, result.returncode) == ("ModelError", 4), result
    assert str(folder) in result.text


def test_what_ended_the_trial_is_told_without_the_machine_that_compiled_it(tmp_path: Path) -> None:
    folder = bundle_of(tmp_path / "b", ABORTS["heads of another width"]())
    with pytest.raises(ModelError, match=r"in a process of its own ended.*signal 6") as caught:
        caption_of(folder)
    assert "internlm2.cpp:" in caught.value.message
    assert "/internlm2.cpp" not in caught.value.message
    assert "again" in caught.value.hint


# ---- graphs

_HUGE = np.array([1 << 15, 40000], np.int64)
GRAPHS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "an index out of range": (
        lambda: graph_with(
            [node("GatherND", ["projected", "far"], ["got"], batch_dims=0)], "got",
            {"far": np.array([[1 << 40, -(1 << 40), 7]], np.int64)},
        ), "GatherND",
    ),
    "random numbers": (
        lambda: graph_with([node("RandomNormalLike", ["projected"], ["got"])], "got"),
        "RandomNormalLike",
    ),
    "an operator of ONNX Runtime's own": (
        lambda: graph_with(
            [node("QLinearSigmoid", ["projected"] * 5, ["got"], domain="com.microsoft")], "got"
        ), "com.microsoft.QLinearSigmoid",
    ),
    "the least number divided by -1": (
        lambda: graph_with(
            [node("Div", ["least", "minus"], ["got"])], "got",
            {"least": np.array([-(1 << 63)], np.int64), "minus": np.array([-1], np.int64)},
        ), "divides whole numbers",
    ),
    "a number divided by one that the picture decides": (
        lambda: graph_with(
            [
                node("Cast", ["pixels"], ["whole"], to=TensorProto.INT64),
                node("Div", ["whole", "whole"], ["got"]),
            ], "got",
        ), "divides whole numbers",
    ),
    "a mean of no whole numbers": (
        lambda: graph_with(
            [node("ReduceMean", ["none"], ["got"])], "got", {"none": np.zeros((0, 3), np.int64)}
        ), "whole numbers",
    ),
    "no groups": (
        lambda: graph_with(
            [node("Conv", ["float", "kernel"], ["got"], group=0)], "got",
            {"kernel": np.ones((1, 28, 1, 1), np.float32)},
        ), "group",
    ),
    "a stride of nothing": (
        lambda: graph_with(
            [node("MaxPool", ["float"], ["got"], kernel_shape=[1, 1], strides=[0, 1])], "got"
        ), "strides",
    ),
    "a loop without end": (lambda: bundles.vision_graph(heavy_run=1 << 62), "Loop"),
    "more numbers than a machine holds": (
        lambda: graph_with([node("ConstantOfShape", ["huge"], ["got"])], "got", {"huge": _HUGE}),
        "ConstantOfShape",
    ),
    "a tensor as large as the picture says": (
        lambda: graph_with(
            [
                node("Cast", ["pixels"], ["whole"], to=TensorProto.INT64),
                node("Reshape", ["whole", "flat"], ["line"]),
                node("Slice", ["line", "nought", "three"], ["shape"]),
                node("ConstantOfShape", ["shape"], ["got"]),
            ], "got",
            {"flat": np.array([-1], np.int64), "nought": np.array([0], np.int64),
             "three": np.array([3], np.int64)},
        ), "depends on the picture's pixels",
    ),
    "functions of its own": (
        lambda: graph_with([], "projected", change=_with_function), "functions of its own"
    ),
}  # fmt: skip


def _with_function(model: onnx.ModelProto) -> None:
    model.functions.append(
        helper.make_function(
            "local", "twice", ["x"], ["y"], [node("Add", ["x", "x"], ["y"])],
            [helper.make_opsetid("", 17)],
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_no_tower_needs(name: str, tmp_path: Path) -> None:
    make, words = GRAPHS[name]
    folder = bundles.write_bundle(tmp_path / "b", graph=make())
    result = outcome(folder)
    assert (result.error, result.returncode) == ("ModelError", 4), result
    assert words in result.text
    assert str(folder / "vision.fp32.onnx") in result.text


@pytest.mark.parametrize("ending", ["onnx", "ort"])
def test_names_that_are_no_text(ending: str, tmp_path: Path) -> None:
    folder = bundles.write_bundle(tmp_path / "b")
    data = (folder / "vision.fp32.onnx").read_bytes().replace(b"visual_tokens", b"visual_\xf4okens")
    (folder / "vision.fp32.onnx").write_bytes(data)
    (folder / "vision.fp32.onnx").rename(folder / f"vision.{ending}")
    vision = bundles.make_manifest({}).vision
    variants = [m.VisionVariant(f"vision.{ending}", "fp32")]
    bundles.seal_bundle(folder, vision=dataclasses.replace(vision, variants=variants))
    result = outcome(folder)
    assert result.returncode == 4, result
    assert result.error == ("ManifestError" if ending == "ort" else "ModelError")


def test_a_graph_of_many_operators_of_published_exports_works(tmp_path: Path) -> None:
    """Shapes may be computed from the picture's shape, and weights may be convolutions."""
    graph = graph_with(
        [
            node("Transpose", ["float"], ["channels"], perm=[0, 3, 1, 2]),
            node("Conv", ["channels", "kernel"], ["map"], strides=[7, 7], kernel_shape=[7, 7]),
            node("Shape", ["map"], ["shape"]),
            node("Slice", ["shape", "two", "four"], ["edges"]),
            node("Div", ["edges", "two"], ["half"]),
            node("Concat", ["one_one", "half"], ["sizes"], axis=0),
            node("Resize", ["map", "", "", "all_sizes"], ["small"], mode="linear"),
            node("Flatten", ["small"], ["flat_map"]),
            node("ConstantOfShape", ["sizes"], ["zeros_of"]),
            node("Gather", ["flat_map", "nought"], ["first"], axis=1),
            node("Erf", ["first"], ["erf"]),
            node("Tanh", ["erf"], ["got"]),
        ],
        "got",
        {
            "kernel": np.ones((2, 3, 7, 7), np.float32), "two": np.array([2], np.int64),
            "four": np.array([4], np.int64), "one_one": np.array([1, 1], np.int64),
            "all_sizes": np.array([1, 2, 2, 2], np.int64), "nought": np.array([0], np.int64),
        },
    )  # fmt: skip
    folder = bundles.write_bundle(tmp_path / "b", graph=graph)
    assert outcome(folder).returncode == 0


# ---- weights beside the graph, a language model in parts


def with_weights_beside(folder: Path, name: str, listed: bool) -> Path:
    graph = bundles.vision_graph()
    weight = next(t for t in graph.graph.initializer if t.name == "weight")
    data = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", "0"), ("length", str(len(data)))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    bundles.write_bundle(folder, graph=graph)
    (folder / name).write_bytes(data)
    if listed:
        bundles.seal_bundle(folder)
    return folder


def test_weights_beside_the_graph(tmp_path: Path) -> None:
    name = "vision.fp32.onnx.data"
    good = with_weights_beside(tmp_path / "good", name, listed=True)
    assert caption_of(good) == caption_of(bundles.write_bundle(tmp_path / "whole"))
    (good / name).write_bytes(bytes((good / name).stat().st_size))
    with pytest.raises(ModelError, match="not what the manifest says"):
        caption_of(good)
    for folder, file, listed in (("unlisted", name, False), ("other", "weights.bin", True)):
        with pytest.raises(ModelError, match="its weights lie in"):
            caption_of(with_weights_beside(tmp_path / folder, file, listed))


def in_parts(folder: Path, listed: bool = True) -> Path:
    parts = bundles.lm_parts(3)
    bundles.write_bundle(folder)
    (folder / "lm.gguf").unlink()
    first, second = write_in_parts(parts, folder / "lm")
    lm = dataclasses.replace(bundles.make_manifest({}).lm, file=first.name)
    bundles.seal_bundle(folder, lm=lm)
    if not listed:
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["files"][second.name]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_language_model_in_parts(tmp_path: Path) -> None:
    whole = bundles.write_bundle(tmp_path / "whole", model=bundles.lm_parts(3))
    bundles.seal_bundle(whole)
    folder = in_parts(tmp_path / "parts")
    assert caption_of(folder) == caption_of(whole)
    second = folder / "lm-00002-of-00002.gguf"
    second.write_bytes(second.read_bytes()[:-100] + bytes(100))
    with pytest.raises(ModelError, match=r"lm-00002-of-00002\.gguf: its content is not what"):
        caption_of(folder)


def test_every_part_must_be_listed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lm-00002-of-00002\.gguf' is not among files"):
        open_bundle(in_parts(tmp_path / "parts", listed=False))


# ---- mmproj files


def mmproj_bundle(folder: Path, **metadata: tuple[str, Any]) -> Path:
    """Write a sound pair as a bundle, then change the mmproj and the digests with it."""
    lm = mmprojs.with_marks(bundles.lm_parts(4)).write(folder.with_name("lm.gguf"))
    parts = mmprojs.mmproj_parts(mmprojs.SIGLIP_MLP, 3)
    write_pair(lm, parts.write(folder.with_name("mm.gguf")), folder, copy=True)
    for key, value in metadata.items():
        parts.metadata[f"clip.vision.{key}"] = value
    entry = bundles.file_entry(parts.write(folder / "mmproj.gguf"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["mmproj.gguf"] = {"sha256": entry.sha256, "size": entry.size}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_bundle_with_an_mmproj_is_tried_too(tmp_path: Path) -> None:
    result = outcome(mmproj_bundle(tmp_path / "b", image_size=("uint32", 4)))
    assert (result.error, result.returncode) == ("ModelError", 4), result


def test_more_tiles_than_a_picture_may_have(tmp_path: Path) -> None:
    grids = [size for i in range(1, 100) for size in (28 * i, 28 * i)]
    result = outcome(mmproj_bundle(tmp_path / "b", image_grid_pinpoints=("array", grids)))
    assert (result.error, result.returncode) == ("ModelError", 4), result
    assert "image_grid_pinpoints" in result.text


# ---- the trial itself


def test_a_bundle_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data_dir() / "tried.json").unlink(missing_ok=True)
    folder = bundles.write_bundle(tmp_path / "b", seed=int.from_bytes(os.urandom(3), "big"))
    text = caption_of(folder)
    monkeypatch.setattr(child, "Child", lambda *_, **__: pytest.fail("tried again"))
    assert caption_of(folder) == text
    (data_dir() / "tried.json").write_text("{")
    with pytest.raises(pytest.fail.Exception):
        caption_of(folder)


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "file" / "home"))
    folder = bundles.write_bundle(tmp_path / "b", script=bundles.SAID)
    assert caption_of(folder)
    assert caption_of(folder)


def test_the_built_in_model_and_converted_ones_need_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = bundles.known_to_run(bundles.write_bundle(tmp_path / "b", seed=77))
    monkeypatch.setattr(child, "Child", lambda *_, **__: pytest.fail("tried"))
    picture = np.zeros((30, 40, 3), np.uint8)
    for model in ("nano", converted):
        with Captioner.load(model, device="cpu") as captioner:
            assert captioner.caption(picture, caption_tokens=2).finish_reason
