"""Dynamic int8, group by group, against one pass of ONNX Runtime's quantizer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxruntime.quantization
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprism.convert.vision.pack_onnx import LEAST_BYTES
from edgeprism.convert.vision.quantize import quantizable_nodes, quantize_int8

WIDTH = 64
X = np.random.default_rng(9).standard_normal((7, WIDTH), np.float32)
Node = tuple[str, str, Sequence[str], str]  # name, operator, inputs, output

# queries, keys and values of one input; one of each in the second layer
ATTENTION: tuple[Node, ...] = (
    ("norm", "Mul", ("x", "bias"), "n"),
    ("q", "MatMul", ("n", "wq"), "queries"),
    ("k", "MatMul", ("n", "wk"), "keys"),
    ("v", "MatMul", ("n", "wv"), "values"),
    ("turn", "Transpose", ("keys",), "turned"),
    ("scores", "MatMul", ("queries", "turned"), "scored"),  # no constant: it stays in float
    ("mix", "MatMul", ("scored", "values"), "mixed"),
    ("out", "MatMul", ("mixed", "wo"), "projected"),
    ("add", "Add", ("projected", "bias"), "added"),
    ("up", "MatMul", ("added", "wup"), "y"),
)
# matrices that two nodes read, once on what the other made, and rows that are constants
SHARED: tuple[Node, ...] = (
    ("first", "MatMul", ("x", "w"), "a"),
    ("again", "MatMul", ("a", "w"), "b"),
    ("learnt", "MatMul", ("rows", "w2"), "c"),
    ("other", "MatMul", ("rows", "w3"), "d"),
    ("sum", "Add", ("c", "d"), "e"),
    ("all", "ReduceSum", ("e",), "f"),
    ("plus", "Add", ("b", "f"), "g"),
    ("last", "MatMul", ("g", "w2"), "y"),
)
# what is no product of a matrix, and a patch embedding, which raw pixels go into
BESIDE: tuple[Node, ...] = (
    ("patches", "MatMul", ("x", "tower.patch.weight"), "p"),
    ("layer", "MatMul", ("p", "w"), "q"),
    ("gemm", "Gemm", ("q", "wgemm", "bias"), "r"),
    ("act", "Relu", ("r",), "s"),
    ("end", "MatMul", ("s", "w2"), "y"),
)
GRAPHS = {"attention": ATTENTION, "shared": SHARED, "beside": BESIDE}


def layers(n: int) -> tuple[Node, ...]:
    """A chain of products."""
    names = ["x", *(f"h{i}" for i in range(1, n)), "y"]
    return tuple((f"n{i}", "MatMul", (names[i], f"w{i}"), names[i + 1]) for i in range(n))


def write(nodes: Sequence[Node], folder: Path, width: int = WIDTH) -> Path:
    """Write a graph from x to y with random weights beside it."""
    made = [helper.make_node(op, inputs, [output], name) for name, op, inputs, output in nodes]
    outputs = {output for *_, output in nodes}
    random = np.random.default_rng(4)
    weights = []
    for name in dict.fromkeys(name for _, _, inputs, _ in nodes for name in inputs):
        if name != "x" and name not in outputs:
            shape = (width,) if name == "bias" else (5, width) if name == "rows" else (width, width)
            values = random.standard_normal(shape, np.float32) / 8
            weights.append(numpy_helper.from_array(values, name))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", width]) for n in "xy"]
    graph = helper.make_graph(made, "graph", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir()
    path = folder / "graph.onnx"
    onnx.save_model(
        model, path, save_as_external_data=True, location="graph.onnx.data", size_threshold=0
    )
    return path


def in_one_pass(graph: Path, out: Path, full_range: bool, keep_float: set[str]) -> None:
    onnxruntime.quantization.quantize_dynamic(
        graph,
        out,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=not full_range,
        weight_type=onnxruntime.quantization.QuantType.QInt8,
        nodes_to_quantize=[name for name in quantizable_nodes(graph) if name not in keep_float],
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )


def tensors(path: Path) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    return {
        tensor.name: (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        for tensor in onnx.load(path).graph.initializer
    }


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    made: np.ndarray = session.run(None, {"x": X})[0]
    return made


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(
    ("name", "keep_float"),
    [("attention", set()), ("attention", {"k", "up"}), ("shared", set()), ("beside", set())],
)
def test_groups_are_what_one_pass_makes(
    name: str, keep_float: set[str], full_range: bool, tmp_path: Path
) -> None:
    graph = write(GRAPHS[name], tmp_path / "graph")
    whole, grouped = tmp_path / "whole.onnx", tmp_path / "grouped.onnx"
    in_one_pass(graph, whole, full_range, keep_float)
    quantize_int8(graph, grouped, full_range, keep_float)
    onnx.checker.check_model(grouped)
    assert np.array_equal(run(grouped), run(whole))
    expected, actual = tensors(whole), tensors(grouped)
    # one pass writes a Gemm as MatMul and Add, with its matrix turned
    gemm = {"wgemm"} & expected.keys()
    assert {n: t for n, t in actual.items() if n not in gemm} == {
        n: t for n, t in expected.items() if n not in gemm
    }
    nodes, others = (onnx.load(path).graph.node for path in (grouped, whole))
    if not gemm:  # the nodes that wait for nothing may stand in another order
        assert {node.name: node for node in nodes} == {node.name: node for node in others}
        assert len(nodes) == len(others)
    n_int8 = len(quantizable_nodes(graph)) - len(keep_float)
    assert sum(node.op_type == "MatMulInteger" for node in nodes) == n_int8


def test_a_matrix_that_stays_in_float_for_one_node_is_not_rounded_for_it(tmp_path: Path) -> None:
    """One pass would hand both nodes the rounded matrix."""
    graph = write(SHARED, tmp_path / "graph")
    out = tmp_path / "out.onnx"
    quantize_int8(graph, out, True, {"last", "other"})
    before, after = tensors(graph), tensors(out)
    assert {"w2_quantized", "w2", "rows_quantized", "rows", "w3"} <= after.keys()
    assert "w" not in after
    assert all(after[name] == before[name] for name in ("w2", "w3", "rows"))
    assert not any(node.op_type == "DequantizeLinear" for node in onnx.load(out).graph.node)


def test_weights_lie_beside_the_graph(tmp_path: Path) -> None:
    graph = write(ATTENTION, tmp_path / "graph")
    (tmp_path / "out").mkdir()
    # the float weights' file has the name of the new one, in another folder
    out = tmp_path / "out" / "graph.onnx"
    quantize_int8(graph, out, True, {"k"})
    assert {path.name for path in out.parent.iterdir()} == {"graph.onnx", "graph.onnx.data"}
    files = {}
    for tensor in onnx.load(out, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        files[tensor.name] = entries.get("location")
        assert len(tensor.raw_data) < LEAST_BYTES
        assert int(entries.get("offset", 0)) % 4096 == 0
    matrices = {f"{name}_quantized" for name in ("wq", "wv", "wo", "wup")} | {"wk"}
    assert all(files[name] == "graph.onnx.data" for name in matrices)
    assert (out.with_name("graph.onnx.data").stat().st_mode & 0o777) == (out.stat().st_mode & 0o777)
    assert np.linalg.norm(run(out) - run(graph)) < 0.1 * np.linalg.norm(run(graph))


def sizes(n_layers: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return how many bytes the quantizer reads and writes at a time."""
    handed = []
    quantize = onnxruntime.quantization.quantize_dynamic

    def recorded(model: onnx.ModelProto, out: Path, **options: Any) -> None:
        size = model.ByteSize()
        quantize(model, out, **options)
        handed.append((size, out.stat().st_size))

    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime.quantization, "quantize_dynamic", recorded)
        graph = write(layers(n_layers), folder)
        quantize_int8(graph, folder / "out.onnx", True, set())
    return handed


def test_the_quantizer_holds_one_group_however_large_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does the one file in which int8 weights lie within a graph, which ends at 2 GB."""
    few, many = (sizes(n, tmp_path / f"{n}", monkeypatch) for n in (2, 9))
    assert (len(few), len(many)) == (2, 9)
    matrix = WIDTH * WIDTH
    assert all(4 * matrix < before < 4 * matrix + 1000 for before, _ in few + many)
    assert all(matrix < after < matrix + 2000 for _, after in few + many)
    graph = onnx.load(tmp_path / "9" / "out.onnx", load_external_data=False)
    assert graph.ByteSize() < 2 * matrix  # nine scales and zeros, no matrix


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_int8_weights_do_not_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    quantize = onnxruntime.quantization.quantize_dynamic

    def recorded(*arguments: Any, **options: Any) -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        held.append(next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
        quantize(*arguments, **options)

    monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", recorded)
    graph = write(layers(16), tmp_path / "graph", width=1024)
    quantize_int8(graph, tmp_path / "out.onnx", True, set())
    assert len(held) == 16
    assert held[-1] - held[3] < 4 * 1024  # KiB, of twelve matrices with 1024 KiB of int8 each


def test_nothing_unfinished_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = write(ATTENTION, tmp_path / "graph")
    quantize = onnxruntime.quantization.quantize_dynamic

    def interrupted(*arguments: Any, **options: Any) -> None:
        quantize(*arguments, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", interrupted)
    with pytest.raises(OSError, match="No space"):
        quantize_int8(graph, tmp_path / "out.onnx", True, set())
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".quantizing"]
    assert not (tmp_path / "out.onnx").exists()


def test_a_weights_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    graph = write(ATTENTION, tmp_path / "graph")
    data = graph.with_name("graph.onnx.data")
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises((OSError, ValueError)):
        quantize_int8(graph, tmp_path / "out.onnx", True, {"up"})
