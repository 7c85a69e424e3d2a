"""Token ids → the rows with which a language model begins, looked up in its GGUF file.

llama.cpp takes token ids or rows in one call, not both, and each call reads all weights. With its
tokens as rows, a prompt that changes between the two many times, as that of a picture in tiles, is
one run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeprism.bundle.gguf import GgufHeader
from edgeprism.language.llama import ggml_function

# architectures whose embeddings enter the first layer as they stand in the file (llama.cpp's
# src/models); others scale or normalize them
_PLAIN = frozenset({"llama", "qwen2", "qwen3", "internlm2", "t5"})
_TENSOR = "token_embd.weight"
_F32, _F16, _BF16 = 0, 1, 30
# {ggml type: its name in ggml's functions}
_QUANTIZED = {2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_K", 11: "q3_K",
              12: "q4_K", 13: "q5_K", 14: "q6_K"}  # fmt: skip


def token_rows(path: Path, header: GgufHeader, ids: Sequence[int]) -> np.ndarray | None:
    """Return the embeddings float32 [n, n_embd] of `ids`, bit for bit as llama.cpp looks them up.

    None if this model's tokens do not enter as they stand in the file, or if they cannot be read:
    the caller then leaves them to llama.cpp.
    """
    start, shape = header.starts.get(_TENSOR), header.tensors.get(_TENSOR, ())
    scaled = f"{header.architecture}.embedding_scale" in header.metadata
    if header.architecture not in _PLAIN or scaled or start is None or len(shape) != 2:
        return None
    width, count = shape
    row_bytes = header.tensor_bytes(_TENSOR) // count
    if not row_bytes or not all(0 <= token < count for token in ids):
        return None
    rows = np.empty((len(ids), width), np.float32)
    try:
        with path.open("rb") as file:
            for row, token in zip(rows, ids, strict=True):
                file.seek(start + token * row_bytes)
                data = file.read(row_bytes)
                if len(data) != row_bytes or not _dequantize(
                    header.tensor_types[_TENSOR], data, row
                ):
                    return None
    except OSError:  # removed while it is in use, which llama.cpp's mapping outlives
        return None
    return rows


def _dequantize(kind: int, data: bytes, row: np.ndarray) -> bool:
    """Write the numbers that `data` holds in ggml type `kind` to `row`; return whether it can."""
    if kind == _F32:
        row[:] = np.frombuffer(data, "<f4")
    elif kind == _F16:
        row[:] = np.frombuffer(data, "<f2")
    elif kind == _BF16:
        row.view(np.uint32)[:] = np.frombuffer(data, "<u2").astype(np.uint32) << 16
    else:
        convert = ggml_function(f"dequantize_row_{_QUANTIZED.get(kind, kind)}")
        if convert is None:
            return False
        convert.restype = None
        convert.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64]
        convert(data, row.ctypes.data, row.size)
    return True
