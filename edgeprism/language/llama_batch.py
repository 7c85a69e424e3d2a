"""A `llama_batch` over numpy arrays, so that rows and tokens reach llama.cpp without a copy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

_INT32 = ctypes.POINTER(ctypes.c_int32)


class LlamaBatch:
    """The arrays of a llama_batch, owned by numpy and reused for every call.

    `place…` sets positions and sequences, `want_logits` the rows whose logits llama.cpp keeps;
    `with_tokens` or `with_rows` then returns the struct for llama.cpp.
    """

    def __init__(self, struct: Any, capacity: int, axes: int = 1) -> None:
        """`axes`: how many positions llama.cpp reads for each row; for a token it reads one."""
        self._struct, self._axes = struct, axes
        # llama_batch_init allocates one position per row, which more axes would overrun
        self.positions = np.zeros(capacity * axes, np.int32)
        self.sequences = np.zeros(capacity, np.int32)
        self.has_logits = np.zeros(capacity, np.int8)
        self._counts = np.ones(capacity, np.int32)
        first = self.sequences.ctypes.data
        pointer = ctypes.POINTER(ctypes.c_int32)
        self._sequence_pointers = (pointer * capacity)(
            *(ctypes.cast(first + 4 * i, pointer) for i in range(capacity))
        )

    def place(self, seq: int, start: int, n: int) -> int:
        """Place `n` tokens of sequence `seq` at positions `start`…; return `n`."""
        self.positions[:n] = np.arange(start, start + n, dtype=np.int32)
        self.sequences[:n] = seq
        return n

    def place_rows(self, seq: int, start: int, positions: np.ndarray) -> int:
        """Place rows at `positions`, int32 [axes, n], counted from `start`; a fourth axis stays."""
        n: int = positions.shape[1]
        moved = positions + np.array([[start], [start], [start], [0]], np.int32)[: len(positions)]
        self.positions[: self._axes * n] = moved[: self._axes].ravel()
        self.sequences[:n] = seq
        return n

    def place_each(self, sequences: Sequence[int], positions: Sequence[int]) -> int:
        """Place one token of each sequence at its position; return their number."""
        n = len(sequences)
        self.positions[:n] = positions
        self.sequences[:n] = sequences
        return n

    def want_logits(self, indices: Sequence[int], n: int) -> None:
        """Have llama.cpp keep the logits of the tokens at `indices`, of `n` tokens."""
        self.has_logits[:n] = 0
        self.has_logits[list(indices)] = 1

    def with_tokens(self, tokens: np.ndarray) -> Any:
        """Return the llama_batch of token ids [n], at the positions that were placed."""
        self._data = tokens = np.ascontiguousarray(tokens)  # alive until the next call
        return self._filled(len(tokens), token=tokens.ctypes.data_as(_INT32))

    def with_rows(self, rows: np.ndarray) -> Any:
        """Return the llama_batch of rows [n, n_embd], at the positions that were placed."""
        self._data = rows = np.ascontiguousarray(rows)
        return self._filled(len(rows), embd=rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))

    def _filled(self, n: int, **data: Any) -> Any:
        return self._struct(
            n_tokens=n,
            pos=self.positions.ctypes.data_as(_INT32),
            n_seq_id=self._counts.ctypes.data_as(_INT32),
            seq_id=self._sequence_pointers,
            logits=self.has_logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
            **data,
        )
