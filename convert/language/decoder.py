"""A text decoder that attends to a picture's rows beside the text, as torch modules for export.

It is BERT's decoder: norms behind each part, learned positions, and in each layer attention to the
text so far, attention to the rows, and a feed-forward part. Source: transformers'
`modeling_blip_text.py`, and `med.py` of salesforce/BLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgeprism.convert.gate import data
from edgeprism.convert.language.config import LmTensor, published_shapes
from edgeprism.convert.language.vocabulary import Vocabulary
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.graph import Affine, GraphModule, Norm, placeholder
from edgeprism.convert.vision.weights import VisionWeights

MOST = 1 << 16  # of any length of the graphs
DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class DecoderSizes:
    """The sizes of a decoder of any kind."""

    n_layers: int
    n_embd: int
    n_heads: int
    n_ffn: int
    n_vocab: int
    context_length: int
    eps: float
    architecture: ClassVar[str]  # in the GGUF file of its vocabulary
    clean_up: ClassVar[str] = ""  # as in the manifest
    encoder: ClassVar[None] = None  # as of a model that llama.cpp runs

    @property
    def head_dim(self) -> int:
        """The width of one head."""
        return self.n_embd // self.n_heads

    def graph(self) -> GraphModule:
        """Return the module of the manifest's `Decoder.file`."""
        raise NotImplementedError


@dataclass(frozen=True)
class DecoderConfig(DecoderSizes):
    """The sizes of BERT's decoder; `row_width` is that of a picture's rows."""

    row_width: int
    architecture = "bert"
    clean_up = "wordpiece"

    def graph(self) -> GraphModule:
        """Return the module of the manifest's `Decoder.file`."""
        return DecoderGraph(self)


@dataclass(frozen=True)
class CrossParts:
    """What makes keys and values of a picture's rows: the module, and its weights."""

    graph: CrossGraph
    weights: VisionWeights


@dataclass(frozen=True)
class DecoderParts:
    """The parts of a language model that ONNX Runtime runs; the reference calls its Tick.

    Args:
        checkpoint: Where its tensors lie.
        config: Its sizes.
        vocabulary: What becomes a GGUF file of its own.
        decoder: The weights of the decoder's graph.
        reference_logits: (texts as ids, a picture's rows [n, row_width], Tick) → the logits of
            each, in torch.
        reference_ids: The published tokenizer.
        row_width: The width of visual tokens.
        unused: Patterns of tensors that the checkpoint may hold and nothing needs.
        cross: What a picture's rows beside the text go through. None: they stand among the tokens.
        embedding: Without `cross`, the table by which tokens become rows.
        n_ticks: How often the reference calls its Tick; 0: once for each text.
        tokenizer_texts: Texts that both tokenizers must cut alike.
    """

    checkpoint: Checkpoint
    config: DecoderSizes
    vocabulary: Vocabulary
    decoder: VisionWeights
    reference_logits: Callable[[list[list[int]], np.ndarray, Callable[[], None]], list[np.ndarray]]
    reference_ids: Callable[[str], list[int]]
    row_width: int
    unused: tuple[str, ...] = field(default=())
    cross: CrossParts | None = None
    embedding: LmTensor | None = None
    n_ticks: int = 0
    tokenizer_texts: Sequence[str] = data.TOKENIZER_TEXTS

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return {name: shape} of every tensor that the checkpoint must hold."""
        found = published_shapes([self.embedding] if self.embedding else [])
        for weights in (self.decoder, *([self.cross.weights] if self.cross else [])):
            for _, shapes in weights.requirements():
                found |= shapes
        return found


class DecoderLayer(nn.Module):
    """Attention to the text so far, attention to the rows, and a feed-forward part."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        e, f = config.n_embd, config.n_ffn
        self.n_heads = config.n_heads
        self.q, self.k, self.v, self.out = (Affine(torch.float32, e, e) for _ in range(4))
        self.cross_q, self.cross_out = (Affine(torch.float32, e, e) for _ in range(2))
        self.fc1, self.fc2 = Affine(torch.float32, e, f), Affine(torch.float32, f, e)
        self.norm_out, self.norm_cross, self.norm_last = (
            Norm(torch.float32, e, config.eps) for _ in range(3)
        )

    def forward(
        self,
        x: torch.Tensor,
        kept: tuple[torch.Tensor, torch.Tensor],
        cells: tuple[torch.Tensor, torch.Tensor],
        rows: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [batch, n, n_embd] → the same shape, with the layer's keys and values.

        `kept` are keys and values [batch, heads, cells, head_dim]; `cells` are their last indices
        and the largest of these plus 1; `rows` are the picture's keys and values; `mask`
        [batch, 1, 1, rows] is added to the scores of these.
        """
        attended, keys, values = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::GroupQueryAttention",
            (self.q(x), self.k(x), self.v(x), *kept, *cells),
            attrs={"num_heads": self.n_heads, "kv_num_heads": self.n_heads},
            dtypes=(x.dtype,) * 3,
            shapes=(x.shape, kept[0].shape, kept[1].shape),
            version=1,
        )
        x = self.norm_out(x + self.out(attended))
        x = self.norm_cross(x + self.cross_out(self._seen(self.cross_q(x), *rows, mask)))
        return self.norm_last(x + self.fc2(functional.gelu(self.fc1(x)))), keys, values

    def _seen(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Attend to the rows: q [batch, n, n_embd] → the same shape."""
        n, length, e = q.shape
        heads = q.reshape(n, length, self.n_heads, e // self.n_heads).transpose(1, 2)
        scores = heads @ keys.transpose(2, 3) * (e // self.n_heads) ** -0.5 + mask
        seen: torch.Tensor = torch.softmax(scores, dim=-1) @ values
        return seen.transpose(1, 2).reshape(n, length, e)


class DecoderGraph(GraphModule):
    """Tokens and what is kept of the text and the picture → logits; see the manifest's Decoder."""

    dtype = torch.float32
    lengths: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        e = config.n_embd
        self.config = config
        # the table of words is the output, too
        self.words = placeholder(self.dtype, config.n_vocab, e)
        self.places = placeholder(self.dtype, config.context_length, e)
        self.norm_first = Norm(self.dtype, e, config.eps)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_layers))
        self.head = Affine(self.dtype, e, e)
        self.norm_head = Norm(self.dtype, e, config.eps)
        self.bias = placeholder(self.dtype, config.n_vocab)
        self.outputs = ("logits", *(f"new_{name}" for name in kept_names(config)))

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Return examples of all inputs, with the names of the lengths that may differ."""
        c = self.config
        batch, n, m, cells, rows = (
            torch.export.Dim(name, min=1, max=MOST) for name in ("batch", "n", "m", "cells", "rows")
        )
        longs = torch.zeros((2, 3), dtype=torch.int64)
        ends = torch.tensor([2, 2], dtype=torch.int32)
        kept, seen = (torch.zeros((2, c.n_heads, length, c.head_dim)) for length in (8, 5))
        return {
            "ids": (longs, {0: batch, 1: n}),
            "positions": (longs.clone(), {0: batch, 1: n}),
            "last": (ends, {0: batch}),
            "total": (torch.tensor([3], dtype=torch.int32), {}),
            "wanted": (torch.tensor([0, 2], dtype=torch.int64), {0: m}),
            "n_rows": (torch.tensor([5, 4], dtype=torch.int64), {0: batch}),
            **{name: (kept.clone(), {0: batch, 2: cells}) for name in kept_names(c)},
            **{f"cross_{name}": (seen.clone(), {0: batch, 2: rows}) for name in kept_names(c)},
        }

    def arranged(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Return keys and values of the text as one tuple, and those of the picture as another."""
        first = len(values) - 4 * self.config.n_layers
        middle = first + 2 * self.config.n_layers
        return (*values[:first], tuple(values[first:middle]), tuple(values[middle:]))

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        last: torch.Tensor,
        total: torch.Tensor,
        wanted: torch.Tensor,
        n_rows: torch.Tensor,
        kept: tuple[torch.Tensor, ...],
        rows: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, ...]:
        """Ids [batch, n] → logits [batch, m, n_vocab], and the keys and values afterwards."""
        x = functional.embedding(ids, self.words) + functional.embedding(positions, self.places)
        x = self.norm_first(x)
        is_row = torch.arange(rows[0].shape[2]) < n_rows[:, None, None, None]
        mask = torch.where(is_row, 0.0, float("-inf"))
        made = []
        for i, layer in enumerate(self.layers):
            pair = slice(2 * i, 2 * i + 2)
            x, keys, values = layer(x, kept[pair], (last, total), rows[pair], mask)
            made += [keys, values]
        x = self.norm_head(functional.gelu(self.head(x.index_select(1, wanted))))
        flat = functional.linear(x.flatten(0, 1), self.words, self.bias)
        return (flat.unflatten(0, (x.shape[0], x.shape[1])), *made)


class CrossGraph(GraphModule):
    """A picture's rows [1, n, row_width] → keys and values of every layer for them."""

    dtype = torch.float32

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            Affine(self.dtype, config.row_width, config.n_embd) for _ in range(2 * config.n_layers)
        )
        self.outputs = tuple(f"cross_{name}" for name in kept_names(config))

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Rows of any number."""
        batch, n = (torch.export.Dim(name, min=1, max=MOST) for name in ("batch", "rows"))
        return {"rows": (torch.zeros((2, 3, self.config.row_width)), {0: batch, 1: n})}

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rows [1, n, row_width] → [1, heads, n, head_dim] for each layer's keys and values."""
        c = self.config
        return tuple(
            layer(rows).unflatten(-1, (c.n_heads, c.head_dim)).transpose(1, 2)
            for layer in self.layers
        )


def kept_names(config: DecoderSizes) -> list[str]:
    """Return the names of keys and values of every layer, in the graphs' order."""
    return [f"{kind}_{i}" for i in range(config.n_layers) for kind in ("key", "value")]
