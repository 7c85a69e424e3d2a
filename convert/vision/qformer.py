"""The Q-Former: a BERT whose query rows read a tower's features, as a module and as published.

Post-norm layers. Queries, or queries and an instruction's text, attend to each other; in every
second layer the queries then attend to the features. Queries and text have feed-forward networks of
their own. The result is the query rows.

Sources: LAVIS' `Qformer.py`, transformers' Blip2QFormerModel and InstructBlipQFormerModel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.eva_vit import count_layers
from edgeprism.convert.vision.graph import (
    Affine,
    Norm,
    gelu,
    placeholder,
)
from edgeprism.convert.vision.weights import Weight, Weights, linear_weights, norm_weights, same
from edgeprism.errors import CheckpointError

N_HEADS = 12  # BERT-base's; LAVIS' layout does not tell it
# Tensors that never run when queries come without text, and buffers
UNUSED_TEXT = (
    r"(^|\.)embeddings\.(word|position)_embeddings\.",
    r"(^|\.)encoder\.layer\.\d+\.(intermediate|output)\.",
)
UNUSED = (r"(^|\.)embeddings\.position_ids$", r"^Qformer\.cls\.")


@dataclass(frozen=True)
class QFormerConfig:
    """The sizes of a Q-Former; without text, `n_vocab` and `n_positions` are 0."""

    n_layers: int
    n_embd: int
    n_heads: int
    n_ffn: int
    n_queries: int
    n_image: int  # the width of the tower's features
    n_vocab: int = 0
    n_positions: int = 0
    cross_every: int = 2  # layers 0, 2, 4, … attend to the features
    eps: float = 1e-12

    @property
    def reads_text(self) -> bool:
        """Whether the queries attend to an instruction."""
        return self.n_vocab > 0


class Attention(nn.Module):
    """Post-norm attention of rows [n, rows, n_embd] to rows of a width of their own."""

    def __init__(self, config: QFormerConfig, n_seen: int, dtype: torch.dtype) -> None:
        super().__init__()
        e = config.n_embd
        self.q, self.out = Affine(dtype, e, e), Affine(dtype, e, e)
        self.k, self.v = Affine(dtype, n_seen, e), Affine(dtype, n_seen, e)
        self.norm = Norm(dtype, e, config.eps)
        self.n_heads = config.n_heads

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """[n, rows, n_embd], [n, seen rows, width] → [n, rows, n_embd]."""
        n, t, e = x.shape
        d = e // self.n_heads
        q = self.q(x).reshape(n, t, self.n_heads, d).transpose(1, 2)
        k = self.k(seen).reshape(n, seen.shape[1], self.n_heads, d).transpose(1, 2)
        v = self.v(seen).reshape(n, seen.shape[1], self.n_heads, d).transpose(1, 2)
        weights = torch.softmax((q * d**-0.5) @ k.transpose(2, 3), dim=-1)
        y: torch.Tensor = self.norm(x + self.out((weights @ v).transpose(1, 2).reshape(n, t, e)))
        return y


class FeedForward(nn.Module):
    """A post-norm feed-forward network with GELU in its erf form."""

    def __init__(self, config: QFormerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        e, f = config.n_embd, config.n_ffn
        self.fc1, self.fc2 = Affine(dtype, e, f), Affine(dtype, f, e)
        self.norm = Norm(dtype, e, config.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, rows, n_embd] → the same shape."""
        y: torch.Tensor = self.norm(x + self.fc2(gelu(self.fc1(x), "gelu")))
        return y


class Layer(nn.Module):
    """One layer over query rows and, behind them, text rows."""

    def __init__(self, config: QFormerConfig, number: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.n_queries = config.n_queries
        self.attention = Attention(config, config.n_embd, dtype)
        crosses = number % config.cross_every == 0
        self.cross = Attention(config, config.n_image, dtype) if crosses else None
        self.queries = FeedForward(config, dtype)
        # nothing reads the text rows of the last layer
        speaks = config.reads_text and number < config.n_layers - 1
        self.text = FeedForward(config, dtype) if speaks else None

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """[n, queries + text, n_embd], [n, rows, n_image] → the former's shape, or queries alone.

        The last layer returns the queries alone.
        """
        x = self.attention(x, x)
        queries: torch.Tensor = x[:, : self.n_queries]
        if self.cross is not None:
            queries = self.cross(queries, image)
        queries = self.queries(queries)
        if self.text is None:
            return queries
        return torch.cat([queries, self.text(x[:, self.n_queries :])], dim=1)


class QFormer(nn.Module):
    """Features [n, rows, n_image] and, if it reads text, ids [1, T] → rows [n, n_queries, n_embd].

    The ids are BERT's, [CLS] and [SEP] included, and positions count from 0. All of them are seen:
    a caller passes no padding.
    """

    def __init__(self, config: QFormerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        e = config.n_embd
        self.query_rows = placeholder(dtype, config.n_queries, e)
        self.words = placeholder(dtype, config.n_vocab, e) if config.reads_text else None
        self.positions = placeholder(dtype, config.n_positions, e) if config.reads_text else None
        self.norm = Norm(dtype, e, config.eps)
        self.layers = nn.ModuleList(Layer(config, i, dtype) for i in range(config.n_layers))

    def forward(self, image: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """Features [n, rows, n_image], ids int64 [1, T] → rows [n, n_queries, n_embd]."""
        n = image.shape[0]
        x = self.query_rows.expand(n, -1, -1)
        if self.words is not None and self.positions is not None and ids is not None:
            text = functional.embedding(ids, self.words) + self.positions[: ids.shape[1]]
            x = torch.cat([x, text.expand(n, -1, -1)], dim=1)
        rows: torch.Tensor = self.norm(x)
        for layer in self.layers:
            rows = layer(rows, image)
        return rows


# ---- as published


@dataclass(frozen=True)
class Names:
    """A layout's names; `lead` stands before those of the BERT."""

    lead: str
    norm: str  # of the norm over the embeddings
    inner: str  # of the matrices of queries, keys and values
    queries: str = "query_tokens"


LAVIS = Names("Qformer.bert.", "embeddings.LayerNorm", "self")
BLIP_2 = Names("qformer.", "layernorm", "attention")
INSTRUCT_BLIP = Names("qformer.", "embeddings.layernorm", "attention")


@dataclass(frozen=True)
class QFormerTensors:
    """Where a Q-Former's tensors lie."""

    checkpoint: Checkpoint
    names: Names = LAVIS


def qformer_config(
    tensors: QFormerTensors, reads_text: bool, n_heads: int = N_HEADS
) -> QFormerConfig:
    """Return the Q-Former whose sizes the tensors' shapes tell; CheckpointError if there is none.

    Args:
        tensors: Where they lie.
        reads_text: Whether the queries attend to an instruction.
        n_heads: The number of heads.
    """
    checkpoint, names = tensors.checkpoint, tensors.names
    layer = f"{names.lead}encoder.layer."
    _, n_queries, e = checkpoint.sizes(names.queries, 3)
    n_ffn, _ = checkpoint.sizes(f"{layer}0.intermediate_query.dense.weight", 2)
    _, n_image = checkpoint.sizes(f"{layer}0.crossattention.{names.inner}.key.weight", 2)
    n_vocab = n_positions = 0
    if reads_text:
        n_vocab, _ = checkpoint.sizes(f"{names.lead}embeddings.word_embeddings.weight", 2)
        n_positions, _ = checkpoint.sizes(f"{names.lead}embeddings.position_embeddings.weight", 2)
    if e % n_heads:
        raise CheckpointError(
            f"{checkpoint.folder} ({checkpoint.role}): a Q-Former of width {e} with {n_heads} "
            "heads is not understood.",
            "Use the files as they were published.",
        )
    return QFormerConfig(
        n_layers=count_layers(checkpoint.names, layer),
        n_embd=e,
        n_heads=n_heads,
        n_ffn=n_ffn,
        n_queries=n_queries,
        n_image=n_image,
        n_vocab=n_vocab,
        n_positions=n_positions,
    )


def qformer_weights(config: QFormerConfig, tensors: QFormerTensors) -> Weights:
    """Return QFormer's parameters."""
    checkpoint, names, e = tensors.checkpoint, tensors.names, config.n_embd
    queries = {names.queries: (1, config.n_queries, e)}
    weights: Weights = {"query_rows": Weight(checkpoint, queries, lambda rows: rows[0])}
    weights |= norm_weights("norm", checkpoint, f"{names.lead}{names.norm}", e)
    if config.reads_text:
        tables = {"words": ("word", config.n_vocab), "positions": ("position", config.n_positions)}
        for module, (kind, n) in tables.items():
            source = {f"{names.lead}embeddings.{kind}_embeddings.weight": (n, e)}
            weights[module] = Weight(checkpoint, source, same)
    for i in range(config.n_layers):
        weights |= _layer_weights(config, tensors, i)
    return weights


def qformer_unused(config: QFormerConfig) -> tuple[str, ...]:
    """Return patterns of the tensors that a checkpoint may hold and that never run."""
    last = rf"(^|\.)encoder\.layer\.{config.n_layers - 1}\.(intermediate|output)\."
    return (*UNUSED, last) if config.reads_text else (*UNUSED, *UNUSED_TEXT)


def _layer_weights(config: QFormerConfig, tensors: QFormerTensors, number: int) -> Weights:
    source, module = f"{tensors.names.lead}encoder.layer.{number}.", f"layers.{number}."
    attentions = {"attention": ("attention", config.n_embd)}
    if number % config.cross_every == 0:
        attentions["cross"] = ("crossattention", config.n_image)
    ends = {"queries": "_query"}
    if config.reads_text and number < config.n_layers - 1:
        ends["text"] = ""
    weights: Weights = {}
    for part, (published, n_seen) in attentions.items():
        weights |= _attention_weights(
            config, tensors, f"{module}{part}.", f"{source}{published}.", n_seen
        )
    e, f, checkpoint = config.n_embd, config.n_ffn, tensors.checkpoint
    for part, ending in ends.items():
        inner, outer = f"{source}intermediate{ending}.dense", f"{source}output{ending}."
        weights |= linear_weights(f"{module}{part}.fc1", checkpoint, inner, e, f)
        weights |= linear_weights(f"{module}{part}.fc2", checkpoint, f"{outer}dense", f, e)
        weights |= norm_weights(f"{module}{part}.norm", checkpoint, f"{outer}LayerNorm", e)
    return weights


def _attention_weights(
    config: QFormerConfig, tensors: QFormerTensors, module: str, source: str, n_seen: int
) -> Weights:
    checkpoint, e = tensors.checkpoint, config.n_embd
    inner = f"{source}{tensors.names.inner}."
    weights = linear_weights(f"{module}q", checkpoint, f"{inner}query", e, e)
    weights |= linear_weights(f"{module}k", checkpoint, f"{inner}key", n_seen, e)
    weights |= linear_weights(f"{module}v", checkpoint, f"{inner}value", n_seen, e)
    weights |= linear_weights(f"{module}out", checkpoint, f"{source}output.dense", e, e)
    weights |= norm_weights(f"{module}norm", checkpoint, f"{source}output.LayerNorm", e)
    return weights
