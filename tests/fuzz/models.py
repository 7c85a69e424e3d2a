"""Mutations of models that keep the file's form: a GGUF's settings and tensors, a graph's nodes."""

from __future__ import annotations

import random
import re
import struct

import onnx

from tests.fuzz.mutate import NUMBERS, mutate_bytes

_SETTING = re.compile(rb"(?:internlm2|general|tokenizer\.ggml)\.[a-z_.]+")
_TENSOR = re.compile(rb"(?:blk\.\d+|token_embd|output|output_norm)(?:\.[a-z_]+)*\.weight")
_FORMS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q",
          11: "<q", 12: "<d"}  # fmt: skip
_OPERATORS = (
    "GatherND", "OneHot", "Loop", "If", "Scan", "RandomNormal", "RandomUniformLike", "NonZero",
    "ConstantOfShape", "Expand", "Tile", "Pad", "Div", "Mod", "Range", "ConvTranspose", "Conv",
    "Resize", "Gather", "ScatterND", "TopK", "Reshape", "Split", "Einsum", "LSTM", "SequenceEmpty",
)  # fmt: skip


def mutate_gguf(rng: random.Random, whole: bytes) -> bytes:
    """Return the GGUF with some settings or tensor descriptions changed, or any of its head."""
    end = whole.rfind(b"output_norm.weight") + 200  # the weights come after the descriptions
    head = bytearray(whole[:end])
    for _ in range(rng.choice((1, 1, 2, 4))):
        match rng.randrange(3):
            case 0:
                _change_setting(rng, head)
            case 1:
                _change_tensor(rng, head)
            case _:
                head[:] = mutate_bytes(rng, [bytes(head)])
    return bytes(head) + whole[end:]


def _change_setting(rng: random.Random, head: bytearray) -> None:
    places = [match.end() for match in _SETTING.finditer(head)]
    if not places or (at := rng.choice(places)) + 12 > len(head):
        return
    (kind,) = struct.unpack_from("<I", head, at)
    form = _FORMS.get(kind, "<Q")  # of a text or a list, the length
    _write_number(rng, head, at + 4, form)


def _change_tensor(rng: random.Random, head: bytearray) -> None:
    places = [match.end() for match in _TENSOR.finditer(head)]
    if places:
        # after a name: number of dimensions, the dimensions, the type, the offset
        field, form = rng.choice(((0, "<I"), (4, "<Q"), (12, "<Q"), (20, "<I"), (24, "<Q")))
        _write_number(rng, head, rng.choice(places) + field, form)


def _write_number(rng: random.Random, head: bytearray, at: int, form: str) -> None:
    size = struct.calcsize(form)
    if at + size > len(head):
        return
    (before,) = struct.unpack_from(form, head, at)
    if form in ("<f", "<d"):
        head[at : at + size] = struct.pack(form, rng.choice((0.0, -1.0, 1e30, float("nan"))))
        return
    number = rng.choice((*NUMBERS, before + 1, before * 2, before // 2)) & ((1 << 8 * size) - 1)
    head[at : at + size] = number.to_bytes(size, "little")


def mutate_graph(rng: random.Random, whole: bytes) -> bytes:
    """Return the graph with some nodes, weights or inputs changed; sometimes any of its bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, [whole])
    model = onnx.load_model_from_string(whole)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change_graph(rng, model.graph)
    data: bytes = model.SerializeToString()
    return data


def _change_graph(rng: random.Random, graph: onnx.GraphProto) -> None:
    node = rng.choice(graph.node)
    match rng.randrange(7):
        case 0:
            node.op_type = rng.choice(_OPERATORS)
        case 1 if node.attribute:
            attribute = rng.choice(node.attribute)
            attribute.i = rng.choice(NUMBERS) - (1 << 63 if rng.random() < 0.3 else 0) & (1 << 62)
            attribute.ints[:] = [rng.choice((0, -1, 1, 2, 1 << 31, 1 << 40))] * len(attribute.ints)
        case 2 if len(node.input) > 1:
            node.input[:] = list(node.input)[::-1]
        case 3:
            node.input[:] = [*node.input, rng.choice(rng.choice(graph.node).output)]
        case 4:
            tensor = rng.choice(graph.initializer)
            tensor.dims[:] = [rng.choice((0, 1, 2, 1 << 20, 1 << 40))] * len(tensor.dims)
        case 5:
            rng.choice(graph.initializer).data_type = rng.randrange(24)
        case _:
            graph.node.remove(node)
