"""The gate's reference of Fuyu: what the published tensors compute, in torch float32.

Like `language`, it shares no code with the converter: the fused matrix as published, patches by
torch's `unfold`, rotations of the halves of a head's first channels. Only one layer's weights are
in memory at a time. Source: transformers' FuyuForCausalLM and PersimmonForCausalLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from edgeprism.convert.gate.files import RawTensors
from edgeprism.convert.gate.language import plain_ids
from edgeprism.convert.gate.towers import normalised
from edgeprism.errors import CheckpointError

Tick = Callable[[], None]
_PART = 16384  # rows of the head that are float32 at once


@torch.inference_mode()
def visual_tokens(
    files: Iterable[Path], patch: int, colours: tuple[float, Any, Any], pixels: np.ndarray,
    tick: Tick,
) -> np.ndarray:  # fmt: skip
    """Pixels uint8 [n, height, width, 3] → rows float32 [n, patches, width] without newlines.

    `colours` are the image processor's factor, mean and standard deviation.
    """
    raw = RawTensors(files)
    name = f"{raw.lead_of('vision_embed_tokens.weight')}vision_embed_tokens"
    columns = F.unfold(normalised(pixels, *colours), patch, stride=patch)  # [n, 3 · p · p, patches]
    patches = columns.unflatten(1, (3, patch * patch)).permute(0, 3, 2, 1).flatten(2)
    rows = F.linear(patches, raw[f"{name}.weight"].float(), raw[f"{name}.bias"].float())
    tick()
    result: np.ndarray = rows.numpy()
    return result


@torch.inference_mode()
def logits(
    files: Iterable[Path],
    sizes: dict[str, Any],
    texts: list[list[int]],
    rows: np.ndarray,
    tick: Tick,
) -> list[np.ndarray]:
    """Return teacher-forced logits [n_tokens, n_vocab] of each text behind `rows` [n, width].

    `sizes` has num_hidden_layers, num_attention_heads, rotary (channels of a head that turn),
    rope_theta and layer_norm_eps; `tick` is called for each layer.
    """
    raw = RawTensors(files)
    body = raw.lead_of("layers.0.self_attn.query_key_value.weight")
    heads, eps = sizes["num_attention_heads"], sizes["layer_norm_eps"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, raw[f"{name}.weight"].float(), raw[f"{name}.bias"].float())

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = (raw[f"{name}.{kind}"].float() for kind in ("weight", "bias"))
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    table = raw[f"{body}embed_tokens.weight"]
    seen = torch.from_numpy(rows)
    lengths = [len(rows) + len(text) for text in texts]
    x = torch.cat([part for text in texts for part in (seen, table[torch.tensor(text)].float())])
    for i in range(sizes["num_hidden_layers"]):
        layer = f"{body}layers.{i}."
        fused = linear(norm(x, f"{layer}input_layernorm"), f"{layer}self_attn.query_key_value")
        q, k, v = fused.unflatten(-1, (heads, 3, -1)).unbind(2)  # [rows, heads, head_dim]
        q, k = norm(q, f"{layer}self_attn.q_layernorm"), norm(k, f"{layer}self_attn.k_layernorm")
        parts = zip(*(each.split(lengths) for each in (q, k, v)), strict=True)
        attended = torch.cat([_attention(a, b, c, sizes) for a, b, c in parts])
        x = x + linear(attended, f"{layer}self_attn.dense")
        inner = linear(norm(x, f"{layer}post_attention_layernorm"), f"{layer}mlp.dense_h_to_4h")
        x = x + linear(inner.clamp(min=0) ** 2, f"{layer}mlp.dense_4h_to_h")
        tick()
    x = torch.cat([part[len(rows) :] for part in x.split(lengths)])
    x = norm(x, f"{body}final_layernorm")
    head = raw[f"{raw.lead_of('lm_head.weight')}lm_head.weight"]
    made = torch.cat([x @ part.float().t() for part in head.split(_PART)], dim=1)
    return [part.numpy() for part in made.split([len(text) for text in texts])]


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sizes: dict[str, Any]
) -> torch.Tensor:
    """Causal attention of one text: [t, heads, head_dim] each → [t, n_embd]."""
    n = sizes["rotary"]
    exponents = torch.arange(0, n, 2, dtype=torch.int64).float() / n
    angles = torch.outer(torch.arange(len(q)).float(), sizes["rope_theta"] ** -exponents)
    angles = torch.cat([angles, angles], dim=1)[:, None]
    cos, sin = angles.cos(), angles.sin()

    def turned(x: torch.Tensor) -> torch.Tensor:
        first, second = x[..., : n // 2], x[..., n // 2 : n]
        halves = torch.cat([-second, first], dim=-1)
        return torch.cat([x[..., :n] * cos + halves * sin, x[..., n:]], dim=-1).transpose(0, 1)

    seen = F.scaled_dot_product_attention(turned(q), turned(k), v.transpose(0, 1), is_causal=True)
    return seen.transpose(0, 1).flatten(1)


def text_to_ids(path: Path) -> Callable[[str], list[int]]:
    """Return what the tokenizer.json at `path` makes of a text; raises CheckpointError."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # `tokenizers` raises bare Exception
        raise CheckpointError(f"{path} cannot be read: {error}.", "Download it again.") from error
    return plain_ids(tokenizer)
