"""The nodes of a tower whose tiles have a height and a width of their own.

All that depends on the shape is computed in the graph, from the shape of its input. The patches of
a visual token stand together, merge × merge of them, and the tokens from left to right and down.

Sources: the published models' code, as transformers' `qwen2_vl`, `qwen2_5_vl` and `lfm2_vl` hold
it; for the names of tensors llama.cpp's `tools/mtmd/models/qwen2vl.cpp` and `siglip.cpp`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeprism.convert.mmproj.shape import EncoderShape
from edgeprism.convert.mmproj.tensors import MmprojTensors
from edgeprism.convert.mmproj.tower import Tower
from edgeprism.convert.mmproj.writer import FUSED, GraphWriter
from edgeprism.convert.vision.quantize import INPUT

_ROPE_BASE = 10000.0
_INT32, _FLOAT = 6, 1  # ONNX's numbers of types


class FreeTower(Tower):
    """The graph of a tower with rotary positions or learned ones, which are resized.

    Some models attend in windows.
    """

    def __init__(
        self, graph: GraphWriter, tensors: MmprojTensors, shape: EncoderShape, as_mtmd: bool
    ) -> None:
        super().__init__(graph, tensors, shape, as_mtmd)
        self.n_tokens = "tokens"
        self.n_patches = f"{shape.merge**2}*tokens"
        unit = graph.integers(shape.patch * shape.merge)
        self._batch, height, width = (
            graph.add("Shape", INPUT, start=axis, end=axis + 1) for axis in range(3)
        )
        # visual tokens down, across and in all; each a tensor of one whole number
        self._down, self._across = (graph.add("Div", edge, unit) for edge in (height, width))
        self._tokens = graph.add("Mul", self._down, self._across)
        self._patches = graph.add("Mul", self._tokens, graph.integers(shape.merge**2))
        self._cos, self._sin = self._rotations() if shape.rotates else ("", "")
        if shape.window:
            self._to_windows, self._from_windows, self._mask = self._window_places()

    def source(self) -> tuple[str, Sequence[int | str]]:
        """Return the input's name, and its shape without the batch."""
        return INPUT, ("height", "width", 3)

    def _embedded(self) -> str:
        """Pixels [n, height, width, 3] → rows [n, patches, width]."""
        graph, s = self.graph, self.shape
        m, p = s.merge, s.patch
        x = graph.shaped(
            INPUT,
            self._batch,
            self._down,
            m,
            p,
            self._across,
            m,
            3 * p,
            order=(0, 1, 4, 2, 5, 3, 6),
        )
        x = graph.add("Cast", graph.shaped(x, self._batch, self._patches, 3 * p * p), to=_FLOAT)
        graph.note(x, self.n_patches, 3 * p * p)
        matrix, offset = self._patch_matrix()
        x = graph.matmul(x, "tower.patch", matrix, offset)
        return x if s.rotates else graph.add("Add", x, self._positions())

    # ---- positions

    def _positions(self) -> str:
        """Return the learned positions resized to the tile's patches, [1, patches, width]."""
        graph, s = self.graph, self.shape
        m = graph.integers(s.merge)
        table = self.tensors.read("v.position_embd.weight").T.reshape(1, s.width, s.table, s.table)
        down, across = (graph.add("Mul", n, m) for n in (self._down, self._across))
        x = graph.add(
            "Resize", graph.weight("tower.position", table), "", "",
            graph.shape_of(1, s.width, down, across),
            mode="linear", antialias=1, coordinate_transformation_mode="half_pixel",
            exclude_outside=1,
        )  # fmt: skip
        x = graph.shaped(
            x, s.width, self._down, s.merge, self._across, s.merge, order=(1, 3, 2, 4, 0)
        )
        x = graph.shaped(x, 1, self._patches, s.width)
        graph.note(x, self.n_patches, s.width)
        return x

    def _counted(self, length: str, *shape: int | str) -> str:
        """Return the whole numbers 0 … length - 1, reshaped."""
        graph = self.graph
        stop = graph.add("Squeeze", length)
        numbers = graph.add("Range", graph.whole(0), stop, graph.whole(1))
        return graph.shaped(numbers, *shape)

    def _rotations(self) -> tuple[str, str]:
        """Return cosine and sine of each patch's angles, [patches, 1, 1, head / 2].

        A half of a head's angles goes by the row of the patch, the other by its column.
        """
        graph, m = self.graph, self.shape.merge
        quarter = self.shape.width // self.shape.heads // 4
        rates = _ROPE_BASE ** (-np.arange(quarter) / quarter)
        whole = graph.shape_of(self._down, self._across, m, m)
        angles = []
        for axis, length in enumerate((self._down, self._across)):
            ones: list[int | str] = [1, 1, 1, 1]
            ones[axis] = length
            first = graph.add("Mul", self._counted(length, *ones), graph.integers(m))
            ones = [1, 1, 1, 1]
            ones[2 + axis] = m
            inner = graph.reshaped(graph.integers(*range(m)), *map(int, ones))
            places = graph.add("Expand", graph.add("Add", first, inner), whole)
            places = graph.add("Cast", graph.reshaped(places, -1, 1, 1, 1), to=_FLOAT)
            angles.append(graph.add("Mul", places, graph.weight(f"tower.rates.{axis}", rates)))
        both = graph.add("Concat", *angles, axis=-1)
        return graph.add("Cos", both), graph.add("Sin", both)

    def _rotated(self, x: str) -> str:
        """Rotate queries or keys [n, patches, width]."""
        graph, s = self.graph, self.shape
        half = s.width // s.heads // 2
        x = graph.shaped(x, self._batch, self._patches, s.heads, 2, half)
        first, second = (graph.cut(x, 3, i, i + 1) for i in range(2))
        turned = (
            graph.add(
                "Sub", graph.add("Mul", first, self._cos), graph.add("Mul", second, self._sin)
            ),
            graph.add(
                "Add", graph.add("Mul", second, self._cos), graph.add("Mul", first, self._sin)
            ),
        )
        return graph.shaped(
            graph.add("Concat", *turned, axis=3), self._batch, self._patches, s.width
        )

    # ---- attention

    def _attended(self, parts: Sequence[str], i: int) -> str:
        s = self.shape
        if s.rotates:
            query, key, value = parts
            parts = [self._rotated(query), self._rotated(key), value]
        if not s.window or (i + 1) % s.full_every == 0:
            return super()._attended(parts, i)
        return self._attended_in_windows(parts)

    def _attended_in_windows(self, parts: Sequence[str]) -> str:
        """Let each patch attend to those of its window alone.

        Windows at the lower and right edge are filled up to the full size with any token; the mask
        keeps others from attending to it, and nothing reads what it makes.
        """
        graph, s = self.graph, self.shape
        joined = s.merge**2 * s.width
        rows = s.window**2 * s.merge**2
        inside = []
        for part in parts:
            x = graph.shaped(part, self._batch, self._tokens, joined)
            x = graph.add("Gather", x, self._to_windows, axis=1)
            inside.append(graph.shaped(x, -1, rows, s.width))
        y = graph.add(
            "MultiHeadAttention", *inside, "", self._mask, domain=FUSED, num_heads=s.heads
        )
        y = graph.shaped(y, self._batch, -1, joined)
        y = graph.add("Gather", y, self._from_windows, axis=1)
        return graph.shaped(y, self._batch, self._patches, s.width)

    def _window_places(self) -> tuple[str, str, str]:
        """Return which token stands at each place of the windows, and where each token stands.

        The third is the mask, int32 [n · windows, patches of a window].
        """
        graph, w = self.graph, self.shape.window
        size = graph.integers(w)
        n_down, n_across = (
            graph.add("Div", graph.add("Add", n, graph.integers(w - 1)), size)
            for n in (self._down, self._across)
        )
        windows = graph.add("Mul", n_down, n_across)
        y = self._counted(graph.add("Mul", n_down, size), n_down, 1, w, 1)
        x = self._counted(graph.add("Mul", n_across, size), 1, n_across, 1, w)
        exists = graph.add("And", graph.add("Less", y, self._down),
                           graph.add("Less", x, self._across))  # fmt: skip
        token = graph.add("Add", graph.add("Mul", y, self._across), x)
        token = graph.add("Where", exists, token, graph.integers(0))
        patches = self.shape.merge**2
        mask = graph.reshaped(graph.add("Cast", exists, to=_INT32), 1, -1, 1)
        mask = graph.add(
            "Expand", mask,
            graph.shape_of(self._batch, graph.add("Mul", windows, graph.integers(w * w)), patches),
        )  # fmt: skip
        mask = graph.reshaped(mask, -1, w * w * patches)
        return graph.reshaped(token, -1), self._places_in_windows(n_across), mask

    def _places_in_windows(self, n_across: str) -> str:
        """Return the place of each token among those of all windows."""
        graph, w = self.graph, self.shape.window
        size = graph.integers(w)
        y, x = self._counted(self._down, -1, 1), self._counted(self._across, 1, -1)
        window_y, window_x = (graph.add("Div", n, size) for n in (y, x))
        inner_y, inner_x = (
            graph.add("Sub", n, graph.add("Mul", window, size))
            for n, window in ((y, window_y), (x, window_x))
        )
        window = graph.add("Add", graph.add("Mul", window_y, n_across), window_x)
        inner = graph.add("Add", graph.add("Mul", inner_y, size), inner_x)
        place = graph.add("Add", graph.add("Mul", window, graph.integers(w * w)), inner)
        return graph.reshaped(place, -1)

    # ---- projector

    def _joined(self, x: str) -> str:
        graph, s = self.graph, self.shape
        width = s.merge**2 * s.width
        x = graph.shaped(x, self._batch, self._tokens, width)
        graph.note(x, "tokens", width)
        return x
