"""A float32 graph → weights in blocks of 32 whole numbers with a scale each, 8 or 4 bits a number.

With 8 bits these are GGUF's Q8_0, but for scales in float32. ONNX Runtime's `MatMulNBits`
multiplies them with rows that it rounds to 8 bits itself, in blocks likewise, so a row's result
does not depend on the rows beside it. A table that is looked up and multiplied is one set of
blocks. One matrix at a time is in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeprism.convert.vision.pack_onnx import LEAST_BYTES

BLOCK = 32
_DOMAIN = "com.microsoft"
_INT8_ROWS = 4  # MatMulNBits' accuracy_level
_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}  # its attributes' defaults
_PAGE = 4096  # runtimes memory-map the weights


def quantize_blocks(graph_path: Path, out: Path, bits: int = 8) -> None:
    """Quantize every constant matrix whose rows are whole blocks; write `out` and `out`.data.

    `bits` is 8, or 4 for half the memory and coarser weights.
    """
    model = onnx.load(str(graph_path), load_external_data=False)
    data = out.with_name(f"{out.name}.data")
    nodes = []
    with data.open("wb") as file:
        blocks = _Blocks(model.graph, graph_path.parent, file, bits)
        for node in model.graph.node:
            nodes += blocks.replace(node)
        used = {name for node in nodes for name in node.input}
        kept = [blocks.write(name, blocks.read(name)) for name in blocks.constants if name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*kept, *blocks.made.values()])
    if all(opset.domain != _DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    out.write_bytes(model.SerializeToString())


class _Blocks:
    """The constants of a graph, and what they became."""

    def __init__(self, graph: onnx.GraphProto, folder: Path, file: BinaryIO, bits: int) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.made: dict[str, onnx.TensorProto] = {}
        self.folder, self.file, self.bits = folder, file, bits

    def read(self, name: str) -> np.ndarray:
        """Return the numbers of a constant."""
        values: np.ndarray = numpy_helper.to_array(self.constants[name], str(self.folder))
        return values

    def write(self, name: str, values: np.ndarray) -> onnx.TensorProto:
        """Return a constant whose numbers lie in the weights' file, unless they are few."""
        tensor = numpy_helper.from_array(values, name)
        if len(tensor.raw_data) < LEAST_BYTES:
            return tensor
        self.file.write(bytes(-self.file.tell() % _PAGE))
        where = {"location": Path(self.file.name).name, "offset": self.file.tell(),
                 "length": len(tensor.raw_data)}  # fmt: skip
        self.file.write(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

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
                domain=_DOMAIN, bits=self.bits, block_size=BLOCK, gather_axis=0, quantize_axis=1,
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
            K=n_in, N=n_out, bits=self.bits, block_size=BLOCK, accuracy_level=_INT8_ROWS,
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
            weight = self.read(matrix.name)
            numbers, scales = to_blocks(weight if rows_out else weight.T, self.bits)
            shape = (len(numbers), -1) if flat else numbers.shape
            self.made[names[0]] = self.write(names[0], numbers.reshape(shape))
            if names[1] not in self.made:
                self.made[names[1]] = self.write(names[1], scales)
        return names


def to_blocks(weight: np.ndarray, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Weights [out, in] → numbers uint8 [out, in / 32, 4 · bits], scales float32 [out, in / 32].

    A number is what was rounded plus half of the range, which both operators take off where they
    are given no other. With 4 bits a byte has two of them, the first in its lower half.
    """
    blocks = np.ascontiguousarray(weight, np.float32).reshape(len(weight), -1, BLOCK)
    zero = 1 << (bits - 1)
    scales = np.abs(blocks).max(axis=-1) / (zero - 1)
    steps = np.maximum(scales, np.finfo(np.float32).tiny)[..., None]
    numbers = (np.clip(np.rint(blocks / steps), 1 - zero, zero - 1) + zero).astype(np.uint8)
    if bits == 4:
        numbers = numbers[..., ::2] | numbers[..., 1::2] << 4
    return numbers, scales
