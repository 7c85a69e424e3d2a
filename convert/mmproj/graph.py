"""An mmproj file's tower and projector → one ONNX graph in float32.

The graph takes uint8 pixels [n, size, size, 3] and gives visual tokens [n, tokens, n_embd]; where
each picture has a shape of its own, it takes [n, height, width, 3]. `tower.py`, `free_tower.py`
and `resampler_tower.py` write its nodes; this file checks that the tensors are those they take.

Sources: the published models' code, as `convert/families` names it, and for the names of tensors
and the order of the parts llama.cpp's `tools/mtmd/models`.
"""

from __future__ import annotations

from pathlib import Path

from edgeprism.convert.mmproj.free_tower import FreeTower
from edgeprism.convert.mmproj.resampler_tower import ResamplerTower, resampler_shapes
from edgeprism.convert.mmproj.shape import EncoderShape
from edgeprism.convert.mmproj.tensors import MmprojTensors
from edgeprism.convert.mmproj.tower import (
    LINEARS,
    POOLED,
    PROJECTOR_NORMS,
    Tower,
    names_of_widening,
)
from edgeprism.convert.mmproj.writer import GraphWriter
from edgeprism.convert.vision.quantize import OUTPUT

_MOST_IDLE = 64  # layers that a file may hold behind the last one that runs


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
        tower = _kind(shape)(graph, tensors, shape, as_mtmd)
        rows = tower.projected(tower.features())
        return graph.finish(tower.source(), (rows, OUTPUT, (tower.n_tokens, n_embd)))


def is_read_alike(shape: EncoderShape) -> bool:
    """Return whether `write_graph` writes the same graph with `as_mtmd` and without it."""
    # the projectors of the others have a GELU of their own
    one_matrix = shape.projector in ("gemma3", "idefics3")
    return one_matrix and not shape.class_row and shape.activation != "gelu"


def _kind(shape: EncoderShape) -> type[Tower]:
    if shape.queries:
        return ResamplerTower
    return FreeTower if shape.is_free else Tower


def _shapes(tensors: MmprojTensors, s: EncoderShape, n_embd: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the graph takes, by name."""
    e = s.width
    kernel = (e, 3, s.patch, s.patch)
    shapes: dict[str, tuple[int, ...]] = {"v.patch_embd.weight": kernel}
    if s.rotates:
        shapes["v.patch_embd.weight.1"] = kernel
    else:
        shapes["v.position_embd.weight"] = ((s.table or s.grid) ** 2 + int(s.class_row), e)
    if s.class_row:
        shapes["v.class_embd"] = (e,)
    optional = ["v.patch_embd.bias"]
    for norm in ("v.pre_ln", "v.post_ln"):
        kinds = ("weight",) if s.rms else ("weight", "bias")
        optional += [f"{norm}.{k}" for k in kinds] if f"{norm}.weight" in tensors else []
    shapes |= {name: (e,) for name in optional if name in tensors or "_ln" in name}
    for i in range(s.n_layers):
        shapes |= _layer_shapes(tensors, f"v.blk.{i}.", s)
    return shapes | _projector_shapes(tensors, s, n_embd)


def _layer_shapes(tensors: MmprojTensors, p: str, s: EncoderShape) -> dict[str, tuple[int, ...]]:
    e = s.width
    up, down = names_of_widening(tensors, p, e)
    n_ffn = next(iter(tensors.shape(f"{p}{up}.weight")), 0)
    shapes: dict[str, tuple[int, ...]] = {
        f"{p}{up}.weight": (n_ffn, e),
        f"{p}{down}.weight": (e, n_ffn),
        f"{p}attn_out.weight": (e, e),
    }
    biases = {up: n_ffn, down: e, "attn_out": e}
    if f"{p}ffn_gate.weight" in tensors:
        shapes[f"{p}ffn_gate.weight"], biases["ffn_gate"] = (n_ffn, e), n_ffn
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


def _projector_shapes(
    tensors: MmprojTensors, s: EncoderShape, n_embd: int
) -> dict[str, tuple[int, ...]]:
    joined = s.width * s.merge**2
    if s.queries:
        return resampler_shapes(s, n_embd)
    if s.projector == "gemma3":
        return {POOLED[0]: (s.width, n_embd), POOLED[1]: (s.width,)}
    shapes: dict[str, tuple[int, ...]] = {}
    n_in = joined
    linears = LINEARS[s.projector]
    for i, (name, bias) in enumerate(linears):
        last = i == len(linears) - 1
        n_out = n_embd if last else next(iter(tensors.shape(f"{name}.weight")), 0)
        shapes[f"{name}.weight"] = (n_out, n_in)
        if bias:
            shapes[f"{name}.bias"] = (n_out,)
        n_in = n_out
    norm = PROJECTOR_NORMS.get(s.projector, "")
    if s.projector == "internvl" or f"{norm}.weight" in tensors:  # LFM2.5-VL has none
        shapes |= {f"{norm}.{kind}": (joined,) for kind in ("weight", "bias")}
    return shapes


def _idle(s: EncoderShape) -> str:
    """Return a pattern of tensors that a file may hold though they never run: later layers."""
    later = "|".join(str(s.n_layers + i) for i in range(_MOST_IDLE))
    # a table of positions that llama.cpp asks for and does not use
    return rf"v\.blk\.({later})\..*|resampler\.pos_embed_k"
