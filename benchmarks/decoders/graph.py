"""A plain decoder (RMS norms, rotary positions, SwiGLU) as a torch module, and its ONNX graph.

Its weights are the tensors that `convert` writes to a GGUF file, in their order of rows, so both
engines compute from the same numbers. It is what `DecoderGraph` of the converter is, without a
picture's rows beside the text; see the manifest's `Decoder` for what its inputs mean.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgeprism.convert.language.config import LmConfig, LmTensor
from edgeprism.convert.language.model import LmParts
from edgeprism.convert.language.quantize_blocks import quantize_blocks
from edgeprism.convert.vision.export import export_graph
from edgeprism.convert.vision.graph import Affine, GraphModule, placeholder
from edgeprism.convert.vision.pack_onnx import pack_onnx
from edgeprism.convert.vision.weights import VisionWeights, Weight, Weights, same

BITS = {"F32": 32, "8 bits": 8, "4 bits": 4}
CONTEXT = 4096  # positions that the graph knows
_MOST = 1 << 16  # of any length of the graph
# the module's name of a layer's matrix or norm → its name in a GGUF file
_LAYER = {
    "norm1": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "out": "attn_output",
    "norm2": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
# architectures of llama.cpp that rotate neighbours of a head; others rotate its halves
_NEIGHBOURS = ("llama", "internlm2")


def export_decoder(parts: LmParts, quants: Sequence[str], out: Callable[[str], Path]) -> None:
    """Write the graph of a language model in each of `quants` (of BITS), at `out(quant)`."""
    module, weights = PlainDecoder(parts.config), _weights(parts)
    work = out(quants[0]).parent / "work"
    work.mkdir()
    graph = export_graph(module, weights, work, "decoder")
    for quant in quants:
        if quant == "F32":
            pack_onnx(graph, out(quant))
        else:
            quantize_blocks(graph, out(quant), BITS[quant])
    shutil.rmtree(work)


class PlainDecoder(GraphModule):
    """Tokens and the keys and values so far → logits, and the keys and values afterwards."""

    dtype = torch.float32

    def __init__(self, config: LmConfig) -> None:
        super().__init__()
        if config.architecture not in _NEIGHBOURS or config.tied or config.qkv_bias:
            raise ValueError(f"{config.model_type}: this graph has no biases and no tied matrices")
        if config.rope_scaling.kind != "none":
            raise ValueError(f"rope_scaling {config.rope_scaling.kind!r}: not in this graph")
        self.config = config
        e, turns = config.n_embd, config.head_dim // 2
        self.words = placeholder(self.dtype, config.n_vocab, e)
        self.cos = placeholder(self.dtype, CONTEXT, turns)
        self.sin = placeholder(self.dtype, CONTEXT, turns)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.n_layers))
        self.norm = _RmsNorm(config)
        self.head = Affine(self.dtype, e, config.n_vocab, bias=False)
        self.outputs = ("logits", *(f"new_{name}" for name in kept_names(config.n_layers)))

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Return examples of all inputs, with the names of the lengths that may differ."""
        c = self.config
        batch, n, m, cells = (
            torch.export.Dim(name, min=1, max=_MOST) for name in ("batch", "n", "m", "cells")
        )
        kept = torch.zeros((2, c.n_kv_heads, 8, c.head_dim))
        return {
            "ids": (torch.zeros((2, 3), dtype=torch.int64), {0: batch, 1: n}),
            "last": (torch.tensor([2, 2], dtype=torch.int32), {0: batch}),
            "total": (torch.tensor([3], dtype=torch.int32), {}),
            "wanted": (torch.tensor([0, 2], dtype=torch.int64), {0: m}),
            **{name: (kept.clone(), {0: batch, 2: cells}) for name in kept_names(c.n_layers)},
        }

    def arranged(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Return keys and values as one tuple."""
        first = len(values) - 2 * self.config.n_layers
        return (*values[:first], tuple(values[first:]))

    def forward(
        self,
        ids: torch.Tensor,
        last: torch.Tensor,
        total: torch.Tensor,
        wanted: torch.Tensor,
        kept: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, ...]:
        """Ids [batch, n] → logits [batch, m, n_vocab], and the keys and values afterwards."""
        x = functional.embedding(ids, self.words)
        made = []
        for i, layer in enumerate(self.layers):
            cells = (kept[2 * i], kept[2 * i + 1], last, total, self.cos, self.sin)
            x, keys, values = layer(x, cells)
            made += [keys, values]
        return (self.head(self.norm(x.index_select(1, wanted))), *made)


class _Layer(nn.Module):
    def __init__(self, config: LmConfig) -> None:
        super().__init__()
        self.config = config
        e, f = config.n_embd, config.n_ffn
        own, shared = (n * config.head_dim for n in (config.n_heads, config.n_kv_heads))
        matrix = partial(Affine, torch.float32, bias=False)
        self.norm1, self.norm2 = _RmsNorm(config), _RmsNorm(config)
        self.q, self.k, self.v = matrix(e, own), matrix(e, shared), matrix(e, shared)
        self.out, self.gate, self.up = matrix(own, e), matrix(e, f), matrix(e, f)
        self.down = matrix(f, e)

    def forward(
        self, x: torch.Tensor, cells: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = self.norm1(x)
        q, k, v = self.q(y), self.k(y), self.v(y)
        attended, keys, values = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (q, k, v, *cells),
            attrs={
                "num_heads": self.config.n_heads,
                "kv_num_heads": self.config.n_kv_heads,
                "do_rotary": 1,
                "rotary_interleaved": 1,
            },
            dtypes=(x.dtype,) * 3,
            shapes=(q.shape, cells[0].shape, cells[1].shape),
            version=1,
        )
        x = x + self.out(attended)
        y = self.norm2(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y)), keys, values


class _RmsNorm(nn.Module):
    """RMS norm, in the form that ONNX Runtime makes one operator of."""

    def __init__(self, config: LmConfig) -> None:
        super().__init__()
        self.weight = placeholder(torch.float32, config.n_embd)
        self.eps = config.norm_eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.eps) * self.weight


def kept_names(n_layers: int) -> list[str]:
    """Return the names of keys and values of every layer, in the graph's order."""
    return [f"{kind}_{i}" for i in range(n_layers) for kind in ("key", "value")]


def _weights(parts: LmParts) -> VisionWeights:
    config = parts.config
    tensors = {tensor.name: tensor for tensor in parts.tensors}

    def weight(name: str, *, turned: bool = False) -> Weight:
        tensor = tensors[name]
        shapes = {tensor.source: tensor.source_shape}
        return Weight(parts.checkpoint, shapes, partial(_made, tensor, turned))

    steps = config.rope_theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
    angles = torch.outer(torch.arange(CONTEXT).double(), steps.double())
    graph: Weights = {
        "words": weight("token_embd.weight"),
        "cos": Weight(parts.checkpoint, {}, partial(same, angles.cos())),
        "sin": Weight(parts.checkpoint, {}, partial(same, angles.sin())),
        "norm.weight": weight("output_norm.weight"),
        "head.weight": weight("output.weight", turned=True),
    }
    for i in range(config.n_layers):
        for module, name in _LAYER.items():
            made = weight(f"blk.{i}.{name}.weight", turned=not module.startswith("norm"))
            graph[f"layers.{i}.{module}.weight"] = made
    return VisionWeights({"": graph})


def _made(tensor: LmTensor, turned: bool, published: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the GGUF file, a matrix as [in, out]."""
    made = tensor.make(lambda _: published)
    return made.t() if turned else made
