"""ONNX Runtime as vision engine: right numbers, and only the graph that the manifest describes."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeprism.bundle.manifest import Manifest
from edgeprism.errors import DeviceError, Interrupted, ModelError
from edgeprism.machine import onnx_runtime as onnx_engine
from edgeprism.machine.cancel import Cancel
from edgeprism.vision.graph_checks import check_graph
from edgeprism.vision.onnx import VisionEncoder
from tests.helpers import bundles
from tests.helpers.children import in_child

MANIFEST = bundles.make_manifest({})


def encoder(path: Path, graph: onnx.ModelProto | bytes, **settings: Any) -> VisionEncoder:
    data = graph if isinstance(graph, bytes) else graph.SerializeToString()
    path.write_bytes(data)
    return VisionEncoder(path, settings.pop("manifest", MANIFEST), threads=1, **settings)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vision.onnx"


def pixels(n: int, seed: int = 0) -> np.ndarray:
    shape = (n, bundles.SIZE, bundles.SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_it_computes_what_the_graph_says(path: Path) -> None:
    it = encoder(path, bundles.vision_graph(seed=4))
    for n in (1, 3):
        tokens = it.encode(pixels(n))
        assert tokens.dtype == np.float32
        assert tokens.shape == (n, bundles.N_TOKENS, bundles.N_EMBD)
        expected = bundles.vision_reference(pixels(n), seed=4)
        np.testing.assert_allclose(tokens, expected, rtol=1e-4, atol=1e-4)


def without(part: str) -> Manifest:
    changes: dict[str, Any] = {part: "other"}
    return dataclasses.replace(MANIFEST, vision=dataclasses.replace(MANIFEST.vision, **changes))


def encode_with(path: Path, graph: bytes) -> np.ndarray:
    return encoder(path, graph).encode(pixels(1))


def of_two_views() -> Manifest:
    return dataclasses.replace(
        MANIFEST, image=dataclasses.replace(MANIFEST.image, second_fill=[0, 0, 0])
    )


@pytest.mark.parametrize(
    ("graph", "manifest", "words"),
    [
        ({"input_name": "images"}, MANIFEST, "its input is images"),
        ({"output_name": "features"}, MANIFEST, "its output is features"),
        ({"input_type": onnx.TensorProto.FLOAT}, MANIFEST, "tensor(float)"),
        ({"size": 35}, MANIFEST, "35"),
        ({"n_embd": 64}, MANIFEST, "64"),
        ({}, without("input"), "manifest says other"),
        ({}, without("output"), "manifest says other"),
        ({}, of_two_views(), f"says pixels: tensor(uint8) [n, {bundles.SIZE}, {bundles.SIZE}, 6]"),
    ],
)
def test_another_interface_is_refused(
    path: Path, graph: dict[str, Any], manifest: Manifest, words: str
) -> None:
    with pytest.raises(ModelError, match=r"vision\.onnx: its (in|out)put is") as caught:
        encoder(path, bundles.vision_graph(**graph), manifest=manifest)
    assert words in caught.value.message
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"not a graph", b"GGUF" * 50])
def test_not_a_graph(path: Path, data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"vision\.onnx: not a vision graph that can run"):
        encoder(path, data)
    assert capfd.readouterr() == ("", "")  # neither ONNX Runtime nor the library prints anything


def test_an_empty_file_is_told_as_empty(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(ModelError, match=r"vision\.onnx: not a graph .*: the file is empty\."):
        check_graph(path)


def test_cut_and_damaged_graphs(path: Path) -> None:
    onnx_engine.import_onnxruntime()
    data = bundles.vision_graph().SerializeToString()
    weight = bundles.vision_weight().tobytes()
    start = data.find(weight)
    assert start > 0
    structure = [*range(start), *range(start + len(weight), len(data))]
    rng = np.random.default_rng(6)
    refused = 0
    for trial in range(160):
        damaged = bytearray(data)
        if trial % 4 == 0:
            del damaged[int(rng.integers(0, len(data))) :]
        else:
            for _ in range(int(rng.integers(1, 4))):
                damaged[int(rng.choice(structure))] ^= 1 << int(rng.integers(0, 8))
        ended = in_child(partial(encode_with, path, bytes(damaged)))
        assert ended.orderly, (trial, ended)
        refused += ended.returncode == 4
    assert refused > 80


@pytest.mark.parametrize("where", ["../secret.bin", "{absolute}", "link.bin"])
def test_weights_from_outside_the_bundle_are_refused(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bundles.vision_weight().tobytes())
    (folder / "link.bin").symlink_to(secret)
    graph = bundles.vision_graph()
    weight = next(t for t in graph.graph.initializer if t.name == "weight")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", where.format(absolute=secret)), ("offset", "0"),
                       ("length", str(secret.stat().st_size))):  # fmt: skip
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    with pytest.raises(ModelError, match="not a vision graph that can run"):
        encoder(folder / "vision.onnx", graph)


def test_an_operator_of_somebody_else_is_refused(path: Path) -> None:
    graph = bundles.vision_graph()
    graph.graph.node[-1].domain = "com.example"
    graph.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    with pytest.raises(ModelError):
        encoder(path, graph)


def test_values_that_are_not_finite(path: Path) -> None:
    graph = bundles.vision_graph()
    for tensor in graph.graph.initializer:
        if tensor.name == "scale":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(np.inf, np.float32), "scale"))
    with pytest.raises(ModelError, match="not finite"):
        encoder(path, graph).encode(pixels(1))


def test_cancelled_from_another_thread(path: Path) -> None:
    cancel = Cancel()
    it = encoder(path, bundles.vision_graph(heavy_run=200_000), cancel=cancel)
    timer = threading.Timer(0.3, cancel.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        it.encode(pixels(1))
    assert time.monotonic() - began < 10  # the whole loop would take minutes
    timer.join()


def test_a_cancel_before_the_start_is_kept(path: Path) -> None:
    cancel = Cancel()
    it = encoder(path, bundles.vision_graph(), cancel=cancel)
    cancel.set()
    with pytest.raises(Interrupted):
        it.encode(pixels(1))
    cancel.clear()
    assert it.encode(pixels(1)).shape == (1, bundles.N_TOKENS, bundles.N_EMBD)


def test_a_provider_that_is_not_there(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(DeviceError, match="did not start"),
    ):
        encoder(path, bundles.vision_graph(), provider="NonsenseExecutionProvider")
    assert capfd.readouterr().out == ""


def test_no_onnxruntime_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match="cannot be loaded") as caught:
        onnx_engine.available_providers()
    assert "pip install" in caught.value.hint
    assert caught.value.exit_code == 5


def test_the_graph_that_providers_are_tried_with() -> None:
    model = onnx.load_from_string(onnx_engine._SMALLEST_GRAPH)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Identity"]


def test_a_gpu_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NVIDIA's libraries a session of onnxruntime-gpu leaves out the provider."""
    ort = onnx_engine.import_onnxruntime()
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    monkeypatch.setattr(ort, "get_available_providers", lambda: [cuda, cpu])
    session, tried = ort.InferenceSession, []

    def without_cuda(model: bytes, providers: list[str], **settings: Any) -> Any:
        tried.append(providers)
        return session(model, providers=[cpu], **settings)

    monkeypatch.setattr(ort, "InferenceSession", without_cuda)
    monkeypatch.setattr(
        ort, "preload_dlls", lambda: print("Failed to load libcublas.so.13"), raising=False
    )
    assert onnx_engine.available_providers([cuda]) == {
        cuda: "Failed to load libcublas.so.13",
        cpu: "",
    }
    assert tried == [[cuda, cpu]]
    assert onnx_engine.available_providers() == {cuda: "", cpu: ""}
    assert len(tried) == 1
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    assert onnx_engine.available_providers([cuda])[cuda] == "no GPU that it can use"


def test_telemetry_is_off_before_the_library_loads() -> None:
    import os

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
