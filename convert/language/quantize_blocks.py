"""A float32 graph → weights in blocks of 32 whole numbers with a scale each, 8 bits a number.

These are GGUF's Q8_0, but for scales in float32. ONNX Runtime's `MatMulNBits` multiplies them with
rows that it rounds to 8 bits itself, in blocks likewise, so a row's result does not depend on the
rows beside it. A table that is looked up and multiplied is one set of blocks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeprism.convert.vision.pack_onnx import LEAST_BYTES

BLOCK = 32
_DOMAIN = "com.microsoft"
_ZERO = 128  # of unsigned numbers; both operators take it where they are given none
_INT8_ROWS = 4  # MatMulNBits' accuracy_level
_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}  # its attributes' defaults


def quantize_blocks(graph_path: Path, out: Path) -> None:
    """Quantize every constant matrix whose rows are whole blocks; write `out` and `out`.data."""
    model = onnx.load(str(graph_path))
    blocks = _Blocks({tensor.name: tensor for tensor in model.graph.initializer})
    nodes = []
    for node in model.graph.node:
        nodes += blocks.replace(node)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for name, tensor in blocks.constants.items() if name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*kept, *blocks.made.values()])
    if all(opset.domain != _DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    data = out.with_name(f"{out.name}.data")
    data.unlink(missing_ok=True)
    onnx.save_model(
        model, str(out), save_as_external_data=True, location=data.name, size_threshold=LEAST_BYTES
    )
    data.chmod(out.stat().st_mode)  # onnx lets nobody else read the weights


class _Blocks:
    """The constants of a graph, and what they became."""

    def __init__(self, constants: dict[str, onnx.TensorProto]) -> None:
        self.constants = constants
        self.made: dict[str, onnx.TensorProto] = {}

    def replace(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return what does the same as `node` with blocks, or `node` itself."""
        place = {"MatMul": 1, "Gemm": 1, "Gather": 0}.get(node.op_type)
        matrix = None if place is None else self.constants.get(node.input[place])
        if matrix is None or len(matrix.dims) != 2 or matrix.data_type != onnx.TensorProto.FLOAT:
            return [node]
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "Gather":
            return [node] if attributes.get("axis", 0) else self._lookup(node, matrix)
        if node.op_type == "Gemm" and {**_GEMM, **attributes} != {**_GEMM, "transB": 1}:
            return [node]
        return self._product(node, matrix, rows_out=node.op_type == "Gemm")

    def _lookup(self, node: onnx.NodeProto, matrix: onnx.TensorProto) -> list[onnx.NodeProto]:
        if matrix.dims[1] % BLOCK:
            return [node]
        data, scales = self._blocks_of(matrix, rows_out=True, flat=True)
        return [
            helper.make_node(
                "GatherBlockQuantized", [data, node.input[1], scales], node.output, node.name,
                domain=_DOMAIN, bits=8, block_size=BLOCK, gather_axis=0, quantize_axis=1,
            )
        ]  # fmt: skip

    def _product(
        self, node: onnx.NodeProto, matrix: onnx.TensorProto, *, rows_out: bool
    ) -> list[onnx.NodeProto]:
        n_out, n_in = matrix.dims if rows_out else reversed(matrix.dims)
        if n_in % BLOCK:
            return [node]
        data, scales = self._blocks_of(matrix, rows_out=rows_out)
        bias = list(node.input[2:])
        made = f"{node.output[0]}_before_bias" if bias else node.output[0]
        product = helper.make_node(
            "MatMulNBits", [node.input[0], data, scales], [made], node.name, domain=_DOMAIN,
            K=n_in, N=n_out, bits=8, block_size=BLOCK, accuracy_level=_INT8_ROWS,
        )  # fmt: skip
        if not bias:
            return [product]
        return [product, helper.make_node("Add", [made, *bias], node.output, f"{node.name}_bias")]

    def _blocks_of(
        self, matrix: onnx.TensorProto, *, rows_out: bool, flat: bool = False
    ) -> tuple[str, str]:
        """Return the names of a matrix's numbers and scales; `rows_out`: its rows are outputs."""
        names = (f"{matrix.name}_numbers{'_flat' * flat}", f"{matrix.name}_scales")
        if names[0] not in self.made:
            weight = numpy_helper.to_array(matrix)
            numbers, scales = to_blocks(weight if rows_out else weight.T)
            shape = (len(numbers), -1) if flat else numbers.shape
            self.made[names[0]] = numpy_helper.from_array(numbers.reshape(shape), names[0])
            self.made[names[1]] = numpy_helper.from_array(scales, names[1])
        return names


def to_blocks(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [out, in] → numbers uint8 [out, in / 32, 32] and scales float32 [out, in / 32]."""
    blocks = np.ascontiguousarray(weight, np.float32).reshape(len(weight), -1, BLOCK)
    scales = np.abs(blocks).max(axis=-1) / 127
    steps = np.maximum(scales, np.finfo(np.float32).tiny)[..., None]
    numbers = np.clip(np.rint(blocks / steps), -127, 127) + _ZERO
    return numbers.astype(np.uint8), scales
