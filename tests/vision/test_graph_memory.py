"""What a vision graph's file says of its shapes: memory between nodes, weights of convolutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprism.bench.work import Operations, nodes_to_operations
from edgeprism.errors import ModelError
from edgeprism.vision.graph_memory import weights_of_nodes, working_bytes
from edgeprism.vision.onnx import profile_graph

FILTERS = (5, 3, 2, 2)  # [out, in, down, across]
PIXELS, PATCHES = (1, 3, 8, 8), (1, 5, 4, 4)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A convolution in patches, without the shapes of what stands between its nodes."""
    weight = numpy_helper.from_array(np.ones(FILTERS, np.float32), "filters")
    nodes = [
        helper.make_node("Conv", ["pixels", "filters"], ["patches"], "patch", strides=[2, 2]),
        helper.make_node("Sigmoid", ["patches"], ["gate"], "gate"),
        helper.make_node("Mul", ["patches", "gate"], ["gated"], "mul"),
        helper.make_node("Flatten", ["gated"], ["rows"], "flatten"),
    ]
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, PIXELS)]
    outputs = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, (1, 80))]
    made = helper.make_graph(nodes, "patches", inputs, outputs, [weight])
    made.value_info.append(helper.make_tensor_value_info("patches", TensorProto.FLOAT, PATCHES))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "graph.onnx"
    onnx.save(model, path)
    return path


def test_what_stands_between_nodes(graph: Path) -> None:
    """Patches, their gate and the product of both: 80 floats each; flattening takes nothing."""
    assert working_bytes(graph) == 3 * 80 * 4


def test_convolutions_count(graph: Path) -> None:
    assert weights_of_nodes(graph)["patch"] == [FILTERS]
    counted = nodes_to_operations(profile_graph(graph, np.zeros(PIXELS, np.float32)))
    assert counted == Operations(float32=2.0 * 80 * 3 * 2 * 2)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x3a\xff\x01"])
def test_files_that_are_no_graph(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a vision graph"):
        working_bytes(path)


def test_the_built_in_graph_needs_little() -> None:
    """Its widest tensor has 81 patches of 1,024 floats; a few stand beside each other."""
    path = Path(__file__).parents[2] / "models" / "nano" / "bundle" / "vision.int8.onnx"
    widest = 81 * 1024 * 4
    assert 2 * widest <= working_bytes(path) <= 4 * widest
