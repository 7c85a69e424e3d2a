"""The nodes of MiniCPM-V's tower, and of the resampler that makes a fixed number of visual tokens.

A tile has a shape of its own. Its patches take learned positions from a table of 70 × 70 places,
each from the place at the same share of the way down and across. The resampler's queries, which
are the same for all tiles, then attend to the patches once.

Sources: MiniCPM-V's published `modeling_navit_siglip.py`, `resampler.py` and
`modeling_minicpmv.py`; llama.cpp's `tools/mtmd/models/minicpmv.cpp` and `clip.cpp`.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from edgeprism.convert.mmproj.free_tower import FreeTower
from edgeprism.convert.mmproj.header import MINICPM_HEAD
from edgeprism.convert.mmproj.shape import EncoderShape
from edgeprism.convert.mmproj.tensors import MmprojTensors
from edgeprism.convert.mmproj.writer import FUSED, GraphWriter

_BASE = 10000.0  # of the frequencies of the keys' positions
_BLOCK = 8  # float32 numbers of AVX2's registers
_IN_ONE_ROW = 2  # llama.cpp's number of MiniCPM-V 2.5
_FLOAT, _INT64, _DOUBLE = 1, 7, 11  # ONNX's numbers of types
_NORMS = ("q", "kv", "post")


def resampler_shapes(shape: EncoderShape, n_embd: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the resampler, by name."""
    shapes: dict[str, tuple[int, ...]] = {
        "resampler.query": (shape.queries, n_embd),
        "resampler.kv.weight": (n_embd, shape.width),
        "resampler.proj.weight": (n_embd, n_embd),
    }
    for part in ("q", "k", "v", "out"):
        shapes[f"resampler.attn.{part}.weight"] = (n_embd, n_embd)
        shapes[f"resampler.attn.{part}.bias"] = (n_embd,)
    return shapes | {
        f"resampler.ln_{norm}.{kind}": (n_embd,) for norm in _NORMS for kind in ("weight", "bias")
    }


class ResamplerTower(FreeTower):
    """The graph of a tower of free shapes with a resampler behind it."""

    def __init__(
        self, graph: GraphWriter, tensors: MmprojTensors, shape: EncoderShape, as_mtmd: bool
    ) -> None:
        super().__init__(graph, tensors, shape, as_mtmd)
        self.n_tokens, self.n_patches = shape.queries, "patches"
        self._n_embd = tensors.shape("resampler.query")[1]

    # ---- the tower's positions

    def _positions(self) -> str:
        """Return the learned position of each patch, [1, patches, width]."""
        graph, s = self.graph, self.shape
        table = graph.weight("tower.position", self.tensors.read("v.position_embd.weight"))
        if s.version == _IN_ONE_ROW and not self.as_mtmd:
            # the authors lay the patches side by side: to the tower they are a single row
            places = graph.reshaped(self._shares(self._patches), 1, -1)
        else:
            down = graph.reshaped(self._shares(self._down), -1, 1)
            across = graph.reshaped(self._shares(self._across), 1, -1)
            first = graph.add("Mul", down, graph.integers(s.table))
            places = graph.reshaped(graph.add("Add", first, across), 1, -1)
        x = graph.add("Gather", table, places, axis=0)
        graph.note(x, self.n_patches, s.width)
        return x

    def _shares(self, length: str) -> str:
        """Return, for each place along `length`, the place of the table at the same share.

        The authors compare float32 numbers of `torch.arange`, which at a few lengths takes a place
        between two to the lower one. libmtmd divides exactly.
        """
        graph, table = self.graph, self.shape.table
        numbers = graph.add("Cast", self._counted(length, -1), to=_DOUBLE)
        if self.as_mtmd:
            scaled = graph.add("Mul", numbers, graph.add("Cast", graph.integers(table), to=_DOUBLE))
            exact = graph.add("Div", scaled, graph.add("Cast", length, to=_DOUBLE))
            return graph.add("Cast", graph.add("Floor", exact), to=_INT64)
        share = self._numbers_of_torch(numbers, length)
        below = graph.add("Less", graph.reshaped(share, -1, 1), self._bounds)
        passed = graph.add("Cast", graph.add("Not", below), to=_INT64)
        return graph.add("ReduceSum", passed, graph.integers(1), keepdims=0)

    def _numbers_of_torch(self, numbers: str, length: str) -> str:
        """Return torch.arange(0, 1 - 1e-6, 1 / length), to the last bit as torch has it on x86.

        There, blocks of eight count from their first number, which was rounded already; what does
        not fill two blocks is computed one by one.
        """
        graph = self.graph
        step = graph.add("Div", graph.number(1.0), graph.add("Cast", length, to=_FLOAT))
        step = graph.add("Cast", step, to=_DOUBLE)

        def whole(x: str, size: int) -> str:
            """Round down to a multiple of `size`."""
            unit = graph.add("Cast", graph.integers(size), to=_DOUBLE)
            return graph.add("Mul", graph.add("Floor", graph.add("Div", x, unit)), unit)

        first = whole(numbers, _BLOCK)
        begun = graph.add("Cast", graph.add("Mul", first, step), to=_FLOAT)
        rest = graph.add("Mul", graph.add("Sub", numbers, first), step)
        in_block = graph.add("Add", graph.add("Cast", begun, to=_DOUBLE), rest)
        in_blocks = whole(graph.add("Cast", length, to=_DOUBLE), 2 * _BLOCK)
        share = graph.add(
            "Where", graph.add("Less", numbers, in_blocks), in_block,
            graph.add("Mul", numbers, step),
        )  # fmt: skip
        return graph.add("Cast", share, to=_FLOAT)

    @cached_property
    def _bounds(self) -> str:
        """The shares at which the second place of the table begins, the third and so on."""
        step = 1 / self.shape.table
        bounds = step + step * np.arange(self.shape.table - 1)
        return self.graph.weight("tower.bounds", bounds[None])

    # ---- the resampler

    def projected(self, x: str) -> str:
        """Features [n, patches, width] → visual tokens [n, queries, n_embd]."""
        graph, s = self.graph, self.shape
        values = self._resampler_norm(self._linear(x, "resampler.kv"), "kv")
        keys = graph.add("Add", values, self._waves())
        parts = (
            self._constant_queries(),
            self._linear(keys, "resampler.attn.k"),
            self._linear(values, "resampler.attn.v"),
        )
        y = graph.add(
            "MultiHeadAttention", *parts, domain=FUSED, num_heads=self._n_embd // MINICPM_HEAD
        )
        graph.note(y, s.queries, self._n_embd)
        y = self._resampler_norm(self._linear(y, "resampler.attn.out"), "post")
        return self._linear(y, "resampler.proj")

    def _constant_queries(self) -> str:
        """Return the queries after their norm and matrix, [n, queries, n_embd]: no pixel counts."""
        names = ("query", "ln_q.weight", "ln_q.bias", "attn.q.weight", "attn.q.bias")
        x, scale, offset, matrix, bias = (
            self.tensors.read(f"resampler.{name}").astype(np.float64) for name in names
        )
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + self.shape.eps)
        queries = (x * scale + offset) @ matrix.T + bias
        graph = self.graph
        whole = graph.shape_of(self._batch, *queries.shape)
        x_ = graph.add("Expand", graph.weight("resampler.queries", queries[None]), whole)
        graph.note(x_, *queries.shape)
        return x_

    def _waves(self) -> str:
        """Return the position of each patch as sines and cosines, [1, patches, n_embd].

        A half of the numbers goes by the patch's column, the other by its row.
        """
        graph, quarter = self.graph, self._n_embd // 4
        rates = _BASE ** (-np.arange(quarter) / quarter)
        whole = graph.shape_of(self._down, self._across, quarter)
        waves = []
        for name, shape, length in (
            ("across", (1, -1, 1), self._across),
            ("down", (-1, 1, 1), self._down),
        ):
            places = graph.add("Cast", self._counted(length, *shape), to=_FLOAT)
            angles = graph.add("Mul", places, graph.weight(f"resampler.rates.{name}", rates))
            angles = graph.add("Expand", angles, whole)
            waves += [graph.add(wave, angles) for wave in ("Sin", "Cos")]
        x = graph.shaped(graph.add("Concat", *waves, axis=-1), 1, self._patches, self._n_embd)
        graph.note(x, self.n_patches, self._n_embd)
        return x

    def _resampler_norm(self, x: str, name: str) -> str:
        weight, bias = (self.tensors.read(f"resampler.ln_{name}.{k}") for k in ("weight", "bias"))
        return self.graph.norm(x, f"resampler.ln_{name}", weight, bias, self.shape.eps)
