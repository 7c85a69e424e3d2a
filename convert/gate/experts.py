"""The gate's reference of a Llama with an expert for text and another for a picture's rows.

Like `language`, it shares no code with the converter: attention works on the packed matrix as it
is published, both experts are computed for all rows and one of them is taken, and the rotation
turns halves. A row goes through the vision expert if it and the row after it are of the picture;
the picture's patches, between its first and last row, stand at one position. Only one layer's
weights are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from edgeprism.convert.gate.files import RawTensors
from edgeprism.convert.gate.language import Tick

_SLICE = 16384  # rows of a matrix that are in float32 at a time


@dataclass(frozen=True)
class Prompt:
    """Ids whose embeddings enter the model; those in rows[0]…rows[1] - 1 enter as a picture."""

    ids: list[int]
    rows: tuple[int, int] = (0, 0)


@torch.inference_mode()
def logits(
    files: Iterable[Path], data: dict[str, Any], prompts: Sequence[Prompt], tick: Tick
) -> list[np.ndarray]:
    """Return the logits float32 [n, n_vocab] of each prompt, row by row.

    `data` has the published fields of config.json, and `rope_theta`. A model whose files hold no
    vision expert has one expert for all rows.
    """
    raw = RawTensors(files)
    heads, eps = data["num_attention_heads"], data["rms_norm_eps"]
    kv_heads = data.get("num_multi_query_heads") or heads
    lengths = [len(prompt.ids) for prompt in prompts]
    x = raw["model.embed_tokens.weight"][[i for prompt in prompts for i in prompt.ids]].float()
    seen = torch.cat([_by_vision_expert(prompt) for prompt in prompts])[:, None]
    places = [_positions(prompt) for prompt in prompts]
    for i in range(data["num_hidden_layers"]):
        p = f"model.layers.{i}."
        y = _rms(x, raw[f"{p}input_layernorm.weight"].float(), eps)
        packed = _of_expert(raw, y, seen, f"{p}self_attn.", "_expert_query_key_value")
        attended = [
            _attention(part, place, heads, kv_heads, data["rope_theta"])
            for part, place in zip(packed.split(lengths), places, strict=True)
        ]
        x = x + _of_expert(raw, torch.cat(attended), seen, f"{p}self_attn.", "_expert_dense")
        y = _rms(x, raw[f"{p}post_attention_layernorm.weight"].float(), eps)
        gate, up = (
            _of_expert(raw, y, seen, f"{p}mlp.", f"_mlp.{part}_proj") for part in ("gate", "up")
        )
        x = x + _of_expert(raw, F.silu(gate) * up, seen, f"{p}mlp.", "_mlp.down_proj")
        tick()
    rows = _linear(raw, _rms(x, raw["model.norm.weight"].float(), eps), "lm_head")
    return [part.numpy() for part in rows.split(lengths)]


def embeddings(files: Iterable[Path], ids: list[int]) -> np.ndarray:
    """Return the rows float32 [n, width] as which `ids` enter the model."""
    rows: np.ndarray = RawTensors(files)["model.embed_tokens.weight"][ids].float().numpy()
    return rows


def _of_expert(
    raw: RawTensors, x: torch.Tensor, seen: torch.Tensor, before: str, behind: str
) -> torch.Tensor:
    """Return x [rows, in] through each row's expert: [rows, out]."""
    language = _linear(raw, x, f"{before}language{behind}")
    if f"{before}vision{behind}.weight" not in raw or not seen.any():
        return language
    return torch.where(seen, _linear(raw, x, f"{before}vision{behind}"), language)


def _linear(raw: RawTensors, x: torch.Tensor, name: str) -> torch.Tensor:
    parts = raw[f"{name}.weight"].split(_SLICE)
    y = torch.cat([x @ part.float().t() for part in parts], dim=1)
    return y + raw[f"{name}.bias"].float() if f"{name}.bias" in raw else y


def _by_vision_expert(prompt: Prompt) -> torch.Tensor:
    """Return bool [n]: the row and the one after it are of the picture."""
    first, end = prompt.rows
    return torch.tensor([first <= i < end - 1 for i in range(len(prompt.ids))])


def _positions(prompt: Prompt) -> torch.Tensor:
    """Return int64 [n]: each row counts one; of those between a picture's ends, only the first."""
    first, end = prompt.rows
    counts = [not first + 2 <= i < end - 1 for i in range(len(prompt.ids))]
    return torch.tensor(counts).long().cumsum(0) - 1


def _attention(
    packed: torch.Tensor, places: torch.Tensor, heads: int, kv_heads: int, theta: float
) -> torch.Tensor:
    """Return the causal attention [n, heads · width] of one prompt, packed [n, q, k and v]."""
    each = packed.unflatten(-1, (heads + 2 * kv_heads, -1)).transpose(0, 1)  # [heads, n, width]
    q, k, v = each.split([heads, kv_heads, kv_heads])
    half = q.shape[-1] // 2
    rates = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(places.double(), rates).float()
    cos, sin = angles.cos(), angles.sin()
    q, k = (
        torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
        for a, b in (part.split(half, dim=-1) for part in (q, k))
    )
    k, v = (part.repeat_interleave(heads // kv_heads, dim=0) for part in (k, v))
    scores = q @ k.transpose(1, 2) / (2 * half) ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
    return (weights @ v).transpose(0, 1).flatten(1)


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))
