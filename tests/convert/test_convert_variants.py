"""A bundle's variants: vision graphs, layers in float, quantized language models."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.choices import VISION_QUANTS
from edgeprism.convert.gate import int8, judge
from edgeprism.convert.gate.data import gate_pictures
from edgeprism.errors import UsageError
from edgeprism.perceive.captioner import Captioner
from edgeprism.progress import Progress
from edgeprism.vision.onnx import VisionEncoder
from tests.helpers.captions import caption_ids
from tests.helpers.checkpoints import Folders, Spec
from tests.helpers.converting import convert, convert_family

SPEC = Spec(container="single", seed=6)
OUTLIER = 500.0
Bundles = Callable[..., Path]


@pytest.fixture(scope="module")
def bundle(bundle_of: Bundles) -> Path:
    return bundle_of(SPEC, vision_quants=VISION_QUANTS, lm_quant="Q8_0")


def test_every_variant_passes_and_is_listed(bundle: Path) -> None:
    manifest = manifest_from_bundle(bundle)
    assert [v.quant for v in manifest.vision.variants] == list(VISION_QUANTS)
    assert {path.name for path in bundle.iterdir()} == {*manifest.files, "manifest.json"}
    assert manifest.parity.passed
    assert not manifest.parity.forced
    figures = manifest.parity.figures
    assert figures["vision fp32"]["relative_error"] < 1e-5
    assert figures["vision int8-full"]["relative_error"] < figures["vision int8"]["relative_error"]
    assert figures["tokenizer"]["different"] == 0


@pytest.mark.parametrize("quant", VISION_QUANTS)
def test_a_graph_takes_any_batch_of_bytes(bundle: Path, quant: str) -> None:
    manifest = manifest_from_bundle(bundle)
    encoder = VisionEncoder(bundle / f"vision.{quant}.onnx", manifest)
    pictures = gate_pictures(manifest.image.size)
    alone = np.concatenate([encoder.encode(pictures[i : i + 1]) for i in range(3)])
    together = encoder.encode(pictures[:3])
    assert together.shape == (3, 15, 64)
    # dynamic int8 takes its range from the whole batch
    tolerance = 0.08 if quant.startswith("int8") else 1e-3
    assert np.linalg.norm(together - alone) <= tolerance * np.linalg.norm(alone)


def test_graphs_hold_the_used_layers_alone_and_no_path(bundle: Path) -> None:
    model = onnx.load(str(bundle / "vision.fp32.onnx"))
    onnx.checker.check_model(model)
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == SPEC.vision_layers - 1
    raw = (bundle / "vision.fp32.onnx").read_bytes()
    assert b".py" not in raw
    assert b"/home" not in raw


def test_matrices_are_integers_where_they_say_so(bundle: Path) -> None:
    kinds = {
        quant: {node.op_type for node in onnx.load(str(bundle / f"vision.{quant}.onnx")).graph.node}
        for quant in VISION_QUANTS
    }
    assert "MatMulInteger" in kinds["int8"] & kinds["int8-full"]
    assert "MatMulInteger" not in kinds["fp32"] | kinds["fp16"]
    weights = {
        quant: max(
            int(np.abs(onnx.numpy_helper.to_array(t).astype(int)).max())
            for t in onnx.load(str(bundle / f"vision.{quant}.onnx")).graph.initializer
            if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2
        )
        for quant in ("int8", "int8-full")
    }
    assert weights["int8"] <= 64 < weights["int8-full"]  # 7 bits without VNNI's wide sums


def test_matrices_that_int8_hurts_stay_in_float(
    checkpoint_of: Callable[[Spec], Folders],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = manifest_from_bundle(bundle).parity.figures["vision int8"]["relative_error"]
    limit = dataclasses.replace(judge.VISION_LIMITS["int8"], relative_error=0.9 * measured)
    monkeypatch.setitem(judge.VISION_LIMITS, "int8", limit)
    out = convert(checkpoint_of(SPEC), tmp_path / "out", vision_quants=("int8",))
    figures = manifest_from_bundle(out).parity.figures["vision int8"]
    assert 1 <= figures["float_matrices"] <= 7
    assert figures["relative_error"] <= limit.relative_error


def plant_outliers(tower: Path) -> None:
    """Make one channel of two inputs huge, and its weights small: the tower computes the same."""
    path = tower / "model.safetensors"
    tensors = load_file(path)
    layer = "encoder.layers.1."
    readers = {"layer_norm1": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
               "layer_norm2": ("mlp.fc1",)}  # fmt: skip
    for name, tensor in tensors.items():
        for norm, products in readers.items():
            if f"{layer}{norm}." in name:
                tensor[7] *= OUTLIER
            if any(name.endswith(f"{layer}{product}.weight") for product in products):
                tensor[:, 7] /= OUTLIER
    save_file(tensors, path)


@pytest.fixture(scope="module")
def outlying(checkpoint_of: Callable[[Spec], Folders],
             tmp_path_factory: pytest.TempPathFactory) -> Folders:  # fmt: skip
    folders = checkpoint_of(SPEC)
    vision = tmp_path_factory.mktemp("outliers") / "vision"
    shutil.copytree(folders.vision, vision)
    plant_outliers(vision)
    return dataclasses.replace(folders, vision=vision)


def test_auto_keeps_outliers_in_float(
    outlying: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = manifest_from_bundle(convert(outlying, tmp_path / "auto", vision_quants=("auto",)))
    assert [(v.file, v.quant) for v in auto.vision.variants] == [("vision.int8.onnx", "int8")]
    figures = auto.parity.figures["vision int8"]
    assert figures["relative_error"] <= figures["error_bound"] == int8.AUTO_ERROR
    assert 1 <= figures["float_matrices"] <= 7
    graph = onnx.load(str(tmp_path / "auto" / "vision.int8.onnx"), load_external_data=False).graph
    assert "MatMulInteger" in {node.op_type for node in graph.node}
    monkeypatch.setattr(int8, "_FLOAT_SHARES", ())
    plain = convert(outlying, tmp_path / "plain", vision_quants=("int8",), force=True)
    parity = manifest_from_bundle(plain).parity
    assert (
        parity.figures["vision int8"]["relative_error"]
        > 2 * judge.VISION_LIMITS["int8"].relative_error
    )
    assert not parity.passed


def test_auto_is_float_where_no_matrix_can_be_int8(
    checkpoint_of: Callable[[Spec], Folders], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "AUTO_ERROR", 1e-7)
    out = convert(checkpoint_of(SPEC), tmp_path / "out", vision_quants=("auto",))
    manifest = manifest_from_bundle(out)
    assert [(v.file, v.quant) for v in manifest.vision.variants] == [("vision.fp32.onnx", "fp32")]
    assert {path.name for path in out.iterdir()} == {*manifest.files, "manifest.json"}


def test_auto_excludes_what_it_may_become(
    checkpoint_of: Callable[[Spec], Folders], tmp_path: Path
) -> None:
    for other in ("int8", "fp32"):
        with pytest.raises(UsageError, match="excludes both"):
            convert(checkpoint_of(SPEC), tmp_path / "out", vision_quants=("auto", other))


def test_weights_lie_beside_the_graph(bundle: Path) -> None:
    """ONNX Runtime maps that file, so that loading needs little more memory than the weights."""
    manifest = manifest_from_bundle(bundle)
    graphs = {f"vision.{quant}.onnx" for quant in VISION_QUANTS}
    assert set(manifest.files) == {"lm.gguf", *graphs, *(f"{graph}.data" for graph in graphs)}
    for name in graphs:
        graph = onnx.load(str(bundle / name), load_external_data=False).graph
        inside = [t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
        assert max(tensor.ByteSize() for tensor in inside) < 2000
        assert (bundle / f"{name}.data").stat().st_mode == (bundle / name).stat().st_mode


@pytest.mark.parametrize("quant", ["Q8_0", "Q6_K", "Q4_K_M", "Q4_0"])
def test_quantized_language_models_caption(bundle_of: Bundles, quant: str) -> None:
    bundle = bundle_of(
        dataclasses.replace(SPEC, hidden=256, ffn=512, adapter="layers", calm=True), lm_quant=quant
    )
    manifest = manifest_from_bundle(bundle)
    assert manifest.lm.quant == quant
    assert manifest.parity.passed
    with Captioner.load(bundle, device="cpu") as captioner:
        ids = caption_ids(
            captioner, _picture(), instruction="What is it?", caption_tokens=16, stop_at_end=False
        )
    assert len(ids) == 16


def _picture() -> Image.Image:
    return Image.fromarray(gate_pictures(40)[3])


def test_progress_tells_of_every_stage(
    checkpoint_of: Callable[[Spec], Folders], tmp_path: Path
) -> None:
    import io
    import json

    from edgeprism.convert.options import ConvertOptions
    from edgeprism.progress import EventProgress

    stream = io.StringIO()
    folders = checkpoint_of(dataclasses.replace(SPEC, adapter="none"))
    convert_family(
        "prismcaptioner",
        tmp_path / "out",
        ConvertOptions(vision_quants=("fp32",), lm_quant="F16"),
        {"captioner": folders.captioner, "llm": folders.llm, "vision": folders.vision},
        EventProgress(stream),
    )
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    message = [event["text"] for event in events if event["event"] == "say"]
    assert any("has no llm_adapter/" in text for text in message)
    assert any(text.startswith("parity lm F16: relative_error") for text in message)
    totals = {e["text"]: e["total"] for e in events if e["event"] == "stage"}
    assert totals["Writing the language model"] == 2 * 9 + 3
    Progress().advance()  # a progress without display
