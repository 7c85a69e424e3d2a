"""A float32 vision graph → dynamic int8, through ONNX Runtime's quantizer. Needs no torch."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx

from edgeprism.convert.vision.pack_onnx import move_weights_out

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
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = [node for node in quantizable_nodes(graph_path) if node not in keep_float]
    if not nodes:
        raise ValueError("no node is left to quantize")
    scratch = out.with_suffix(".quantizing")
    # its weights are within the file; those of `graph_path` lie beside it
    with _random_file_names(), _read_once():
        quantize_dynamic(
            graph_path,
            scratch,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=not full_range,
            # the default, unsigned weights, are multiplied more slowly by CPUs
            weight_type=QuantType.QInt8,
            nodes_to_quantize=nodes,
            # shape inference does not know ONNX Runtime's own operators, such as its attention
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    move_weights_out(scratch, out)
    scratch.unlink()


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


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Let ONNX Runtime's quantizer go on with the graph that it has read, inside the block.

    It would copy the graph, write the copy to a file and read that, to infer the shapes behind each
    Gemm that it has replaced by a MatMul. All weights would then stand in memory three times.
    """
    from onnxruntime.quantization import onnx_quantizer

    name = "save_and_reload_model_with_shape_infer"
    reload = getattr(onnx_quantizer, name, None)
    if reload is None:  # another version of ONNX Runtime
        yield
        return
    setattr(onnx_quantizer, name, lambda model: model)
    try:
        yield
    finally:
        setattr(onnx_quantizer, name, reload)


def _random_uuid(node: int | None = None, clock_seq: int | None = None) -> uuid.UUID:
    return uuid.uuid4()


def int8_damage(graph_path: Path, inputs: Mapping[str, np.ndarray], full_range: bool) -> list[str]:
    """Return the quantizable nodes, worst first, by the error of each if it alone were int8.

    The float graph runs once on `inputs`, by their names, and returns every such node's input; int8
    is then simulated node by node: ‖ŷ − y‖ / ‖y‖.
    """
    import onnxruntime

    model = onnx.load(str(graph_path), load_external_data=False)
    weights = quantizable_nodes(graph_path)
    taken = {node.name: node.input[0] for node in model.graph.node if node.name in weights}
    input_names = sorted(set(taken.values()))
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in input_names
    )
    probe = graph_path.with_name(f"{graph_path.stem}.probe.onnx")
    probe.write_bytes(model.SerializeToString())
    try:
        session = onnxruntime.InferenceSession(str(probe), providers=["CPUExecutionProvider"])
        values = dict(zip(input_names, session.run(None, dict(inputs)), strict=True))
    finally:
        probe.unlink()
    damage = {}
    tensors = {t.name: t for t in model.graph.initializer if t.name in set(weights.values())}
    for node, weight_name in weights.items():
        weight = onnx.numpy_helper.to_array(tensors[weight_name], str(graph_path.parent))
        x = values[taken[node]].reshape(-1, weight.shape[0])
        damage[node] = _simulated_error(x, weight, full_range)
    return sorted(damage, key=lambda node: damage[node], reverse=True)


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
