"""Write an ONNX graph as two files: the small graph, and its weights beside it.

ONNX Runtime maps the weights' file into memory and lays the weights out anew for this CPU. Weights
inside the graph would be in memory twice more while it does: the file's bytes, and what protobuf
makes of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

import onnx

_COPY_BYTES = 1 << 22
LEAST_BYTES = 1024  # of a tensor that lies in the weights' file


def pack_onnx(graph_path: Path, out_path: Path) -> list[Path]:
    """Write `graph_path` as `out_path`, its external weights as `out_path`.data; return both.

    Copies the weights block by block, so packing 1.7 GB needs a few MB of memory.
    """
    model = onnx.load(str(graph_path), load_external_data=False)
    data_path = out_path.with_name(f"{out_path.name}.data")
    folder = graph_path.parent
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
    out_path.write_bytes(model.SerializeToString())
    return [out_path, data_path]


def move_weights_out(graph_path: Path, out_path: Path) -> list[Path]:
    """Write a graph that holds its weights as `out_path`, and them as `out_path`.data; return both.

    `out_path`.data is replaced if it exists.
    """
    data_path = out_path.with_name(f"{out_path.name}.data")
    data_path.unlink(missing_ok=True)
    onnx.save_model(
        onnx.load(str(graph_path)),
        str(out_path),
        save_as_external_data=True,
        location=data_path.name,
        size_threshold=LEAST_BYTES,
    )
    shutil.copymode(out_path, data_path)  # onnx lets nobody else read the weights
    return [out_path, data_path]


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
