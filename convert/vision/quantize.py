"""A float32 vision graph → dynamic int8, through ONNX Runtime's quantizer. Needs no torch."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx

from edgeprism.convert.vision.pack_onnx import copy_out, data_beside, move_out

INPUT, OUTPUT, NEWLINE, SEPARATOR = "pixels", "visual_tokens", "newline", "separator"
# between the two graphs of a captioner whose visual tokens depend on the instruction
FEATURES, IDS = "features", "ids"
# The patch embedding reads raw pixels and is 0.2 % of the work: int8 would only cost accuracy.
_ALWAYS_FLOAT = ".patch.weight"


def quantizable_nodes(graph_path: Path) -> dict[str, str]:
    """Return {node: weight} of the MatMuls that int8 may replace: their right side is constant."""
    model = onnx.load(str(graph_path), load_external_data=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        node.name: node.input[1]
        for node in model.graph.node
        if node.op_type == "MatMul"
        and node.input[1] in constants
        and not node.input[1].endswith(_ALWAYS_FLOAT)
    }


def quantize_int8(graph_path: Path, out: Path, full_range: bool, keep_float: set[str]) -> None:
    """Quantize `graph_path` to dynamic int8: weights signed per channel, activations unsigned.

    Writes `out` and its weights beside it, as `out`.data.
    Without `full_range`, weights use 7 bits so that sums cannot saturate on CPUs without VNNI.
    `keep_float` names the nodes that stay in float.

    ONNX Runtime's quantizer holds all weights of a graph several times and writes them into one
    protobuf file, which ends at 2 GB. So it is given the products of one input at a time, as a
    graph of their own, and memory depends on the largest of those.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel

    names = quantizable_nodes(graph_path).keys() - keep_float
    if not names:
        raise ValueError("no node is left to quantize")
    model = onnx.load(str(graph_path), load_external_data=False)
    graph, folder = model.graph, graph_path.parent
    nodes = [node for node in graph.node if node.name not in names]
    weights: dict[str, onnx.TensorProto] = {}
    data_path = data_beside(out)
    data_path.unlink(missing_ok=True)  # a session may still read those of an attempt before
    with data_path.open("wb") as data:
        for group in _groups([node for node in graph.node if node.name in names]):
            made = _quantized(_graph_of(group, model, folder), out, full_range).graph
            for tensor in made.initializer:
                move_out(tensor, data)
            # protobuf frees a message as a whole: a part of it would keep the weights in memory
            left = onnx.GraphProto()
            left.CopyFrom(made)
            weights |= {tensor.name: tensor for tensor in left.initializer}
            nodes += left.node
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.extend(weights.values())
        whole = ONNXModel(model)
        whole.topological_sort()
        whole.clean_initializers()  # of the float weights that no node reads any more
        for tensor in graph.initializer:
            if tensor.name not in weights:
                copy_out(tensor, folder, data)
    out.write_bytes(model.SerializeToString())


def _groups(nodes: Sequence[onnx.NodeProto]) -> list[list[onnx.NodeProto]]:
    """Return nodes in groups, within which they share inputs: the quantizer converts each once."""
    labels: dict[str, int] = {}
    for label, node in enumerate(nodes):
        met = {labels[name] for name in node.input if name in labels}
        joined = [name for name, other in labels.items() if other in met]
        labels.update(dict.fromkeys([*joined, *node.input], label))
    groups: dict[int, list[onnx.NodeProto]] = {}
    for node in nodes:
        groups.setdefault(labels[node.input[0]], []).append(node)
    return list(groups.values())


def _graph_of(
    nodes: Sequence[onnx.NodeProto], model: onnx.ModelProto, folder: Path
) -> onnx.ModelProto:
    """Return nodes of a graph, whose weights lie in `folder`, as a graph that holds its weights."""
    names = {name for node in nodes for name in node.input}
    weights = [
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor, str(folder)), tensor.name)
        for tensor in model.graph.initializer
        if tensor.name in names
    ]
    outputs = {name for node in nodes for name in node.output}
    inputs = sorted(names - outputs - {tensor.name for tensor in weights})
    part = onnx.helper.make_graph(
        nodes, "part", _floats(inputs), _floats(sorted(outputs)), initializer=weights
    )
    made = onnx.helper.make_model(
        part, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    # else the quantizer advises for every graph to simplify it first
    onnx.helper.set_model_props(made, {"onnx.quant.pre_process": "onnxruntime.quant"})
    return made


def _floats(names: Iterable[str]) -> list[onnx.ValueInfoProto]:
    """Return values of any shape."""
    return [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    ]


def _quantized(model: onnx.ModelProto, out: Path, full_range: bool) -> onnx.ModelProto:
    """Return a graph in int8; the quantizer writes it to a file beside `out`, which is removed."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    scratch = out.with_suffix(".quantizing")
    try:
        with _random_file_names():
            quantize_dynamic(
                model,
                scratch,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=not full_range,
                # the default, unsigned weights, are multiplied more slowly by CPUs
                weight_type=QuantType.QInt8,
            )
        return onnx.load(str(scratch))
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def _random_file_names() -> Iterator[None]:
    """Let the onnx package name its scratch files at random, inside the block.

    It names them by `uuid1`, for which the system opens a network socket to read this machine's
    address. A conversion opens none.
    """
    by_address = uuid.uuid1
    uuid.uuid1 = _random_uuid
    try:
        yield
    finally:
        uuid.uuid1 = by_address


def _random_uuid(node: int | None = None, clock_seq: int | None = None) -> uuid.UUID:
    return uuid.uuid4()


def int8_damage(graph_path: Path, inputs: Mapping[str, np.ndarray], full_range: bool) -> list[str]:
    """Return the quantizable nodes, worst first, by the error of each if it alone were int8.

    The float graph runs once on `inputs`, by their names, and returns every such node's input; int8
    is then simulated node by node: ‖ŷ − y‖ / ‖y‖.
    """
    model = onnx.load(str(graph_path), load_external_data=False)
    weights = quantizable_nodes(graph_path)
    taken = {node.name: node.input[0] for node in model.graph.node if node.name in weights}
    values = _values(graph_path, model, sorted(set(taken.values())), inputs)
    damage = {}
    tensors = {t.name: t for t in model.graph.initializer if t.name in set(weights.values())}
    for node, weight_name in weights.items():
        weight = onnx.numpy_helper.to_array(tensors[weight_name], str(graph_path.parent))
        x = values[taken[node]].reshape(-1, weight.shape[0])
        damage[node] = _simulated_error(x, weight, full_range)
    return sorted(damage, key=lambda node: damage[node], reverse=True)


def _values(
    graph_path: Path, model: onnx.ModelProto, names: Sequence[str], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Run a graph, and return what it computes under some names, which become its outputs."""
    import onnxruntime

    del model.graph.output[:]
    model.graph.output.extend(_floats(names))
    probe = graph_path.with_name(f"{graph_path.stem}.probe.onnx")
    probe.write_bytes(model.SerializeToString())
    try:
        session = onnxruntime.InferenceSession(str(probe), providers=["CPUExecutionProvider"])
        return dict(zip(names, session.run(None, dict(inputs)), strict=True))
    finally:
        probe.unlink()


def _simulated_error(x: np.ndarray, weight: np.ndarray, full_range: bool) -> float:
    """Return the relative error of x [rows, in] @ weight [in, out] under dynamic int8."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = np.float32(max((high - low) / 255, 1e-12))
    x_rounded = np.round(x / step) * step
    levels = np.float32(127 if full_range else 63)
    steps = np.maximum(np.abs(weight).max(axis=0) / levels, np.float32(1e-12))  # [out]
    exact = x @ weight
    error = x_rounded @ (np.round(weight / steps) * steps) - exact
    return float(np.linalg.norm(error) / max(float(np.linalg.norm(exact)), 1e-12))
