"""Write an ONNX graph as two files: the small graph, and its weights beside it.

ONNX Runtime maps the weights' file into memory and lays the weights out anew for this CPU. Weights
inside the graph would be in memory twice more while it does: the file's bytes, and what protobuf
makes of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import onnx

_COPY_BYTES = 1 << 22
_ALIGNMENT = 4096  # a memory page: runtimes memory-map the weights
LEAST_BYTES = 1024  # of a tensor that lies in the weights' file


def pack_onnx(graph_path: Path, out_path: Path) -> list[Path]:
    """Write `graph_path` as `out_path`, its external weights as `out_path`.data; return both.

    Copies the weights block by block, so packing 1.7 GB needs a few MB of memory.
    """
    model = onnx.load(str(graph_path), load_external_data=False)
    data_path = data_beside(out_path)
    with data_path.open("wb") as data:
        for tensor in model.graph.initializer:
            copy_out(tensor, graph_path.parent, data)
    out_path.write_bytes(model.SerializeToString())
    return [out_path, data_path]


def data_beside(graph_path: Path) -> Path:
    """Return the path of a graph's weights."""
    return graph_path.with_name(f"{graph_path.name}.data")


def copy_out(tensor: onnx.TensorProto, folder: Path, data: BinaryIO) -> None:
    """Copy an external tensor from its file in `folder` to `data`, and let it refer to that."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _append(tensor, _blocks(tensor, folder), data)


def move_out(tensor: onnx.TensorProto, data: BinaryIO) -> None:
    """Move the bytes of a tensor that lies in its graph to `data`, unless they are few."""
    if len(tensor.raw_data) >= LEAST_BYTES:
        _append(tensor, [tensor.raw_data], data)
        tensor.ClearField("raw_data")


def _append(tensor: onnx.TensorProto, blocks: Iterable[bytes], data: BinaryIO) -> None:
    data.write(bytes(-data.tell() % _ALIGNMENT))
    offset = data.tell()
    for block in blocks:
        data.write(block)
    length = data.tell() - offset
    del tensor.external_data[:]
    for key, value in (
        ("location", Path(data.name).name),
        ("offset", str(offset)),
        ("length", str(length)),
    ):
        tensor.external_data.add(key=key, value=value)
    tensor.data_location = onnx.TensorProto.EXTERNAL


def _blocks(tensor: onnx.TensorProto, folder: Path) -> Iterator[bytes]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path, left = folder / entries["location"], int(entries["length"])
    with path.open("rb") as source:
        source.seek(int(entries.get("offset", 0)))
        while left:
            block = source.read(min(_COPY_BYTES, left))
            if not block:
                raise OSError(f"{path} ends before tensor {tensor.name} does")
            yield block
            left -= len(block)
