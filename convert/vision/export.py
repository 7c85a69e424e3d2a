"""The vision module → ONNX graphs in float32 and float16, through torch's exporter."""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnx
import onnx_ir
import torch

from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.convert.vision.graph import GraphModule
    from edgeprism.convert.vision.weights import VisionWeights

# From opset 20 on, Gelu and LayerNormalization are single operators; every onnxruntime since 1.17
# runs it.
_OPSET = 20
_ALIGNMENT = 4096  # a memory page: runtimes memory-map the weights
_ONNX_TYPES = {torch.float32: onnx_ir.DataType.FLOAT, torch.float16: onnx_ir.DataType.FLOAT16}


def export_graph(module: GraphModule, weights: VisionWeights, work: Path, stem: str) -> Path:
    """Export the graph as `work`/`stem`.onnx and its weights as `stem`.onnx.data."""
    graph = trace_graph(module)
    path = work / f"{stem}.onnx"
    _write_weights(graph, module, weights, path.with_name(f"{path.name}.data"))
    model = onnx_ir.to_proto(graph)
    _strip_notes(model)
    _name_lengths(model, module.lengths)
    path.write_bytes(model.SerializeToString())
    return path


def trace_graph(module: GraphModule) -> onnx_ir.Model:
    """Return what the module computes, with its placeholders in the place of weights."""
    inputs = module.inputs()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            module.arranged([example for example, _ in inputs.values()]),
            dynamo=True,
            input_names=list(inputs),
            output_names=list(module.outputs),
            dynamic_shapes=module.arranged([lengths for _, lengths in inputs.values()]),
            opset_version=_OPSET,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no graph")
    return program.model


def _write_weights(
    model: onnx_ir.Model, module: GraphModule, weights: VisionWeights, data_path: Path
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
                raise _not_finite(weights.origin(name), module.dtype)
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
            # `tofile` would not say that the disk is full
            data.write(tensor.contiguous().numpy().data)


def _not_finite(origin: str, dtype: torch.dtype) -> CheckpointError:
    return CheckpointError(
        f"{origin}: values that are not finite, or too large for "
        f"{str(dtype).removeprefix('torch.')}.",
        "Download the checkpoint again, or leave fp16 out of `vision_quants`."
        if dtype == torch.float16
        else "Download the checkpoint again.",
    )


def _name_lengths(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Give the lengths that match a pattern of `names` the name that belongs to it."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for length in value.type.tensor_type.shape.dim:
            for pattern, name in names.items():
                if re.fullmatch(pattern, length.dim_param):
                    length.dim_param = name


def _strip_notes(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes, which hold source paths of the exporting machine."""
    for message in (model, model.graph, *model.graph.node, *model.graph.input,
                    *model.graph.output, *model.graph.value_info,
                    *model.graph.initializer):  # fmt: skip
        del message.metadata_props[:]
        message.doc_string = ""
