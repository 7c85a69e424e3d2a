"""The gate's reference of OPT: what the published tensors compute, in torch float32.

Like `language`, it shares no code with the converter: matrices as published, ReLU itself, the whole
table of positions, and the files' own head if they hold one. Only one layer's weights are in memory
at a time. Source: transformers' OPTForCausalLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from edgeprism.convert.gate.files import RawTensors

_OFFSET = 2  # row of the table that position 0 takes
_PART = 16384  # rows of the head that are float32 at once


@torch.inference_mode()
def logits(
    files: Iterable[Path], data: dict[str, Any], texts: list[list[int]], tick: Callable[[], None]
) -> list[np.ndarray]:
    """Return teacher-forced logits [n_tokens, n_vocab] float32 of each text (ids with BOS).

    `files` hold the model, `data` has the fields of its config.json; `tick` is called for each
    layer.
    """
    raw = RawTensors(files)
    body = raw.lead_of("layers.0.self_attn_layer_norm.weight")
    n_heads, n_layers = data.get("num_attention_heads", 12), data.get("num_hidden_layers", 12)

    def w(name: str) -> torch.Tensor:
        return raw[f"{body}{name}"].float()

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, w(f"{name}.weight"), w(f"{name}.bias"))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], w(f"{name}.weight"), w(f"{name}.bias"))

    lengths = [len(text) for text in texts]
    ids = torch.tensor([token for text in texts for token in text])
    places = torch.cat([torch.arange(n) for n in lengths]) + _OFFSET
    embedding = raw[f"{body}embed_tokens.weight"]
    # all texts form one block of rows; only attention separates them
    x = embedding[ids].float() + raw[f"{body}embed_positions.weight"][places].float()
    for i in range(n_layers):
        y = norm(x, f"layers.{i}.self_attn_layer_norm")
        q, k, v = (linear(y, f"layers.{i}.self_attn.{part}_proj").split(lengths) for part in "qkv")
        seen = [_attention(*part, n_heads) for part in zip(q, k, v, strict=True)]
        x = x + linear(torch.cat(seen), f"layers.{i}.self_attn.out_proj")
        y = norm(x, f"layers.{i}.final_layer_norm")
        x = x + linear(torch.relu(linear(y, f"layers.{i}.fc1")), f"layers.{i}.fc2")
        tick()
    x = norm(x, "final_layer_norm")
    heads = [name for name in raw.names() if name.endswith("lm_head.weight")]
    head = raw[heads[0]] if heads else embedding
    rows = torch.cat([x @ part.float().t() for part in head.split(_PART)], dim=1)
    return [part.numpy() for part in rows.split(lengths)]


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Causal attention of one text: [t, n_embd] each → [t, n_embd]."""
    q, k, v = (part.unflatten(-1, (n_heads, -1)).transpose(0, 1) for part in (q, k, v))
    seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return seen.transpose(0, 1).flatten(1)
