"""Pack an ONNX graph and its external weights into one file without holding them in memory.

An ONNX file is a protobuf message, and a protobuf field is (tag, length, bytes). This module writes
the small graph as it is and copies the big tensors from the weights file into their places, so
packing 1.7 GB needs a few MB of memory. Source of the field numbers: onnx.proto (public).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import onnx

# protobuf refuses messages of 2 GiB; 1 MiB is left for headers
MAX_SINGLE_FILE = (1 << 31) - (1 << 20)

_LENGTH_DELIMITED = 2
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9
_COPY_BYTES = 1 << 22


def pack_onnx(graph_path: Path, out_path: Path) -> list[Path]:
    """Write `graph_path` and its external weights as `out_path`; return the files written.

    This is one file, unless the weights exceed protobuf's limit: then the weights lie in
    `out_path`.data in the same folder.
    """
    model = onnx.load(str(graph_path), load_external_data=False)
    outside = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    if sum(_external(t)[2] for t in outside) > MAX_SINGLE_FILE:
        return _copy_with_external_data(model, graph_path.parent, out_path)
    inside = [t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    del model.graph.initializer[:]
    model.graph.initializer.extend(inside)
    graph_bytes = model.graph.SerializeToString()
    model.ClearField("graph")
    headers = [_tensor_header(t) for t in outside]
    sizes = [len(h) + _external(t)[2] for h, t in zip(headers, outside, strict=True)]
    leads = [_tag(_GRAPH_INITIALIZER) + _varint(size) for size in sizes]
    total = len(graph_bytes) + sum(map(len, leads)) + sum(sizes)
    with out_path.open("wb") as out:
        out.write(model.SerializeToString())
        out.write(_tag(_MODEL_GRAPH) + _varint(total))
        out.write(graph_bytes)
        for lead, header, tensor in zip(leads, headers, outside, strict=True):
            out.write(lead + header)
            _copy_tensor(tensor, graph_path.parent, out)
        out.flush()
        os.fsync(out.fileno())
    return [out_path]


def _tensor_header(tensor: onnx.TensorProto) -> bytes:
    """Return the tensor's message up to the start of its raw bytes."""
    header = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    size = _external(tensor)[2]
    return bytes(header.SerializeToString()) + _tag(_TENSOR_RAW_DATA) + _varint(size)


def _external(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """Return file, offset and length of an external tensor."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries["location"], int(entries.get("offset", 0)), int(entries["length"])


def _copy_tensor(tensor: onnx.TensorProto, folder: Path, out: BinaryIO) -> None:
    location, offset, length = _external(tensor)
    with (folder / location).open("rb") as source:
        source.seek(offset)
        while length:
            block = source.read(min(_COPY_BYTES, length))
            if not block:
                raise OSError(f"{folder / location} ends before tensor {tensor.name} does")
            out.write(block)
            length -= len(block)


def _copy_with_external_data(model: onnx.ModelProto, folder: Path, out_path: Path) -> list[Path]:
    data_path = out_path.with_name(out_path.name + ".data")
    with data_path.open("wb") as data:
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            data.write(bytes(-data.tell() % 4096))  # page-aligned: runtimes memory-map the file
            offset, length = data.tell(), _external(tensor)[2]
            _copy_tensor(tensor, folder, data)
            del tensor.external_data[:]
            for key, value in (
                ("location", data_path.name),
                ("offset", str(offset)),
                ("length", str(length)),
            ):
                tensor.external_data.add(key=key, value=value)
        data.flush()
        os.fsync(data.fileno())
    out_path.write_bytes(model.SerializeToString())
    return [out_path, data_path]


def _tag(field: int) -> bytes:
    return _varint(field << 3 | _LENGTH_DELIMITED)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
