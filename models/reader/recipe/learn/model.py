"""The reasoner with an adapter on each matrix, in torch: read from the GGUF file that ships.

The frozen weights are the dequantized ones, so that the adapter also corrects what quantization
changed. They keep the file's layout (of q and k the rows are permuted for rotations of neighbouring
pairs), so that the adapter's matrices are exactly those that llama.cpp applies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprism.models.reader.recipe.learn.tokens import Batch

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Config:
    """Sizes of a Llama model, as its GGUF file names them."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    rope_base: float
    epsilon: float

    @property
    def head_width(self) -> int:
        """The width of one head."""
        return self.width // self.heads


@dataclass(frozen=True)
class AdapterConfig:
    """The adapter's rank and strength: it adds `alpha / rank` times B·A to a matrix."""

    rank: int = 16
    alpha: float = 32.0

    @property
    def scale(self) -> float:
        """What B·A is multiplied with."""
        return self.alpha / self.rank


def read_base(path: Path) -> tuple[Config, dict[str, Tensor]]:
    """Read a Llama model's sizes and its dequantized weights by name (float32).

    Raises ValueError for another architecture.
    """
    import gguf

    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if "llama." in name}
    if not fields:
        raise ValueError(f"{path}: not a Llama model. The recipe knows only that architecture.")
    config = Config(
        layers=fields["llama.block_count"],
        width=fields["llama.embedding_length"],
        heads=fields["llama.attention.head_count"],
        kv_heads=fields["llama.attention.head_count_kv"],
        rope_base=fields["llama.rope.freq_base"],
        epsilon=fields["llama.attention.layer_norm_rms_epsilon"],
    )
    weights = {
        tensor.name: torch.from_numpy(
            np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        )
        for tensor in reader.tensors
    }
    return config, weights


class Adapted(nn.Module):
    """Frozen matrices that share an input, each with a trained product of two narrow ones."""

    def __init__(self, weights: list[Tensor], adapter: AdapterConfig) -> None:
        super().__init__()
        self.rows = [weight.shape[0] for weight in weights]
        self.rank, self.scale = adapter.rank, adapter.scale
        self.register_buffer("frozen", torch.cat(weights).to(torch.bfloat16), persistent=False)
        columns = weights[0].shape[1]
        down = torch.randn(adapter.rank * len(weights), columns) / math.sqrt(columns)
        self.down = nn.Parameter(down)  # llama.cpp's lora_a, of all the matrices
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(n, adapter.rank)) for n in self.rows)

    def forward(self, x: Tensor) -> Tensor:
        """Return the products of all matrices, side by side."""
        narrow = functional.linear(x, self.down.to(x.dtype)).split(self.rank, -1)
        added = [
            functional.linear(part, (self.scale * up).to(x.dtype))
            for part, up in zip(narrow, self.up, strict=True)
        ]
        assert isinstance(self.frozen, Tensor)
        return functional.linear(x, self.frozen.to(x.dtype)) + torch.cat(added, -1)


class Layer(nn.Module):
    """One layer of Llama, on [examples, tokens, width]."""

    def __init__(
        self, config: Config, weights: dict[str, Tensor], number: int, adapter: AdapterConfig
    ) -> None:
        super().__init__()
        named = {
            name.removeprefix(f"blk.{number}.").removesuffix(".weight"): weight
            for name, weight in weights.items()
            if name.startswith(f"blk.{number}.")
        }
        self.config = config
        self.register_buffer("attn_norm", named["attn_norm"], persistent=False)
        self.register_buffer("ffn_norm", named["ffn_norm"], persistent=False)
        self.qkv = Adapted([named["attn_q"], named["attn_k"], named["attn_v"]], adapter)
        self.out = Adapted([named["attn_output"]], adapter)
        self.gate_up = Adapted([named["ffn_gate"], named["ffn_up"]], adapter)
        self.down = Adapted([named["ffn_down"]], adapter)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor, Tensor], hidden: Tensor) -> Tensor:
        """Return the layer's output; no token attends to those `hidden` from it."""
        config, (examples, tokens, width) = self.config, x.shape
        assert isinstance(self.attn_norm, Tensor)
        assert isinstance(self.ffn_norm, Tensor)
        joined = self.qkv(_norm(x, self.attn_norm, config.epsilon))
        joined = joined.view(examples, tokens, -1, config.head_width).transpose(1, 2)
        q, k, v = joined.split([config.heads, config.kv_heads, config.kv_heads], 1)
        mixed = _attend(_rotate(q, turn), _rotate(k, turn), v, hidden)
        x = x + self.out(mixed.transpose(1, 2).reshape(examples, tokens, width))
        gate, up = self.gate_up(_norm(x, self.ffn_norm, config.epsilon)).chunk(2, -1)
        written: Tensor = x + self.down(functional.silu(gate) * up)
        return written


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    full = x.float()
    return (full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + epsilon) * weight).to(x.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """Attention of [examples, heads, tokens, head width]; heads share keys in order.

    Written out: torch's fused CPU kernel took three times as long at these lengths.
    """
    examples, heads, tokens, width = q.shape
    groups = k.shape[1]
    q = q.reshape(examples, groups, heads // groups * tokens, width) * width**-0.5
    scores = (q @ k.transpose(-1, -2)).view(examples, heads, tokens, tokens)
    shares = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    mixed = shares.view(examples, groups, heads // groups * tokens, tokens) @ v
    return mixed.view(examples, heads, tokens, width)


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Turn neighbouring pairs of each head by their position's angles (Llama's GGUF layout)."""
    cos, sin, swap = turn
    return x * cos + (x @ swap) * sin


class Reader(nn.Module):
    """The reasoner with its adapter; only the adapter is trained."""

    def __init__(
        self, config: Config, weights: dict[str, Tensor], adapter: AdapterConfig | None = None
    ) -> None:
        super().__init__()
        self.config, self.adapter = config, adapter or AdapterConfig()
        embedding = weights["token_embd.weight"]
        self.register_buffer("embedding", embedding.to(torch.bfloat16), persistent=False)
        self.register_buffer("norm", weights["output_norm.weight"], persistent=False)
        # a model without an output matrix of its own writes with the embedding
        output = weights.get("output.weight", embedding)
        self.register_buffer("output", output.to(torch.bfloat16), persistent=False)
        self.layers = nn.ModuleList(
            Layer(config, weights, number, self.adapter) for number in range(config.layers)
        )

    def states(self, ids: Tensor, positions: Tensor, branches: Tensor) -> Tensor:
        """Return the last layer's normed states of [groups, tokens] ids (see `tokens.Batch`)."""
        assert isinstance(self.embedding, Tensor)
        assert isinstance(self.norm, Tensor)
        turn = self._angles(positions)
        own = branches[:, :, None] == branches[:, None, :]
        later = torch.ones(own.shape[1:], dtype=torch.bool, device=ids.device).triu(1)
        hidden = (later | ~(own | (branches == 0)[:, None, :]))[:, None]
        x = functional.embedding(ids, self.embedding)
        for layer in self.layers:
            x = layer(x, turn, hidden)
        return _norm(x, self.norm, self.config.epsilon)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of any states, float32."""
        assert isinstance(self.output, Tensor)
        return functional.linear(states, self.output.to(states.dtype)).float()

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross entropy of the replies' tokens."""
        states = self.states(batch.ids, batch.positions, batch.branches)
        wanted = batch.targets != -100
        return functional.cross_entropy(self.logits(states[wanted]), batch.targets[wanted])

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return cosines and sines [groups, 1, tokens, head width], and a pairs' swap."""
        width, device = self.config.head_width, positions.device
        assert isinstance(self.embedding, Tensor)
        exponents = torch.arange(width // 2, device=device, dtype=torch.float32) * 2 / width
        rates = self.config.rope_base**-exponents
        angles = (positions[:, None, :, None].float() * rates).repeat_interleave(2, -1)
        swap = torch.zeros(width, width, device=device)
        pairs = torch.arange(0, width, 2, device=device)
        swap[pairs + 1, pairs] = -1.0
        swap[pairs, pairs + 1] = 1.0
        kind = self.embedding.dtype
        return angles.cos().to(kind), angles.sin().to(kind), swap.to(kind)

    def named_pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return {a matrix's name in the GGUF file: its (lora_a, lora_b)}."""
        pairs = {}
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            parts = (layer.qkv, layer.out, layer.gate_up, layer.down)
            names = iter(MATRICES)
            for part in parts:
                downs = part.down.split(self.adapter.rank)
                for down, up in zip(downs, part.up, strict=True):
                    pairs[f"blk.{number}.{next(names)}.weight"] = (down, up)
        return pairs
