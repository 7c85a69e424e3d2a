"""Count the operations of a vision graph."""

from __future__ import annotations

import math
from pathlib import Path

from edgeprism import Captioner


def picture_operations(captioner: Captioner, size: tuple[int, int]) -> float:
    """Count multiplications and additions for all tiles of a picture of `size` (width, height)."""
    graph = captioner.bundle.path / captioner.engines.vision_variant().file
    return tile_operations(graph) * captioner.cost(size).tiles


def tile_operations(path: Path) -> float:
    """Count multiplications and additions in the matrix products of the ONNX graph at `path`.

    The products of weights, attention and patches all count. Quantization changes nothing.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    for tensor in graph.initializer:
        if len(tensor.dims) > 1:  # shape inference may need the values of vectors alone
            tensor.ClearField("raw_data")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    total = 0.0
    for node in graph.node:
        if node.op_type in ("MatMul", "MatMulInteger"):
            total += 2.0 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    return total
