"""The nodes of a tower and its projector, in the order in which they run.

Normalising is part of the patches' matrix, and a layer's scale is part of the matrix before it.
There is no convolution: patches do not overlap, so one product with the flattened patches is the
same. Attention is ONNX Runtime's own operator, which never holds the scores of all rows at once.

Sources: see `graph.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeprism.convert.mmproj.shape import EncoderShape
from edgeprism.convert.mmproj.tensors import MmprojTensors
from edgeprism.convert.mmproj.writer import FUSED, GraphWriter
from edgeprism.convert.vision.quantize import INPUT

_PROJECTOR_EPS = 1e-5  # these projectors have the default of a layer norm
PROJECTOR_NORMS = {"internvl": "mm.model.mlp.0", "lfm2": "mm.input_norm"}
# {projector: (name of each linear layer, whether it has a bias)}
LINEARS = {
    "mlp": (("mm.0", True), ("mm.2", True)),
    "lfm2": (("mm.1", True), ("mm.2", True)),
    "idefics3": (("mm.model.fc", False),),
    "internvl": (("mm.model.mlp.1", True), ("mm.model.mlp.3", True)),
    "qwen2vl_merger": (("mm.0", True), ("mm.2", True)),
    "qwen2.5vl_merger": (("mm.0", True), ("mm.2", True)),
}
# activations of the form x · sigmoid(scale · x)
_SIGMOID_SCALES = {"quick_gelu": 1.702, "silu": 1.0}
POOLED = "mm.input_projection.weight", "mm.soft_emb_norm.weight"


def names_of_widening(tensors: MmprojTensors, p: str, e: int) -> tuple[str, str]:
    """Return the names of a layer's matrices up and down: older files have them exchanged."""
    shape = tensors.shape(f"{p}ffn_down.weight")
    exchanged = len(shape) == 2 and shape[1] == e != shape[0]
    return ("ffn_down", "ffn_up") if exchanged else ("ffn_up", "ffn_down")


class Tower:
    """The graph of a tower whose tiles are squares of one size."""

    def __init__(
        self, graph: GraphWriter, tensors: MmprojTensors, shape: EncoderShape, as_mtmd: bool
    ) -> None:
        self.graph, self.tensors, self.shape, self.as_mtmd = graph, tensors, shape, as_mtmd
        self.n_tokens: int | str = shape.side**2

    def source(self) -> tuple[str, Sequence[int | str]]:
        """Return the input's name, and its shape without the batch."""
        return INPUT, (self.shape.size, self.shape.size, 3)

    def features(self) -> str:
        """Pixels → features [n, patches, width]."""
        graph, s = self.graph, self.shape
        x = self._embedded()
        if "v.pre_ln.weight" in self.tensors:
            x = self._norm(x, "v.pre_ln")
        for i in range(s.n_layers):
            x = self._layer(x, i)
        if "v.post_ln.weight" in self.tensors:
            x = self._norm(x, "v.post_ln")
        if not s.class_row:
            return x
        if self.as_mtmd and s.projector != "mlp":
            return graph.cut(x, 1, 0, s.grid**2)
        # libmtmd drops the first row of an "mlp" tower although the class row is its last
        return graph.cut(x, 1, 1, s.grid**2 + 1)

    def _embedded(self) -> str:
        """Pixels [n, size, size, 3] → rows [n, patches, width], with positions and class row."""
        graph, s = self.graph, self.shape
        g, p = s.grid, s.patch
        x = INPUT
        if s.size % p:  # as a strided convolution does
            x = graph.cut(graph.cut(x, 1, 0, g * p), 2, 0, g * p)
        x = graph.add("Cast", x, to=1)
        x = graph.reshaped(x, 0, g, p, g, 3 * p, order=(0, 1, 3, 2, 4))
        matrix, offset = self._patch_matrix()
        x = graph.matmul(graph.reshaped(x, 0, g * g, 3 * p * p), "tower.patch", matrix)
        table = self.tensors.read("v.position_embd.weight")
        if not s.class_row:
            return graph.add("Add", x, graph.weight("tower.position", table + offset))
        places, own = (table[:-1], table[-1]) if self.as_mtmd else (table[1:], table[0])
        x = graph.add("Add", x, graph.weight("tower.position", places + offset))
        row = graph.weight("tower.class", (self.tensors.read("v.class_embd") + own)[None, None])
        batch = graph.add("Shape", INPUT, start=0, end=1)
        row = graph.add(
            "Expand", row, graph.add("Concat", batch, graph.integers(1, s.width), axis=0)
        )
        return graph.add("Concat", *((x, row) if self.as_mtmd else (row, x)), axis=1)

    def _patch_matrix(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the matrix [p · p · 3, width] for raw pixels 0…255, and the rows' offset."""
        kernel = self.tensors.read("v.patch_embd.weight").astype(np.float64)
        if self.shape.rotates:  # of a film's two frames; a picture is both
            kernel = kernel + self.tensors.read("v.patch_embd.weight.1")
        matrix = kernel.transpose(2, 3, 1, 0)  # [p, p, 3, width]
        mean, std = np.array(self.shape.mean), np.array(self.shape.std)
        offset = -(matrix * (mean / std)[:, None]).sum(axis=(0, 1, 2))
        if "v.patch_embd.bias" in self.tensors:
            offset = offset + self.tensors.read("v.patch_embd.bias")
        scaled = matrix / (255 * std)[:, None]
        return scaled.reshape(-1, self.shape.width), offset

    def _layer(self, x: str, i: int) -> str:
        graph, tensors, s, p = self.graph, self.tensors, self.shape, f"v.blk.{i}."
        y = self._attended(self._queries(self._norm(x, f"{p}ln1"), p), i)
        x = graph.add("Add", x, self._linear(y, f"{p}attn_out", f"{p}ls1.weight"))
        up, down = names_of_widening(tensors, p, s.width)
        z = self._norm(x, f"{p}ln2")
        y = self._linear(z, f"{p}{up}")
        as_tanh = self.as_mtmd and s.activation == "gelu"
        activation = "gelu_tanh" if as_tanh else s.activation
        if f"{p}ffn_gate.weight" in tensors:
            gate = self._activated(self._linear(z, f"{p}ffn_gate"), activation)
            y = graph.add("Mul", gate, y)
        else:
            y = self._activated(y, activation)
        return graph.add("Add", x, self._linear(y, f"{p}{down}", f"{p}ls2.weight"))

    def _attended(self, parts: Sequence[str], i: int) -> str:
        """Queries, keys and values, each [n, rows, width] → what they make in layer `i`."""
        return self.graph.add(
            "MultiHeadAttention", *parts, domain=FUSED, num_heads=self.shape.heads
        )

    def _queries(self, y: str, p: str) -> list[str]:
        """Return queries, keys and values, each [n, rows, width]."""
        if f"{p}attn_qkv.weight" in self.tensors:
            weights = np.split(self.tensors.read(f"{p}attn_qkv.weight"), 3)
            bias = f"{p}attn_qkv.bias"
            biases = (
                np.split(self.tensors.read(bias), 3) if bias in self.tensors else [None, None, None]
            )
            parts = [
                self.graph.matmul(y, f"{p}attn_{name}", weight.T, offset)
                for name, weight, offset in zip("qkv", weights, biases, strict=True)
            ]
        else:
            parts = [self._linear(y, f"{p}attn_{name}") for name in "qkv"]
        for i, name in enumerate(("attn_q_norm", "attn_k_norm")):
            if f"{p}{name}.weight" in self.tensors:
                weight = self.tensors.read(f"{p}{name}.weight")
                parts[i] = self.graph.rms_norm(parts[i], f"{p}{name}", weight, self.shape.eps)
        return parts

    def projected(self, x: str) -> str:
        """Features [n, patches, width] → visual tokens [n, tokens, n_embd]."""
        graph, s = self.graph, self.shape
        if s.projector == "gemma3":
            return self._pooled(x)
        if s.merge > 1:
            x = self._joined(x)
        norm = PROJECTOR_NORMS.get(s.projector, "")
        if f"{norm}.weight" in self.tensors:
            weight, bias = (self.tensors.read(f"{norm}.{k}") for k in ("weight", "bias"))
            x = graph.norm(x, norm, weight, bias, _PROJECTOR_EPS)
        for i, (name, _) in enumerate(LINEARS[s.projector]):
            if i:
                x = self._activated(x, "gelu_tanh" if self.as_mtmd else "gelu")
            x = self._linear(x, name)
        return x

    def _joined(self, x: str) -> str:
        """Put the merge × merge patches of each visual token side by side."""
        graph, s, side, m = self.graph, self.shape, self.shape.side, self.shape.merge
        x = graph.reshaped(x, 0, side, m, side, m, s.width, order=(0, 1, 3, 2, 4, 5))
        return graph.reshaped(x, 0, side * side, m * m * s.width)

    def _pooled(self, x: str) -> str:
        """Average merge × merge patches, as Gemma 3 does."""
        graph, s = self.graph, self.shape
        x = graph.reshaped(x, 0, s.side, s.merge, s.side, s.merge, s.width)
        x = graph.add("ReduceMean", x, graph.integers(2, 4), keepdims=0)
        x = graph.reshaped(x, 0, s.side**2, s.width)
        matrix, norm = POOLED
        x = graph.rms_norm(x, norm.removesuffix(".weight"), self.tensors.read(norm), s.eps)
        return graph.matmul(x, matrix.removesuffix(".weight"), self.tensors.read(matrix))

    def _norm(self, x: str, name: str) -> str:
        weight = self.tensors.read(f"{name}.weight")
        if self.shape.rms:
            return self.graph.rms_norm(x, name, weight, self.shape.eps)
        return self.graph.norm(x, name, weight, self.tensors.read(f"{name}.bias"), self.shape.eps)

    def _linear(self, x: str, name: str, scale: str = "") -> str:
        """x @ weight.T + bias; `scale` names a tensor that multiplies the result, if there."""
        weight = self.tensors.read(f"{name}.weight").T
        bias = self.tensors.read(f"{name}.bias") if f"{name}.bias" in self.tensors else None
        if scale in self.tensors:
            factor = self.tensors.read(scale)
            weight = weight * factor
            bias = None if bias is None else bias * factor
        return self.graph.matmul(x, name, weight, bias)

    def _activated(self, x: str, activation: str) -> str:
        if activation in _SIGMOID_SCALES:
            return self.graph.add("QuickGelu", x, domain=FUSED, alpha=_SIGMOID_SCALES[activation])
        tanh = activation == "gelu_tanh"
        return self.graph.add("Gelu", x, approximate="tanh" if tanh else "none")
