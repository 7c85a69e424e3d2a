"""The PrismCaptioner architecture at toy size: SigLIP tower, projector, InternLM2 decoder.

These small modules compute the same as transformers' ``SiglipVisionModel`` up to
``hidden_states[-2]``, the projector and an InternLM2, and train faster on a CPU. Parameters are
packed as in the published checkpoints (``wqkv``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprism.models.nano.recipe.world.draw import FRAME, PATCH
from edgeprism.models.nano.recipe.world.labels import PATCH_LABELS, SCENE_LABELS, WEIGHTS


@dataclass(frozen=True)
class NanoConfig:
    """Dimensions. ``vision_layers`` counts the layers that run; a checkpoint lists one more."""

    vision_width: int = 256
    vision_layers: int = 5
    vision_heads: int = 4
    vision_ffn: int = 1024
    image_size: int = FRAME
    patch: int = PATCH
    lm_width: int = 256
    lm_layers: int = 4
    lm_heads: int = 4
    lm_kv_heads: int = 4
    lm_ffn: int = 704
    vocab: int = 1280
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5
    layer_norm_eps: float = 1e-6
    positions: int = 2048

    def to_json(self) -> dict[str, int | float]:
        """The dimensions by name."""
        return asdict(self)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Softmax attention, all [b, heads, n, d].

    Written as two products, because at these sizes the backward pass of PyTorch's fused CPU kernel
    takes longer.
    """
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        n, n_keys = scores.shape[-2:]  # every query sees the keys before the first query's
        future = torch.ones(n, n_keys, dtype=torch.bool, device=scores.device).triu(1 + n_keys - n)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


class VisionLayer(nn.Module):
    """Pre-norm attention and GELU (tanh form) block of SigLIP, queries/keys/values fused."""

    def __init__(self, c: NanoConfig) -> None:
        super().__init__()
        self.heads = c.vision_heads
        self.norm1 = nn.LayerNorm(c.vision_width, eps=c.layer_norm_eps)
        self.qkv = nn.Linear(c.vision_width, 3 * c.vision_width)
        self.out = nn.Linear(c.vision_width, c.vision_width)
        self.norm2 = nn.LayerNorm(c.vision_width, eps=c.layer_norm_eps)
        self.fc1 = nn.Linear(c.vision_width, c.vision_ffn)
        self.fc2 = nn.Linear(c.vision_ffn, c.vision_width)

    def forward(self, x: Tensor) -> Tensor:
        """[b, n, d] → the same shape."""
        b, n, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [b, heads, n, head_dim]
        attended = attend(q, k, v, causal=False).transpose(1, 2).reshape(b, n, d)
        x = x + self.out(attended)
        y: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))
        return x + y


class Tower(nn.Module):
    """Patches → features of the last layer that runs, without a norm after it, as published."""

    def __init__(self, c: NanoConfig) -> None:
        super().__init__()
        self.patch = c.patch
        self.embed = nn.Linear(3 * c.patch * c.patch, c.vision_width)
        n = (c.image_size // c.patch) ** 2
        self.position = nn.Parameter(torch.randn(n, c.vision_width) * 0.02)
        self.layers = nn.ModuleList(VisionLayer(c) for _ in range(c.vision_layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [b, side, side, 3] → float [b, n_tokens, vision_width]."""
        x = pixels.to(torch.float32) / 127.5 - 1.0  # ×1/255, mean and std 0.5
        b, side, p = x.shape[0], x.shape[1], self.patch
        g = side // p
        x = x.view(b, g, p, g, p, 3).permute(0, 1, 3, 5, 2, 4).reshape(b, g * g, 3 * p * p)
        features: Tensor = self.embed(x) + self.position
        for layer in self.layers:
            features = layer(features)
        return features


class RMSNorm(nn.Module):
    """Division by the root mean square over the last axis, then a weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[…, width] → the same shape."""
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions by halves: x [b, heads, n, d]; cos, sin [n, d]."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class DecoderLayer(nn.Module):
    """InternLM2 block. ``wqkv`` rows: per kv head its queries, then its key, then its value."""

    def __init__(self, c: NanoConfig) -> None:
        super().__init__()
        self.kv, self.group = c.lm_kv_heads, c.lm_heads // c.lm_kv_heads
        self.head_dim = c.lm_width // c.lm_heads
        rows = self.kv * (self.group + 2) * self.head_dim
        self.attention_norm = RMSNorm(c.lm_width, c.rms_eps)
        self.wqkv = nn.Linear(c.lm_width, rows, bias=False)
        self.wo = nn.Linear(c.lm_width, c.lm_width, bias=False)
        self.ffn_norm = RMSNorm(c.lm_width, c.rms_eps)
        self.w1 = nn.Linear(c.lm_width, c.lm_ffn, bias=False)
        self.w3 = nn.Linear(c.lm_width, c.lm_ffn, bias=False)
        self.w2 = nn.Linear(c.lm_ffn, c.lm_width, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Rows [b, n, d] and the cache before them → rows, and the cache with them."""
        b, n, d = x.shape
        qkv = self.wqkv(self.attention_norm(x)).view(b, n, self.kv, self.group + 2, self.head_dim)
        q = qkv[..., : self.group, :].reshape(b, n, -1, self.head_dim).transpose(1, 2)
        k, v = qkv[..., -2, :].transpose(1, 2), qkv[..., -1, :].transpose(1, 2)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        if cache is not None:
            k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
        new_cache = (k, v)
        if self.group > 1:
            k, v = k.repeat_interleave(self.group, 1), v.repeat_interleave(self.group, 1)
        # A single new row sees the whole cache, so only several rows need the causal mask.
        attended = attend(q, k, v, causal=n > 1)
        x = x + self.wo(attended.transpose(1, 2).reshape(b, n, d))
        y = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y)), new_cache


Cache = list[tuple[Tensor, Tensor]]


class Decoder(nn.Module):
    """Rows (token embeddings or visual tokens) → logits."""

    def __init__(self, c: NanoConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(c.vocab, c.lm_width)
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c.lm_layers))
        self.norm = RMSNorm(c.lm_width, c.rms_eps)
        self.output = nn.Linear(c.lm_width, c.vocab, bias=False)
        half = c.lm_width // c.lm_heads // 2
        inverse = c.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.outer(torch.arange(c.positions, dtype=torch.float64), inverse)
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(
        self, rows: Tensor, cache: Cache | None = None, keep: int | None = None
    ) -> tuple[Tensor, Cache]:
        """Rows [b, n, width] → logits of the last ``keep`` rows [b, keep, vocab], longer cache."""
        start = 0 if cache is None else cache[0][0].shape[2]
        n = rows.shape[1]
        cos, sin = self.get_buffer("cos"), self.get_buffer("sin")
        cos, sin = cos[start : start + n], sin[start : start + n]
        grown: Cache = []
        for i, layer in enumerate(self.layers):
            rows, kv = layer(rows, cos, sin, None if cache is None else cache[i])
            grown.append(kv)
        if keep is not None:
            rows = rows[:, -keep:]
        return self.output(self.norm(rows)), grown


class Heads(nn.Module):
    """Heads, for training only, that predict each patch's labels from the tower's features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classes = (*PATCH_LABELS.values(), *SCENE_LABELS.values())
        self.out = nn.Linear(width, sum(self.classes))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Features [b, n, d] → scores of each label's classes."""
        scores: Tensor = self.out(self.norm(features)).float()
        parts: tuple[Tensor, ...] = scores.split(self.classes, dim=-1)
        return parts

    def loss(self, features: Tensor, patch_labels: Tensor, scene_labels: Tensor) -> Tensor:
        """Features [b, n, d], patch labels [b, n, 12], scene labels [b, 3] → weighted loss."""
        b, n, _ = features.shape
        rows = self.norm(features).flatten(0, 1)
        labels = patch_labels.flatten(0, 1).long()
        # Most patches show background: they learn only the rank and the scene's labels, and the
        # many other classes are not computed for them.
        shown = (labels >= 0).sum(-1) > 1
        total = features.new_zeros((), dtype=torch.float32)
        weights, biases = self.out.weight.split(self.classes), self.out.bias.split(self.classes)
        some, some_labels = rows[shown], labels[shown]
        for i, name in enumerate(PATCH_LABELS):
            inputs, target = (rows, labels[:, i]) if name == "rank" else (some, some_labels[:, i])
            if bool((target >= 0).any()):
                logits = F.linear(inputs, weights[i], biases[i]).float()
                loss = F.cross_entropy(logits, target, ignore_index=-1)
                total = total + WEIGHTS.get(name, 1.0) * loss
        for i, name in enumerate(SCENE_LABELS):
            target = scene_labels[:, i : i + 1].expand(b, n).flatten().long()
            if bool((target >= 0).any()):
                index = len(PATCH_LABELS) + i
                logits = F.linear(rows, weights[index], biases[index]).float()
                loss = F.cross_entropy(logits, target, ignore_index=-1)
                total = total + WEIGHTS.get(name, 1.0) * loss
        return total


class Nano(nn.Module):
    """Tower → projector → decoder, and the heads for training."""

    def __init__(self, c: NanoConfig | None = None) -> None:
        super().__init__()
        self.config = c = c or NanoConfig()
        self.tower = Tower(c)
        self.heads = Heads(c.vision_width)
        self.projector = nn.Sequential(
            nn.Linear(c.vision_width, c.lm_width), nn.GELU(), nn.Linear(c.lm_width, c.lm_width)
        )
        self.decoder = Decoder(c)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=min(0.05, module.in_features**-0.5 * 0.7))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.decoder.tok_embeddings.weight, std=0.05)
        depth = 2 * max(c.vision_layers, c.lm_layers)
        for name, p in self.named_parameters():
            last = name.endswith(("out.weight", "fc2.weight", "wo.weight", "w2.weight"))
            if last and "heads" not in name:
                p.data.div_(depth**0.5)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [b, n] → rows [b, n, d]."""
        rows: Tensor = self.decoder.tok_embeddings(ids)
        return rows
