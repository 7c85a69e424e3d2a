"""An mmproj file's tower and projector → one ONNX graph in float32.

The graph takes uint8 pixels [n, size, size, 3] and gives visual tokens [n, tokens, n_embd].
Normalising is part of the patches' matrix, and a layer's scale is part of the matrix before it.
There is no convolution: patches do not overlap, so one product with the flattened patches is the
same. Attention is ONNX Runtime's own operator, which never holds the scores of all rows at once.

Sources: the published models' code, as `convert/families` names it, and for the names of tensors
and the order of the parts llama.cpp's `tools/mtmd/models`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeprism.convert.mmproj.shape import EncoderShape
from edgeprism.convert.mmproj.tensors import MmprojTensors
from edgeprism.convert.mmproj.writer import FUSED, GraphWriter
from edgeprism.convert.vision.quantize import INPUT, OUTPUT

_PROJECTOR_EPS = 1e-5  # InternVL's projector has the default of a layer norm
# {projector: (name of each linear layer, whether it has a bias)}
_LINEARS = {
    "mlp": (("mm.0", True), ("mm.2", True)),
    "idefics3": (("mm.model.fc", False),),
    "internvl": (("mm.model.mlp.1", True), ("mm.model.mlp.3", True)),
}
_MOST_IDLE = 64  # layers that a file may hold behind the last one that runs
_POOLED = "mm.input_projection.weight", "mm.soft_emb_norm.weight"


def write_graph(
    tensors: MmprojTensors, shape: EncoderShape, n_embd: int, path: Path, as_mtmd: bool = False
) -> Path:
    """Write the graph at `path` and its weights beside it, as `path`.data.

    With `as_mtmd` it computes what libmtmd computes where that differs from the model: the class
    row stands behind the patches, so that each patch has its neighbour's position; and GELU has
    its tanh form everywhere. Comparing the two engines' rows needs this graph.

    Raises NoGraphError, which names the file, for missing or unknown tensors and for other shapes.
    """
    tensors.require(_shapes(tensors, shape, n_embd), _idle(shape))
    with GraphWriter(path) as graph:
        build = _Build(graph, tensors, shape, as_mtmd)
        rows = build.projected(build.features())
        edge = shape.size
        return graph.finish((INPUT, (edge, edge, 3)), (rows, OUTPUT, (shape.side**2, n_embd)))


def _shapes(tensors: MmprojTensors, s: EncoderShape, n_embd: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the graph takes, by name."""
    e = s.width
    n_rows = s.grid**2 + int(s.class_row)
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (e, 3, s.patch, s.patch),
        "v.position_embd.weight": (n_rows, e),
    }
    if s.class_row:
        shapes["v.class_embd"] = (e,)
    optional = ["v.patch_embd.bias"]
    for norm in ("v.pre_ln", "v.post_ln"):
        optional += [f"{norm}.weight", f"{norm}.bias"] if f"{norm}.weight" in tensors else []
    shapes |= {name: (e,) for name in optional if name in tensors or "_ln" in name}
    for i in range(s.n_layers):
        shapes |= _layer_shapes(tensors, f"v.blk.{i}.", s)
    return shapes | _projector_shapes(tensors, s, n_embd)


def _layer_shapes(tensors: MmprojTensors, p: str, s: EncoderShape) -> dict[str, tuple[int, ...]]:
    e = s.width
    up, down = _widening(tensors, p, e)
    n_ffn = next(iter(tensors.shape(f"{p}{up}.weight")), 0)
    shapes: dict[str, tuple[int, ...]] = {
        f"{p}{up}.weight": (n_ffn, e),
        f"{p}{down}.weight": (e, n_ffn),
        f"{p}attn_out.weight": (e, e),
    }
    biases = {up: n_ffn, down: e, "attn_out": e}
    if f"{p}attn_qkv.weight" in tensors:
        shapes[f"{p}attn_qkv.weight"], biases["attn_qkv"] = (3 * e, e), 3 * e
    else:
        shapes |= {f"{p}attn_{part}.weight": (e, e) for part in "qkv"}
        biases |= {f"attn_{part}": e for part in "qkv"}
    shapes |= {f"{p}{n}.bias": (k,) for n, k in biases.items() if f"{p}{n}.bias" in tensors}
    shapes |= {f"{p}ln{i}.weight": (e,) for i in (1, 2)}
    shapes |= {} if s.rms else {f"{p}ln{i}.bias": (e,) for i in (1, 2)}
    own = ("ls1.weight", "ls2.weight", "attn_q_norm.weight", "attn_k_norm.weight")
    return shapes | {f"{p}{name}": (e,) for name in own if f"{p}{name}" in tensors}


def _widening(tensors: MmprojTensors, p: str, e: int) -> tuple[str, str]:
    """Return the names of a layer's matrices up and down: older files have them exchanged."""
    shape = tensors.shape(f"{p}ffn_down.weight")
    exchanged = len(shape) == 2 and shape[1] == e != shape[0]
    return ("ffn_down", "ffn_up") if exchanged else ("ffn_up", "ffn_down")


def _projector_shapes(
    tensors: MmprojTensors, s: EncoderShape, n_embd: int
) -> dict[str, tuple[int, ...]]:
    joined = s.width * s.merge**2
    if s.projector == "gemma3":
        return {_POOLED[0]: (s.width, n_embd), _POOLED[1]: (s.width,)}
    shapes: dict[str, tuple[int, ...]] = {}
    n_in = joined
    linears = _LINEARS[s.projector]
    for i, (name, bias) in enumerate(linears):
        last = i == len(linears) - 1
        n_out = n_embd if last else next(iter(tensors.shape(f"{name}.weight")), 0)
        shapes[f"{name}.weight"] = (n_out, n_in)
        if bias:
            shapes[f"{name}.bias"] = (n_out,)
        n_in = n_out
    if s.projector == "internvl":
        shapes |= {f"mm.model.mlp.0.{kind}": (joined,) for kind in ("weight", "bias")}
    return shapes


def _idle(s: EncoderShape) -> str:
    """Return a pattern of tensors that a file may hold though they never run: later layers."""
    later = "|".join(str(s.n_layers + i) for i in range(_MOST_IDLE))
    return rf"v\.blk\.({later})\..*"


class _Build:
    """The parts of the graph, in the order in which they run."""

    def __init__(
        self, graph: GraphWriter, tensors: MmprojTensors, shape: EncoderShape, as_mtmd: bool
    ) -> None:
        self.graph, self.tensors, self.shape, self.as_mtmd = graph, tensors, shape, as_mtmd

    def features(self) -> str:
        """Pixels → features [n, patches, width]."""
        graph, s = self.graph, self.shape
        x = self._embedded()
        if "v.pre_ln.weight" in self.tensors:
            x = self._norm(x, "v.pre_ln")
        for i in range(s.n_layers):
            x = self._layer(x, f"v.blk.{i}.")
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
        matrix = kernel.transpose(2, 3, 1, 0)  # [p, p, 3, width]
        mean, std = np.array(self.shape.mean), np.array(self.shape.std)
        offset = -(matrix * (mean / std)[:, None]).sum(axis=(0, 1, 2))
        if "v.patch_embd.bias" in self.tensors:
            offset = offset + self.tensors.read("v.patch_embd.bias")
        scaled = matrix / (255 * std)[:, None]
        return scaled.reshape(-1, self.shape.width), offset

    def _layer(self, x: str, p: str) -> str:
        graph, tensors, s = self.graph, self.tensors, self.shape
        y = self._norm(x, f"{p}ln1")
        query, key, value = self._queries(y, p)
        y = graph.add("MultiHeadAttention", query, key, value, domain=FUSED, num_heads=s.heads)
        x = graph.add("Add", x, self._linear(y, f"{p}attn_out", f"{p}ls1.weight"))
        up, down = _widening(tensors, p, s.width)
        y = self._linear(self._norm(x, f"{p}ln2"), f"{p}{up}")
        y = self._activated(y, "gelu_tanh" if self.as_mtmd and s.activation == "gelu"
                            else s.activation)  # fmt: skip
        return graph.add("Add", x, self._linear(y, f"{p}{down}", f"{p}ls2.weight"))

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
            side, m = s.side, s.merge
            x = graph.reshaped(x, 0, side, m, side, m, s.width, order=(0, 1, 3, 2, 4, 5))
            x = graph.reshaped(x, 0, side * side, m * m * s.width)
        if s.projector == "internvl":
            weight, bias = (self.tensors.read(f"mm.model.mlp.0.{k}") for k in ("weight", "bias"))
            x = graph.norm(x, "mm.model.mlp.0", weight, bias, _PROJECTOR_EPS)
        for i, (name, _) in enumerate(_LINEARS[s.projector]):
            if i:
                x = self._activated(x, "gelu_tanh" if self.as_mtmd else "gelu")
            x = self._linear(x, name)
        return x

    def _pooled(self, x: str) -> str:
        """Average merge × merge patches, as Gemma 3 does."""
        graph, s = self.graph, self.shape
        x = graph.reshaped(x, 0, s.side, s.merge, s.side, s.merge, s.width)
        x = graph.add("ReduceMean", x, graph.integers(2, 4), keepdims=0)
        x = graph.reshaped(x, 0, s.side**2, s.width)
        matrix, norm = _POOLED
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
        if activation == "quick_gelu":
            return self.graph.add("QuickGelu", x, domain=FUSED, alpha=1.702)
        tanh = activation == "gelu_tanh"
        return self.graph.add("Gelu", x, approximate="tanh" if tanh else "none")
