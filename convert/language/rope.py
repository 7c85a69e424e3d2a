"""Rotary positions: a published model's scaling, and its equivalent in a GGUF.

Sources: transformers' `modeling_rope_utils` for the meaning of `rope_scaling`, llama.cpp's
converter for the GGUF's fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# the fields of each kind, besides its name and factor
_FIELDS = {
    "linear": (),
    "llama3": ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("original_max_position_embeddings",),
}
# Settings that llama.cpp cannot be told, with the values that it takes
_DEFAULTS: dict[str, dict[str, object]] = {
    "yarn": {"beta_fast": 32, "beta_slow": 1, "truncate": True}
}
# These kinds change nothing within the trained context, which captions never exceed
_WITHOUT_EFFECT = ("default", "dynamic")


@dataclass(frozen=True)
class RopeScaling:
    """`kind` is "none", "linear", "llama3" or "yarn"."""

    kind: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0


def rope_scaling_from_dict(scaling: Any, context_length: int) -> RopeScaling | str:
    """Return a config.json's `rope_scaling`, or a text that says why it is not supported."""
    if scaling is None:
        return RopeScaling()
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, Mapping) else None
    if kind in _WITHOUT_EFFECT:
        return RopeScaling()
    if not isinstance(kind, str) or kind not in _FIELDS:
        return f"rope_scaling = {scaling!r} (expected null or type {', '.join(_FIELDS)}, dynamic)"
    known = ("rope_type", "type", "factor", *_FIELDS[kind])
    plain = _DEFAULTS.get(kind, {})
    unknown = [
        name
        for name, value in scaling.items()
        if name not in known and value is not None and value != plain.get(name)
    ]
    numbers = {name: scaling[name] for name in ("factor", *_FIELDS[kind]) if name in scaling}
    valid = all(type(v) in (int, float) and 0 < v < math.inf for v in numbers.values())
    # the frequencies between these two are blended
    valid = valid and (kind != "llama3" or _low_and_high(numbers)[0] < _low_and_high(numbers)[1])
    if unknown or not valid or "factor" not in numbers:
        return f"rope_scaling = {scaling!r} (type {kind} takes numbers: factor {_FIELDS[kind]})"
    return RopeScaling(
        kind,
        float(numbers["factor"]),
        *_low_and_high(numbers),
        int(numbers.get("original_max_position_embeddings", context_length)),
    )


def _low_and_high(numbers: Mapping[str, Any]) -> tuple[float, float]:
    return float(numbers.get("low_freq_factor", 1.0)), float(numbers.get("high_freq_factor", 4.0))


def llama3_factors(scaling: RopeScaling, theta: float, head_dim: int) -> list[float]:
    """Return the factors by which llama.cpp divides each of the head_dim / 2 rotation rates.

    Wavelengths that are short against the original context stay, long ones grow by `factor`;
    between the two, Llama 3 blends the rates.
    """
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        turns = scaling.original_context / wavelength
        share = (turns - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        share = min(1.0, max(0.0, share))
        factors.append(1 / (share + (1 - share) / scaling.factor))
    return factors


def permute_for_rope(rows: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Reorder each head's rows from (first half, second half) to interleaved pairs.

    Published models rotate row i with row i + head_dim/2; llama.cpp's NORM rope rotates
    neighbours. `rows` is a matrix [heads · head_dim, in] or a bias [heads · head_dim].
    """
    halves = rows.view(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)
