"""What a vision graph's file says of its shapes: the memory between its nodes, and its weights.

Exported graphs note the shape of each of these tensors. The nodes run in the file's order, and a
tensor is freed after the last node that reads it: so the most that stands at once can be counted.
Source of the field numbers: onnx.proto (public).
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgeprism.errors import COPY_AGAIN, ModelError
from edgeprism.files.regular import open_regular
from edgeprism.vision.operators import ELEMENT_BYTES, FLOAT, INT32, UINT8
from edgeprism.vision.protobuf import Message

_MODEL_GRAPH = 7
_GRAPH_NODES, _GRAPH_INITIALIZERS, _GRAPH_INPUTS, _GRAPH_OUTPUTS = 1, 5, 11, 12
_GRAPH_VALUES = 13
_NODE_INPUTS, _NODE_OUTPUTS, _NODE_NAME, _NODE_OPERATOR = 1, 2, 3, 4
_TENSOR_DIMS, _TENSOR_NAME = 1, 8
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR = 1, 2, 1
_TYPE_ELEMENT, _TYPE_SHAPE, _SHAPE_DIM, _DIM_VALUE, _DIM_NAME = 1, 2, 1, 1, 2
_PRODUCTS = ("MatMul", "MatMulInteger", "Gemm")
_SAME_MEMORY = ("Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten")
_OF_TYPE = {"MatMulInteger": INT32, "DynamicQuantizeLinear": UINT8}

TEXT_LENGTH = "length"  # the name in a connector's graph of how many ids a text has

_Shape = tuple[int, ...]


def working_bytes(path: Path, lengths: Mapping[str, int] | None = None) -> int:
    """Return the most bytes that stand between the nodes of a graph while it encodes one tile.

    Parameters:
        lengths: {name in the graph: value} of lengths that differ from tile to tile; the graph may
            also note multiples of them and sums, such as "4*tokens" and "length + 32".

    Raises ModelError, which names the file, for one that is no ONNX graph.
    """
    with _reading(path) as graph:
        return _most_at_once(graph, lengths or {})


def weights_of_nodes(path: Path) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes of the constants that each named node of a graph takes.

    Raises ModelError, which names the file, for one that is no ONNX graph.
    """
    with _reading(path) as graph:
        constants = _constants(graph)
        return {
            node.text(_NODE_NAME): [
                constants[name] for name in node.texts(_NODE_INPUTS) if name in constants
            ]
            for node in graph.messages(_GRAPH_NODES)
        }


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Message]:
    """Give the graph of a file; raise ModelError for anything in the block that is malformed."""
    try:
        with open_regular(path) as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        yield Message(memoryview(data)).message(_MODEL_GRAPH)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{path}: not a vision graph: {reason}.", COPY_AGAIN) from error


def _most_at_once(graph: Message, lengths: Mapping[str, int]) -> int:
    constants = _constants(graph)
    shapes, kinds = _known_shapes(graph, lengths)
    nodes = [
        (node.text(_NODE_OPERATOR), node.texts(_NODE_INPUTS), node.texts(_NODE_OUTPUTS))
        for node in graph.messages(_GRAPH_NODES)
    ]
    last_use = {name: i for i, (_, inputs, _) in enumerate(nodes) for name in inputs}
    sizes: dict[str, int] = {}
    live = most = 0
    for i, (operator, inputs, outputs) in enumerate(nodes):
        for place, name in enumerate(filter(None, outputs)):
            if name not in shapes:
                shapes[name] = _guessed(operator, inputs, shapes, constants) if not place else ()
            if operator in _SAME_MEMORY:  # its output stands where its input stood
                sizes[name] = sizes.pop(inputs[0], 0)
                continue
            kind = kinds.get(name) or _OF_TYPE.get(operator if not place else "", FLOAT)
            sizes[name] = math.prod(shapes[name]) * ELEMENT_BYTES.get(kind, 4)
            live += sizes[name]
        most = max(most, live)
        for name in {*inputs, *outputs}:
            if last_use.get(name, -1) <= i:
                live -= sizes.pop(name, 0)
    return most


def _constants(graph: Message) -> dict[str, _Shape]:
    return {
        tensor.text(_TENSOR_NAME): tuple(tensor.numbers(_TENSOR_DIMS))
        for tensor in graph.messages(_GRAPH_INITIALIZERS)
    }


def _known_shapes(
    graph: Message, lengths: Mapping[str, int]
) -> tuple[dict[str, _Shape], dict[str, int]]:
    """Return the shapes that the graph notes, for one tile, and the types of their elements."""
    shapes: dict[str, _Shape] = {}
    kinds: dict[str, int] = {}
    for field in (_GRAPH_INPUTS, _GRAPH_VALUES, _GRAPH_OUTPUTS):
        for value in graph.messages(field):
            tensor = value.message(_VALUE_TYPE).message(_TYPE_TENSOR)
            if _TYPE_SHAPE not in tensor:
                continue
            # any other length that is not noted is the number of tiles
            dims = [dim.number(_DIM_VALUE) or _named_length(dim.text(_DIM_NAME), lengths)
                    for dim in tensor.message(_TYPE_SHAPE).messages(_SHAPE_DIM)]  # fmt: skip
            name = value.text(_VALUE_NAME)
            shapes[name] = tuple(max(1, length) for length in dims)
            kinds[name] = tensor.number(_TYPE_ELEMENT)
    return shapes, kinds


def _named_length(text: str, lengths: Mapping[str, int]) -> int:
    """Return the length that a graph calls "name", "4*name" or "name + 32"; 1 for other names."""
    terms = [[factor.strip() for factor in term.split("*")] for term in text.split("+")]
    return sum(
        math.prod(int(f) if f.isdecimal() else lengths.get(f, 1) for f in factors)
        for factors in terms
    )


def _guessed(
    operator: str, inputs: list[str], shapes: dict[str, _Shape], constants: dict[str, _Shape]
) -> _Shape:
    """Return the shape of a node's first output where the graph does not note it."""
    if operator == "Shape":
        return ()  # a few numbers
    known = [shapes.get(name, constants.get(name, ())) for name in inputs]
    if operator in _PRODUCTS and len(known) > 1 and known[0] and known[1]:
        return (*known[0][:-1], known[1][-1])
    return max(known, key=math.prod, default=())
