"""Write an ONNX graph node by node, its weights into a file beside it, without holding them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

# From opset 20 on, Gelu is a single operator; every onnxruntime since 1.17 runs it.
_OPSET = 20
_IR_VERSION = 10  # onnxruntime since 1.18 reads it
_ALIGNMENT = 4096  # a memory page: runtimes memory-map the weights
FUSED = "com.microsoft"  # ONNX Runtime's own operators


class GraphWriter:
    """A graph at `path` that grows node by node; its weights lie in `path`.data.

    Each method returns the name of what its node makes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = path.with_name(f"{path.name}.data").open("wb")
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._notes: list[ValueInfoProto] = []

    def __enter__(self) -> GraphWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._data.close()

    def weight(self, name: str, values: np.ndarray) -> str:
        """Add a float32 constant, stored beside the graph."""
        values = np.ascontiguousarray(values, dtype=np.float32)
        self._data.write(bytes(-self._data.tell() % _ALIGNMENT))
        tensor = TensorProto(name=name, dims=values.shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", f"{self.path.name}.data"),
            ("offset", str(self._data.tell())),
            ("length", str(values.nbytes)),
        ):
            tensor.external_data.add(key=key, value=value)
        self._data.write(values.data)  # `tofile` would not say that the disk is full
        self._constants[name] = tensor
        return name

    def integers(self, *values: int) -> str:
        """Add a constant of whole numbers, such as a shape; the same numbers stand once."""
        name = f"integers_{'_'.join(map(str, values))}".replace("-", "minus")
        array = np.array(values, np.int64)
        self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def whole(self, value: int) -> str:
        """Add a scalar constant of type int64."""
        name = f"whole_{value}".replace("-", "minus")
        self._constants[name] = numpy_helper.from_array(np.array(value, np.int64), name)
        return name

    def number(self, value: float) -> str:
        """Add a scalar float32 constant."""
        name = f"number_{value!r}"
        self._constants[name] = numpy_helper.from_array(np.array(value, np.float32), name)
        return name

    def add(
        self,
        operator: str,
        *inputs: str,
        domain: str = "",
        **attributes: float | str | Sequence[int],
    ) -> str:
        """Add a node of one output."""
        name = f"{operator}_{len(self._nodes)}"
        node = helper.make_node(operator, inputs, [name], name=name, domain=domain)
        node.attribute.extend(
            helper.make_attribute(key, value) for key, value in attributes.items()
        )
        self._nodes.append(node)
        return name

    def matmul(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
        """x @ weight [in, out] + bias; the int8 quantizer recognises constant right sides only."""
        y = self.add("MatMul", x, self.weight(f"{name}.weight", weight))
        return y if bias is None else self.add("Add", y, self.weight(f"{name}.bias", bias))

    def norm(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray, eps: float) -> str:
        """Add a layer norm over the last dimension."""
        parts = self.weight(f"{name}.weight", weight), self.weight(f"{name}.bias", bias)
        return self.add("LayerNormalization", x, *parts, axis=-1, epsilon=eps)

    def rms_norm(self, x: str, name: str, weight: np.ndarray, eps: float) -> str:
        """Add a root-mean-square norm over the last dimension."""
        square = self.add("ReduceMean", self.add("Mul", x, x), self.integers(-1), keepdims=1)
        root = self.add("Sqrt", self.add("Add", square, self.number(eps)))
        return self.add("Mul", self.add("Div", x, root), self.weight(f"{name}.weight", weight))

    def reshaped(self, x: str, *shape: int, order: Sequence[int] = ()) -> str:
        """Reshape to `shape`, where 0 keeps the batch, and then transpose to `order`, if any."""
        y = self.add("Reshape", x, self.integers(*shape))
        return self.add("Transpose", y, perm=list(order)) if order else y

    def cut(self, x: str, axis: int, start: int, stop: int) -> str:
        """Take x[start:stop] along `axis`."""
        return self.add("Slice", x, *(self.integers(n) for n in (start, stop, axis)))

    def shape_of(self, *lengths: int | str) -> str:
        """Return a shape from lengths that are known and names of one-element tensors."""
        parts = [self.integers(n) if isinstance(n, int) else n for n in lengths]
        return self.add("Concat", *parts, axis=0)

    def shaped(self, x: str, *lengths: int | str, order: Sequence[int] = ()) -> str:
        """Reshape to lengths as `shape_of` takes them, and then transpose to `order`, if any."""
        y = self.add("Reshape", x, self.shape_of(*lengths))
        return self.add("Transpose", y, perm=list(order)) if order else y

    def note(self, x: str, *lengths: int | str) -> None:
        """Note the shape of a float tensor without the batch; `graph_memory` reads it.

        A length that differs from picture to picture has a name, or is a multiple: "4*tokens".
        """
        shape = ["n", *lengths]
        self._notes.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, shape))

    def finish(
        self,
        source: tuple[str, Sequence[int | str]],
        result: tuple[str, str, Sequence[int | str]],
    ) -> Path:
        """Write the graph.

        Parameters:
            source: name of the uint8 input, and its shape without the batch.
            result: what the output is made from, the output's name, its shape without the batch.
                A length that differs from picture to picture has a name.
        """
        made_from, output, shape = result
        self._nodes.append(helper.make_node("Identity", [made_from], [output], name=output))
        graph = helper.make_graph(
            self._nodes,
            "vision",
            [helper.make_tensor_value_info(source[0], TensorProto.UINT8, ["n", *source[1]])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", *shape])],
            list(self._constants.values()),
            value_info=self._notes,
        )
        model = helper.make_model(
            graph,
            producer_name="edgeprism",
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(FUSED, 1)],
        )
        self._data.close()
        self.path.write_bytes(model.SerializeToString())
        return self.path
