"""The vision module → ONNX graphs: float32, float16, and dynamic int8 through Optimum."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnx_ir
import torch

from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.convert.vision.graph import VisionGraph
    from edgeprism.convert.vision.weights import VisionWeights

INPUT, OUTPUT, NEWLINE = "pixels", "visual_tokens", "newline"
# From opset 20 on, Gelu and LayerNormalization are single operators; every onnxruntime since 1.17
# runs it.
_OPSET = 20
# The patch embedding reads raw pixels and is 0.2 % of the work: int8 would only cost accuracy.
_ALWAYS_FLOAT = ".patch.weight"
_ALIGNMENT = 4096  # a memory page: runtimes memory-map the weights
_ONNX_TYPES = {torch.float32: onnx_ir.DataType.FLOAT, torch.float16: onnx_ir.DataType.FLOAT16}


def export_graph(module: VisionGraph, weights: VisionWeights, work: Path, stem: str) -> Path:
    """Export the graph as `work`/`stem`.onnx and its weights as `stem`.onnx.data."""
    size = module.image_size
    # two pictures: torch would turn a batch size of one into a constant
    example = torch.zeros((2, size, size, 3 * module.n_views), dtype=torch.uint8)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT, NEWLINE] if module.newline_row is not None else [OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("n", min=1, max=1024)},),
            opset_version=_OPSET,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no graph")
    path = work / f"{stem}.onnx"
    _write_weights(program.model, module, weights, path.with_name(f"{path.name}.data"))
    model = onnx_ir.to_proto(program.model)
    _strip_notes(model)
    path.write_bytes(model.SerializeToString())
    return path


def _write_weights(
    model: onnx_ir.Model, module: VisionGraph, weights: VisionWeights, data_path: Path
) -> None:
    """Write the checkpoint's weights, one at a time, in place of the module's placeholders."""
    initializers = model.graph.initializers
    parameters = dict(module.named_parameters())
    missing = [name for name in parameters if name not in initializers]
    if missing:
        raise RuntimeError(f"the exporter dropped or renamed {', '.join(missing)}")
    with data_path.open("wb") as data:
        for name, parameter in parameters.items():
            tensor = weights.read(name, module.dtype)
            if tensor.shape != parameter.shape:
                raise RuntimeError(f"{name}: {list(tensor.shape)}, not {list(parameter.shape)}")
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"The vision weights that become {name} hold values that are not finite, or "
                    f"too large for {str(module.dtype).removeprefix('torch.')}.",
                    "Download the checkpoint again, or leave fp16 out of `vision_quants`.",
                )
            data.write(bytes(-data.tell() % _ALIGNMENT))
            initializers[name].const_value = onnx_ir.ExternalTensor(
                data_path.name,
                data.tell(),
                tensor.nbytes,
                _ONNX_TYPES[module.dtype],
                shape=onnx_ir.Shape(tensor.shape),
                name=name,
                base_dir=data_path.parent,
            )
            tensor.numpy().tofile(data)


def _strip_notes(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes, which hold source paths of the exporting machine."""
    for message in (model, model.graph, *model.graph.node, *model.graph.input,
                    *model.graph.output, *model.graph.value_info,
                    *model.graph.initializer):  # fmt: skip
        del message.metadata_props[:]
        message.doc_string = ""


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

    Without `full_range`, weights use 7 bits so that sums cannot saturate on CPUs without VNNI.
    `keep_float` names the nodes that stay in float.
    """
    from onnxruntime.quantization import QuantType
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    nodes = [node for node in quantizable_nodes(graph_path) if node not in keep_float]
    if not nodes:
        raise ValueError("no node is left to quantize")
    config = AutoQuantizationConfig.avx2(
        is_static=False,
        per_channel=True,
        reduce_range=not full_range,
        nodes_to_quantize=nodes,
        operators_to_quantize=["MatMul"],
    )
    # Optimum's preset has unsigned weights, which CPUs multiply more slowly
    config.weights_dtype = QuantType.QInt8
    scratch = out.with_suffix(".quantizing")
    scratch.mkdir()
    marked = _marked_as_inferred(graph_path)
    try:
        ORTQuantizer(marked).quantize(config, save_dir=scratch, file_suffix="int8")
        (scratch / f"{marked.stem}_int8.onnx").replace(out)
    finally:
        marked.unlink()
        shutil.rmtree(scratch, ignore_errors=True)


def _marked_as_inferred(graph_path: Path) -> Path:
    """Copy the graph (not its weights) and mark its shapes as inferred, which they are.

    Without the mark the quantizer infers them twice and copies all weights each time.
    """
    model = onnx.load(str(graph_path), load_external_data=False)
    model.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")
    path = graph_path.with_name(f"{graph_path.stem}-marked.onnx")
    path.write_bytes(model.SerializeToString())
    return path


def int8_damage(graph_path: Path, pixels: np.ndarray, full_range: bool) -> list[str]:
    """Return the quantizable nodes, worst first, by the error of each if it alone were int8.

    The float graph runs once on the first of `pixels` [n, size, size, 3] and returns every such
    node's input; int8 is then simulated node by node: ‖ŷ − y‖ / ‖y‖.
    """
    import onnxruntime

    model = onnx.load(str(graph_path), load_external_data=False)
    weights = quantizable_nodes(graph_path)
    inputs = {node.name: node.input[0] for node in model.graph.node if node.name in weights}
    input_names = sorted(set(inputs.values()))
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in input_names
    )
    probe = graph_path.with_name(f"{graph_path.stem}.probe.onnx")
    probe.write_bytes(model.SerializeToString())
    try:
        session = onnxruntime.InferenceSession(str(probe), providers=["CPUExecutionProvider"])
        values = dict(zip(input_names, session.run(None, {INPUT: pixels[:1]}), strict=True))
    finally:
        probe.unlink()
    damage = {}
    tensors = {t.name: t for t in model.graph.initializer if t.name in set(weights.values())}
    for node, weight_name in weights.items():
        weight = onnx.numpy_helper.to_array(tensors[weight_name], str(graph_path.parent))
        x = values[inputs[node]].reshape(-1, weight.shape[0])
        damage[node] = _simulated_error(torch.from_numpy(x), torch.tensor(weight), full_range)
    return sorted(damage, key=lambda node: damage[node], reverse=True)


def _simulated_error(x: torch.Tensor, weight: torch.Tensor, full_range: bool) -> float:
    """Return the relative error of x [rows, in] @ weight [in, out] under dynamic int8."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = max((high - low) / 255, 1e-12)
    x_rounded = (x / step).round() * step
    levels = 127 if full_range else 63
    steps = (weight.abs().amax(dim=0) / levels).clamp_min(1e-12)  # [out]
    exact = x @ weight
    error = x_rounded @ ((weight / steps).round() * steps) - exact
    return float(error.norm() / exact.norm().clamp_min(1e-12))
