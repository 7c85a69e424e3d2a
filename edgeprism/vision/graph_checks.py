"""An ONNX graph held against what a vision graph needs, before ONNX Runtime opens it.

ONNX is a programming language: a graph of a kilobyte can loop for ever or ask for any amount of
memory, and some operators end the process if their inputs do not fit. A vision graph needs little
of it. It is a plain row of known operators over numbers, and all shapes follow from the shape of
the picture alone. So it takes the same time and memory for each picture, which a trial then shows.
Source of the field numbers: onnx.proto (public).
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeprism.errors import ModelError
from edgeprism.files.regular import open_regular
from edgeprism.vision.operators import (
    ELEMENT_BYTES,
    FLOAT,
    FLOATS,
    INT32,
    INT64,
    OPERATORS,
    Operator,
    Operators,
)
from edgeprism.vision.protobuf import Message

_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_GRAPH_NODES, _GRAPH_INITIALIZERS, _GRAPH_INPUTS, _GRAPH_OUTPUTS = 1, 5, 11, 12
_GRAPH_SPARSE = 15
_NODE_INPUTS, _NODE_OUTPUTS, _NODE_NAME, _NODE_OPERATOR = 1, 2, 3, 4
_NODE_ATTRIBUTES, _NODE_DOMAIN, _NODE_OVERLOAD = 5, 7, 8
_ATTRIBUTE_NAME, _ATTRIBUTE_NUMBER, _ATTRIBUTE_TENSOR, _ATTRIBUTE_NUMBERS = 1, 3, 5, 8
_ATTRIBUTE_REFUSED = {6: "a graph", 10: "tensors", 11: "graphs", 14: "a type", 15: "types",
                      21: "a reference", 22: "a sparse tensor", 23: "sparse tensors"}  # fmt: skip
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_INT32, _TENSOR_INT64 = 1, 2, 5, 7
_TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 8, 9, 13, 14
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_TYPE_ELEMENT = 1, 2, 1, 1
_ENTRY_KEY, _ENTRY_VALUE = 1, 2

_MAX_NODES = 50_000
_MAX_ELEMENTS = 1 << 27  # of a tensor that constants make: half a gigabyte of floats
_MAX_READ = 4096  # constants up to so many elements are read, to check their values
_LOOKUPS = ("Gather", "GatherBlockQuantized")
_SIZES = ("kernel_shape", "strides", "dilations")  # of convolutions and pools
_HINT = "Use a graph that `edgeprism convert` wrote, or get the model from a place that you trust."


@dataclass
class _Tensor:
    """What is known of a tensor of the graph."""

    kind: int  # ONNX's number of its type
    of_pixels: bool  # whether its values depend on the picture's pixels, or on a text's ids
    numbers: Sequence[int] | None = None  # the values of a short constant of whole numbers
    is_input: bool = False  # whether its values are those of an input of the graph


@dataclass
class _Graph:
    """The state of a check: every tensor that stands before the node at hand."""

    operators: Operators
    tensors: dict[str, _Tensor] = field(default_factory=dict)
    external: set[str] = field(default_factory=set)


def check_graph(
    path: Path, external: Sequence[str] = (), *, operators: Operators = OPERATORS
) -> None:
    """Check the ONNX graph at `path`.

    Parameters:
        external: names of files beside it that may hold its weights; their digests are known.
        operators: what it may have, by domain.

    Raises ModelError, which names the file and the first fault.
    """
    if path.suffix.lower() == ".ort":
        raise ModelError(f"{path}: a file in ONNX Runtime's own format, not an ONNX graph.", _HINT)
    try:
        with open_regular(path) as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("the file is empty")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _check_model(Message(memoryview(data)), external, operators)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{path}: not a graph that can run: {reason}.", _HINT) from error


def _check_model(model: Message, external: Sequence[str], operators: Operators) -> None:
    if _MODEL_GRAPH not in model:
        raise ValueError("it is no ONNX graph")
    for number, what in ((_MODEL_FUNCTIONS, "functions of its own"), (_MODEL_TRAINING, "training")):
        if number in model:
            raise ValueError(f"it has {what}")
    message = model.message(_MODEL_GRAPH)
    if _GRAPH_SPARSE in message:
        raise ValueError("it has sparse tensors")
    graph = _Graph(operators)
    for value in message.messages(_GRAPH_INPUTS):
        name = value.text(_VALUE_NAME)
        kind = value.message(_VALUE_TYPE).message(_TYPE_TENSOR).number(_TENSOR_TYPE_ELEMENT)
        _check_type(kind, f"the input {name}")
        graph.tensors[name] = _Tensor(kind, of_pixels=True, is_input=True)
    for tensor in message.messages(_GRAPH_INITIALIZERS):
        name = tensor.text(_TENSOR_NAME)
        if name in graph.tensors:
            raise ValueError(f"{name} stands twice")
        graph.tensors[name] = _constant(tensor, name, graph)
    nodes = message.bytes_of(_GRAPH_NODES)
    if len(nodes) > _MAX_NODES:
        raise ValueError(f"it has {len(nodes)} nodes; {_MAX_NODES} are supported")
    for node in nodes:
        _check_node(Message(node), graph)
    for value in message.messages(_GRAPH_OUTPUTS):
        if (name := value.text(_VALUE_NAME)) not in graph.tensors:
            raise ValueError(f"nothing makes its output {name}")
    if outside := sorted(graph.external - set(external)):
        raise ValueError(
            f"its weights lie in {outside[0]!r}; a bundle may have them in a file of the graph's "
            "name with .data at its end, which its manifest lists"
        )


def _check_type(kind: int, what: str) -> None:
    if kind not in ELEMENT_BYTES:
        raise ValueError(f"{what} is of a type that no vision graph needs")


def _constant(tensor: Message, what: str, graph: _Graph) -> _Tensor:
    """Check a tensor that the file holds; note where its data lies."""
    kind, dims = tensor.number(_TENSOR_TYPE), tensor.numbers(_TENSOR_DIMS)
    _check_type(kind, what)
    count = math.prod(dims)
    if any(length < 0 for length in dims) or count >> 40:
        raise ValueError(f"{what} has the shape {dims}")
    if tensor.number(_TENSOR_LOCATION) or _TENSOR_EXTERNAL in tensor:
        entries = {
            entry.text(_ENTRY_KEY): entry.text(_ENTRY_VALUE)
            for entry in tensor.messages(_TENSOR_EXTERNAL)
        }
        graph.external.add(entries.get("location", ""))
        return _Tensor(kind, of_pixels=False)
    numbers = _whole_numbers(tensor, kind) if count <= _MAX_READ else None
    if numbers is not None and len(numbers) != count:
        raise ValueError(f"{what} holds {len(numbers)} numbers for the shape {dims}")
    return _Tensor(kind, of_pixels=False, numbers=numbers)


def _whole_numbers(tensor: Message, kind: int) -> Sequence[int] | None:
    """Return the values of a constant of type int64 or int32, or None for other types."""
    code = {INT64: "q", INT32: "i"}.get(kind)
    if code is None:
        return None
    if _TENSOR_RAW in tensor:
        data = b"".join(tensor.bytes_of(_TENSOR_RAW))
        size = struct.calcsize(code)
        if len(data) % size:
            raise ValueError("a constant is cut short")
        return struct.unpack(f"<{len(data) // size}{code}", data)
    return tensor.numbers(_TENSOR_INT64 if kind == INT64 else _TENSOR_INT32)


# ---- nodes


def _check_node(node: Message, graph: _Graph) -> None:
    name, domain = node.text(_NODE_OPERATOR), node.text(_NODE_DOMAIN)
    node.text(_NODE_NAME)  # raises ValueError if it is not UTF-8
    operator = graph.operators.get(domain, {}).get(name)
    if operator is None or node.text(_NODE_OVERLOAD):
        full = f"{domain}.{name}" if domain else name
        raise ValueError(f"it has the operator {full}, which no vision graph needs")
    inputs = _inputs(node, name, graph)
    attributes = _attributes(node, name)
    _check_numbers(name, attributes)
    for place in operator.shaping:
        if place < len(inputs) and (tensor := inputs[place]) and tensor.of_pixels:
            if name in _LOOKUPS and tensor.is_input:
                continue  # a table is looked up by the ids of a text, which are in its range
            raise ValueError(f"a shape of its {name} depends on the picture's pixels")
    first = inputs[0] if inputs else None
    if operator.floats and first is not None and first.kind not in FLOATS:
        raise ValueError(f"its {name} works on whole numbers")
    _check_size(name, inputs)
    if name == "Div":
        _check_division(inputs)
    _add_outputs(node, name, operator, inputs, attributes, graph)


def _inputs(node: Message, name: str, graph: _Graph) -> list[_Tensor | None]:
    """Return what is known of each input; None stands for one that is left out."""
    inputs: list[_Tensor | None] = []
    for text in node.texts(_NODE_INPUTS):
        if text and text not in graph.tensors:
            raise ValueError(f"its {name} takes {text}, which nothing before it makes")
        inputs.append(graph.tensors[text] if text else None)
    return inputs


def _attributes(node: Message, name: str) -> dict[str, Message]:
    attributes: dict[str, Message] = {}
    for attribute in node.messages(_NODE_ATTRIBUTES):
        for number, what in _ATTRIBUTE_REFUSED.items():
            if number in attribute:
                raise ValueError(f"its {name} holds {what}")
        text = attribute.text(_ATTRIBUTE_NAME)
        if text in attributes:
            raise ValueError(f"its {name} has the attribute {text} twice")
        attributes[text] = attribute
    return attributes


def _check_numbers(name: str, attributes: dict[str, Message]) -> None:
    """Refuse attributes that make an operator divide by zero or never end."""
    for text in (*_SIZES, "group", "num_outputs", "num_heads", "num_groups", "kv_num_heads",
                 "block_size"):  # fmt: skip
        attribute = attributes.get(text)
        if attribute is None:
            continue
        numbers = attribute.numbers(_ATTRIBUTE_NUMBERS) or [attribute.number(_ATTRIBUTE_NUMBER)]
        if not all(1 <= number <= 1 << 16 for number in numbers):
            raise ValueError(f"its {name} has {text} {numbers}")


def _check_size(name: str, inputs: list[_Tensor | None]) -> None:
    """Refuse a tensor that constants alone make too large."""
    place = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}.get(name)
    if name == "Range":
        limits = [tensor.numbers for tensor in inputs if tensor and tensor.numbers]
        if any(abs(number) > _MAX_ELEMENTS for numbers in limits for number in numbers):
            raise ValueError("its Range makes too many numbers")
    if place is None or place >= len(inputs):
        return
    tensor = inputs[place]
    if tensor is None or tensor.numbers is None:
        return
    if math.prod(max(1, number) for number in tensor.numbers) > _MAX_ELEMENTS:
        raise ValueError(f"its {name} makes a tensor of the shape {list(tensor.numbers)[:8]}")


def _check_division(inputs: list[_Tensor | None]) -> None:
    """Refuse a division of whole numbers that might be one by 0, or of the least number by −1."""
    known = [tensor for tensor in inputs if tensor is not None]
    if all(tensor.kind in FLOATS for tensor in known):
        return
    divisors = known[-1].numbers
    if not divisors or min(divisors) < 1:
        raise ValueError("its Div divides whole numbers by what may be 0 or −1")


def _add_outputs(
    node: Message,
    name: str,
    operator: Operator,
    inputs: list[_Tensor | None],
    attributes: dict[str, Message],
    graph: _Graph,
) -> None:
    of_pixels = not operator.forgets and any(t is not None and t.of_pixels for t in inputs)
    kinds = _output_kinds(name, operator, inputs, attributes, graph)
    numbers = None
    if name == "Constant" and "value" in attributes:
        constant = attributes["value"].message(_ATTRIBUTE_TENSOR)
        numbers = _constant(constant, "a Constant", graph).numbers
    elif name == "Identity" and inputs[0] is not None:
        numbers = inputs[0].numbers
    for place, text in enumerate(node.texts(_NODE_OUTPUTS)):
        if text and text in graph.tensors:
            raise ValueError(f"{text} stands twice")
        kind = kinds[min(place, len(kinds) - 1)]
        is_input = name == "Reshape" and inputs[0] is not None and inputs[0].is_input
        graph.tensors[text] = _Tensor(kind, of_pixels, numbers, is_input)


def _output_kinds(
    name: str,
    operator: Operator,
    inputs: list[_Tensor | None],
    attributes: dict[str, Message],
    graph: _Graph,
) -> tuple[int, ...]:
    """Return the types of a node's outputs, the last for all further ones."""
    if operator.outputs:
        return operator.outputs
    if name == "Cast":
        kind = attributes["to"].number(_ATTRIBUTE_NUMBER) if "to" in attributes else 0
        _check_type(kind, "a Cast's result")
        return (kind,)
    if name in ("Constant", "ConstantOfShape"):
        if "value" in attributes:
            tensor = attributes["value"].message(_ATTRIBUTE_TENSOR)
            return (_constant(tensor, f"a {name}", graph).kind,)
        whole = any(text.startswith("value_int") for text in attributes)
        return (INT64 if whole else FLOAT,)
    if operator.like >= len(inputs) or (tensor_like := inputs[operator.like]) is None:
        raise ValueError(f"its {name} lacks an input")
    return (tensor_like.kind,)
