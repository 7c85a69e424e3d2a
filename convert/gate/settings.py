"""How the gate's reference reads a language model's configuration, in any version's spelling.

It shares no code with the converter's reader, and takes no default from transformers' configuration
classes, so that a field which either of the two misreads shows as a difference in what they
compute. Sources: transformers' `modeling_rope_utils` of 4.57 and 5.24, the YaRN paper (arXiv
2309.00071), Llama 3's published scaling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from edgeprism.errors import CheckpointError


@dataclass(frozen=True)
class Rotation:
    """RoPE: radians per position for each pair, and a factor on cos and sin."""

    rates: torch.Tensor  # [head_dim / 2] float64
    scale: float = 1.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Rotate x [rows, …, head_dim], whose row t has position t."""
        half = x.shape[-1] // 2
        angles = torch.arange(x.shape[0], dtype=torch.float64)[:, None] * self.rates
        angles = angles.view(x.shape[0], *[1] * (x.dim() - 2), half)
        cos, sin = (self.scale * part.float() for part in (angles.cos(), angles.sin()))
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


@dataclass(frozen=True)
class ReferenceSettings:
    """What a forward pass needs to know besides the weights."""

    n_layers: int
    n_kv_heads: int
    head_dim: int
    eps: float
    rotation: Rotation
    # MiniCPM's factors on the embeddings and on what a layer's halves add, and the divisor of the
    # last rows; Gemma has one on the embeddings, too
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    head_divisor: float = 1.0


# what the published classes take where a file is silent
_KV_HEADS = {"mistral": 8, "qwen2": 32, "gemma": 16}
_HEAD_DIMS = {"gemma": 256}


def settings_from_config(data: Mapping[str, Any]) -> ReferenceSettings:
    """Read the fields of a config.json or `text_config`, as transformers 4 or 5 writes them."""
    kind = data["model_type"]
    if kind == "qwen":  # the first Qwen, which transformers never had, has names of its own
        rates = data["rotary_emb_base"] ** -(
            torch.arange(0, data["kv_channels"], 2, dtype=torch.float64) / data["kv_channels"]
        )
        return ReferenceSettings(
            n_layers=data["num_hidden_layers"],
            n_kv_heads=data["num_attention_heads"],
            head_dim=data["kv_channels"],
            eps=data["layer_norm_epsilon"],
            rotation=Rotation(rates),
        )
    n_heads = data.get("num_attention_heads") or 32
    head_dim = data.get("head_dim") or _HEAD_DIMS.get(kind)
    head_dim = head_dim or (data.get("hidden_size") or 4096) // n_heads
    n_kv_heads = data.get("num_key_value_heads") or _KV_HEADS.get(kind, n_heads)
    return ReferenceSettings(
        n_layers=data.get("num_hidden_layers") or 32,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        eps=data.get("rms_norm_eps") or 1e-6,
        rotation=_rotation(data, head_dim),
        **(_minicpm_scales(data) if kind == "minicpm" else {}),
        **({"embedding_scale": data["hidden_size"] ** 0.5} if kind == "gemma" else {}),
    )


def _minicpm_scales(data: Mapping[str, Any]) -> dict[str, float]:
    """Return the factors of `modeling_minicpm.py`; each field's default is 1."""
    width, depth = data["hidden_size"], data["num_hidden_layers"]
    return {
        "embedding_scale": float(data.get("scale_emb", 1)),
        "residual_scale": data.get("scale_depth", 1) / math.sqrt(depth),
        "head_divisor": width / data.get("dim_model_base", 1),
    }


def _rotation(data: Mapping[str, Any], head_dim: int) -> Rotation:
    rope = dict(data.get("rope_parameters") or data.get("rope_scaling") or {})
    if rope and all(isinstance(value, Mapping) for value in rope.values()):
        (rope,) = {repr(value): dict(value) for value in rope.values()}.values()
    theta = rope.get("rope_theta") or data.get("rope_theta") or 10000.0
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    rates = theta**-exponents
    context = float(
        rope.get("original_max_position_embeddings") or data.get("max_position_embeddings") or 2048
    )
    match rope.get("rope_type") or rope.get("type") or "default":
        case "default" | "dynamic":  # dynamic changes nothing within the trained context
            return Rotation(rates)
        case "linear":
            return Rotation(rates / rope["factor"])
        case "llama3":
            return Rotation(_llama3(rates, rope, context))
        case "yarn":
            return Rotation(*_yarn(rates, theta, rope, context))
        case kind:
            raise CheckpointError(
                f"The gate's reference does not know RoPE of type {kind!r}.",
                "Use the config.json that was published.",
            )


def _llama3(rates: torch.Tensor, rope: Mapping[str, Any], context: float) -> torch.Tensor:
    """Slow the long waves by `factor`, keep the short ones, blend those between."""
    turns = context * rates / (2 * math.pi)  # within the original context
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share: torch.Tensor = ((turns - low) / (high - low)).clamp(0, 1)
    slowed: torch.Tensor = rates / rope["factor"]
    return share * rates + (1 - share) * slowed


def _yarn(
    rates: torch.Tensor, theta: float, rope: Mapping[str, Any], context: float
) -> tuple[torch.Tensor, float]:
    """Interpolate pairs that turn less than once in the context, keep those above 32 turns."""
    n_pairs, factor = len(rates), rope["factor"]

    def pair_that_turns(times: float) -> float:
        """Return the (fractional) number of the pair that turns `times` within the context."""
        return n_pairs * math.log(context / (times * 2 * math.pi)) / math.log(theta)

    first = max(math.floor(pair_that_turns(32)), 0)
    last = min(math.ceil(pair_that_turns(1)), 2 * n_pairs - 1)
    ramp = (torch.arange(n_pairs, dtype=torch.float64) - first) / max(last - first, 0.001)
    ramp = ramp.clamp(0, 1)
    return rates / factor * ramp + rates * (1 - ramp), 0.1 * math.log(factor) + 1
