"""Values of an adapter that are no finite numbers: llama.cpp would answer with noise, or end."""

from __future__ import annotations

import mmap
from pathlib import Path

from edgeprism.bundle.gguf import GgufHeader, bytes_per_block

_F32, _F16, _BF16 = 0, 1, 30
# ggml type → where the blocks of its values have their scales, as 16-bit floats (ggml-common.h);
# all other bits of a block are whole numbers
_SCALES = {
    2: (0,), 3: (0, 2), 6: (0,), 7: (0, 2), 8: (0,), 10: (80, 82), 11: (108,), 12: (0, 2),
    13: (0, 2), 14: (208,), 20: (0,), 23: (0,),
}  # fmt: skip
_EXPONENT_16, _EXPONENT_BF16, _EXPONENT_32 = 0x7C00, 0x7F80, 0x7F800000
_MOST_NAMED = 3


def value_faults(path: Path, header: GgufHeader) -> list[str]:
    """Return up to three matrices of the adapter at `path` that hold NaN or infinite values.

    Reads the whole file; `header` must be its own.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        wrong = [name for name in header.tensors if not _is_finite(data, name, header)]
    faults = [f"{name} holds values that are no finite numbers" for name in wrong[:_MOST_NAMED]]
    more = len(wrong) - _MOST_NAMED
    return faults + ([f"{more} more matrices do"] if more > 0 else [])


def _is_finite(data: mmap.mmap, name: str, header: GgufHeader) -> bool:
    """Return whether a tensor's numbers, or the scales of its blocks, have no exponent of ones."""
    import numpy as np

    kind, start = header.tensor_types[name], header.starts[name]
    bits = np.frombuffer(data[start : start + header.tensor_bytes(name)], np.uint8)
    if kind == _F32:
        return not ((bits.view("<u4") & _EXPONENT_32) == _EXPONENT_32).any()
    if kind in (_F16, _BF16):
        ones = _EXPONENT_16 if kind == _F16 else _EXPONENT_BF16
        return not ((bits.view("<u2") & ones) == ones).any()
    blocks = bits.reshape(-1, bytes_per_block(kind))
    return not any(
        ((blocks[:, at : at + 2].copy().view("<u2") & _EXPONENT_16) == _EXPONENT_16).any()
        for at in _SCALES[kind]
    )
