"""Sequences in a plain decoder that ONNX Runtime runs, as EdgePrism's ONNX decoder holds its own.

Keys and values lie in numpy arrays, which a run of the graph reads and extends where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.machine.cancel import Cancel
from edgeprism.machine.device import CPU_PROVIDER
from edgeprism.machine.onnx_runtime import GraphSession


@dataclass(frozen=True)
class Kept:
    """The shape of the keys and values of one position."""

    n_layers: int
    n_heads: int
    head_dim: int


def kept_of(path: Path) -> Kept:
    """Return the shape that the GGUF file of the same model has."""
    header = read_gguf_header(path)
    fields = {
        name: header.metadata[f"{header.architecture}.{name}"]
        for name in ("block_count", "attention.head_count_kv", "rope.dimension_count")
    }
    return Kept(*fields.values())


class PlainContext:
    """`n_seq` sequences of `cells` tokens each; its methods are those of `LanguageContext`."""

    N_BATCH = 512  # tokens that go through the graph at once, as in llama.cpp's contexts

    def __init__(self, graph: GraphSession, kept: Kept, cells: int, n_seq: int = 1) -> None:
        self.graph = graph
        names = [f"{kind}_{i}" for i in range(kept.n_layers) for kind in ("key", "value")]
        shape = (n_seq, kept.n_heads, cells, kept.head_dim)
        self._kept = {name: np.zeros(shape, np.float32) for name in names}
        self._logits = np.empty((0, 0), np.float32)

    def prefill_tokens(self, seq: int, tokens: Sequence[int], start: int) -> None:
        """Put `tokens` at positions `start`… of `seq`; keep the last token's logits."""
        for i in range(0, len(tokens), self.N_BATCH):
            part = tokens[i : i + self.N_BATCH]
            made = self._run(seq, [part], [start + i + len(part)])
        self._logits = made[0]

    def step(self, tokens: Sequence[tuple[int, int, int]]) -> None:
        """Decode one (seq, token, position) for each of neighbouring sequences, in order."""
        ends = [position + 1 for _, _, position in tokens]
        self._logits = self._run(tokens[0][0], [[token] for _, token, _ in tokens], ends)[:, 0]

    def logits(self, index: int = -1) -> np.ndarray:
        """Return logits of the last call, float32 [n_vocab], at `index` of its batch."""
        row: np.ndarray = self._logits[index]
        return row

    def _run(self, first: int, tokens: Sequence[Sequence[int]], ends: Sequence[int]) -> np.ndarray:
        """Return the logits [batch, 1, n_vocab] after the last of each sequence's tokens."""
        ids = np.array(tokens, np.int64)
        inputs = {
            "ids": ids,
            "last": np.array(ends, np.int32) - np.int32(1),
            "total": np.array([max(ends)], np.int32),
            "wanted": np.array([ids.shape[1] - 1], np.int64),
        }
        sequences = slice(first, first + len(ids))
        states = {name: cells[sequences] for name, cells in self._kept.items()}
        return self.graph.run_in_place(inputs, states, "logits")

    def keep(self, seq: int, length: int) -> bool:
        """Forget `seq` from position `length` on: cells behind a sequence's end are never read."""
        return True


def open_graph(path: Path, threads: int) -> GraphSession:
    """Load a plain decoder's graph."""
    return GraphSession(path, provider=CPU_PROVIDER, threads=threads, cancel=Cancel(), what="graph")
