"""CogVLM and CogVLM2 in torch, a reference: the modules' names are those of the published files.

Sources: the code that the two publish with their weights (`modeling_cogvlm.py`, `visual.py`). Two
experts share one sequence: a row goes through the vision expert if it and the row after it are of
the picture, so that the picture's last row goes through the language expert. All patches stand at
one position, and see only the patches before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from tests.helpers.tiny_captioners import Reference

LANGUAGE, VISION = 0, 1  # types of rows


@dataclass(frozen=True)
class Sizes:
    """What config.json says of a model; `kv_heads` less than `heads` only in CogVLM2."""

    n_vocab: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    ffn: int = 160
    base: float = 10000.0  # of the rotary angles: it stands in the published code alone
    second: bool = False  # CogVLM2: a 2×2 convolution after the tower, biases of the vision expert
    image_size: int = 70
    patch: int = 14
    tower_width: int = 48
    tower_layers: int = 3
    tower_heads: int = 4
    tower_ffn: int = 112
    eps: float = 1e-5
    tower_eps: float = 1e-6


def is_vision_expert(types: torch.Tensor) -> torch.Tensor:
    """Return bool [n]: the row and the one after it are of the picture."""
    followed = torch.cat([types[1:], types.new_tensor([LANGUAGE])])
    return (types == VISION) & (followed == VISION)


def positions_of(types: torch.Tensor) -> torch.Tensor:
    """Return int [n]: each row counts one, but all patches together count one.

    The picture's first and last row are marks, and count by themselves.
    """
    before = torch.cat([types.new_tensor([LANGUAGE]), types[:-1]])
    after = torch.cat([types[1:], types.new_tensor([LANGUAGE])])
    patch = (types == VISION) & (before == VISION) & (after == VISION)
    again = torch.cat([patch.new_tensor([False]), patch[:-1]]) & patch
    return (~again).long().cumsum(0) - 1


class Tower(nn.Module):
    """EVA2-CLIP, its connector, and the two marks around the picture's rows."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.tower_width
        side = sizes.image_size // sizes.patch
        self.patch_embedding = nn.Module()
        self.patch_embedding.proj = nn.Conv2d(3, width, sizes.patch, sizes.patch)
        self.patch_embedding.cls_embedding = nn.Parameter(torch.zeros(1, width))
        self.patch_embedding.position_embedding = nn.Embedding(1 + side**2, width)
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(Block(sizes) for _ in range(sizes.tower_layers))
        self.linear_proj = Connector(sizes)
        if sizes.second:
            self.conv = nn.Conv2d(width, width, 2, 2)
        self.boi = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.eoi = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.side = side

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, size, size] → [n, patches, width of the tower]"""
        embed: Any = self.patch_embedding
        x = embed.proj(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([embed.cls_embedding.expand(len(x), 1, -1), x], dim=1)
        x = x + embed.position_embedding.weight
        for block in cast("Any", self.transformer).layers:
            x = block(x)
        return cast("torch.Tensor", x[:, 1:])

    def connected(self, patches: torch.Tensor) -> torch.Tensor:
        """Return mark, rows and mark: [n, 2 + rows, width of the LM]."""
        if hasattr(self, "conv"):
            square = patches.transpose(1, 2).unflatten(2, (self.side, self.side))
            patches = self.conv(square).flatten(2).transpose(1, 2)
        n = len(patches)
        rows = self.linear_proj(patches)
        return torch.cat([self.boi.expand(n, 1, -1), rows, self.eoi.expand(n, 1, -1)], dim=1)


class Block(nn.Module):
    """Attention and MLP whose outputs are normed before they are added."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, self.heads = sizes.tower_width, sizes.tower_heads
        self.input_layernorm, self.post_attention_layernorm = (
            nn.LayerNorm(width, eps=sizes.tower_eps) for _ in range(2)
        )
        self.attention = nn.ModuleDict(
            {"query_key_value": nn.Linear(width, 3 * width), "dense": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, sizes.tower_ffn), "fc2": nn.Linear(sizes.tower_ffn, width)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, rows, width] → the same shape."""
        packed = self.attention["query_key_value"](x).unflatten(-1, (3, self.heads, -1))
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.input_layernorm(self.attention["dense"](attended))
        inner = functional.gelu(self.mlp["fc1"](x))
        y: torch.Tensor = x + self.post_attention_layernorm(self.mlp["fc2"](inner))
        return y


class Connector(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.linear_proj = nn.Linear(sizes.tower_width, sizes.width, bias=False)
        self.norm1 = nn.LayerNorm(sizes.width)
        self.gate_proj = nn.Linear(sizes.width, sizes.ffn, bias=False)
        self.dense_h_to_4h = nn.Linear(sizes.width, sizes.ffn, bias=False)
        self.dense_4h_to_h = nn.Linear(sizes.ffn, sizes.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, rows, width of the tower] → [n, rows, width of the LM]"""
        x = functional.gelu(self.norm1(self.linear_proj(x)))
        gated = functional.silu(self.gate_proj(x)) * self.dense_h_to_4h(x)
        y: torch.Tensor = self.dense_4h_to_h(gated)
        return y


class Norm(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(sizes.width))
        self.eps = sizes.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, width] → the same shape."""
        return functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Mlp(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.width, sizes.ffn, bias=False)
        self.up_proj = nn.Linear(sizes.width, sizes.ffn, bias=False)
        self.down_proj = nn.Linear(sizes.ffn, sizes.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, width] → the same shape."""
        y: torch.Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Attention(nn.Module):
    """Attention whose matrices differ between the experts, while all rows attend together."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, width = sizes, sizes.width
        packed = width + 2 * width // sizes.heads * sizes.kv_heads
        self.vision_expert_query_key_value = nn.Linear(width, packed, bias=sizes.second)
        self.vision_expert_dense = nn.Linear(width, width, bias=False)
        self.language_expert_query_key_value = nn.Linear(width, packed, bias=False)
        self.language_expert_dense = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """[n, width] and types [n] → [n, width]"""
        vision = is_vision_expert(types)[:, None]
        packed = torch.where(
            vision, self.vision_expert_query_key_value(x), self.language_expert_query_key_value(x)
        )
        heads, kv_heads = self.sizes.heads, self.sizes.kv_heads
        each = packed.unflatten(-1, (heads + 2 * kv_heads, -1)).transpose(0, 1)
        q, k, v = each.split([heads, kv_heads, kv_heads])
        positions = positions_of(types)
        q, k = (self._rotated(part, positions) for part in (q, k))
        k, v = (part.repeat_interleave(heads // kv_heads, dim=0) for part in (k, v))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        flat = attended.transpose(0, 1).flatten(1)
        return torch.where(vision, self.vision_expert_dense(flat), self.language_expert_dense(flat))

    def _rotated(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Turn each pair of x[i] and x[i + half]."""
        half = x.shape[-1] // 2
        frequencies = self.sizes.base ** (-torch.arange(half) / half)
        angles = positions[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        a, b = x.split(half, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Layer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        self.mlp = nn.ModuleDict({"language_mlp": Mlp(sizes), "vision_mlp": Mlp(sizes)})
        self.input_layernorm, self.post_attention_layernorm = Norm(sizes), Norm(sizes)

    def forward(self, x: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """[n, width] and types [n] → [n, width]"""
        x = x + self.self_attn(self.input_layernorm(x), types)
        h = self.post_attention_layernorm(x)
        vision = is_vision_expert(types)[:, None]
        return x + torch.where(vision, self.mlp["vision_mlp"](h), self.mlp["language_mlp"](h))


class CogVlm(nn.Module):
    """Tower and language model; `state_dict` has the published names."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.model = nn.ModuleDict({
            "embed_tokens": nn.Embedding(sizes.n_vocab, sizes.width),
            "layers": nn.ModuleList(Layer(sizes) for _ in range(sizes.layers)),
            "norm": Norm(sizes), "vision": Tower(sizes),
        })  # fmt: skip
        self.lm_head = nn.Linear(sizes.width, sizes.n_vocab, bias=False)

    @property
    def vision(self) -> Tower:
        return cast("Tower", self.model["vision"])

    def embed(self, ids: list[int]) -> torch.Tensor:
        """Return [n, width]."""
        rows: torch.Tensor = self.model["embed_tokens"](torch.tensor(ids, dtype=torch.long))
        return rows

    def logits(self, rows: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """Return [n, n_vocab] after rows [n, width] of `types` [n]."""
        for layer in cast("nn.ModuleList", self.model["layers"]):
            rows = layer(rows, types)
        y: torch.Tensor = self.lm_head(self.model["norm"](rows))
        return y


@dataclass
class CogVlmReference(Reference):
    """`lm` is the whole `CogVlm`; visual tokens begin and end with the picture's marks."""

    @torch.inference_mode()
    def forced_logits(self, image: Image.Image, ids: list[int]) -> torch.Tensor:
        """Return [1 + len(ids), n_vocab], which predict each of `ids` and what follows them."""
        model = cast("CogVlm", self.lm)
        before, _, after = self.prompt_ids()
        shown = self.visual_tokens(image)
        rows = torch.cat([model.embed(before), shown, model.embed(after + ids)])
        types = torch.full((len(rows),), LANGUAGE)
        types[len(before) : len(before) + len(shown)] = VISION
        return model.logits(rows, types)[-1 - len(ids) :]

    def greedy(self, image: Image.Image, n_tokens: int, *others: Image.Image) -> list[int]:
        """Return the likeliest tokens after one picture and INSTRUCTION."""
        if others:
            raise ValueError("A prompt of CogVLM has one picture.")
        ids: list[int] = []
        while len(ids) < n_tokens:
            ids.append(int(self.forced_logits(image, ids)[-1].argmax()))
        return ids
