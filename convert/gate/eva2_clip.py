"""The gate's reference of EVA2-CLIP-E and CogVLM's gated projector, in torch from their files.

Like `towers`, it shares no code with the converter: patches and joined patches are torch's own
convolutions, queries, keys and values one product that is cut afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from edgeprism.convert.gate.files import RawTensors
from edgeprism.convert.gate.towers import Connector, Features, Tick, normalised

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Eva2Settings:
    """What the tensors alone do not tell; `lead` stands before their names."""

    n_layers: int
    n_heads: int
    patch_size: int
    eps: float
    lead: str


def eva2_tower(files: Iterable[Path], settings: Eva2Settings) -> Features:
    """Return pixels uint8 [n, size, size, 3] → patches [n, patches, width], without class row."""

    def run(pixels: np.ndarray, tick: Tick) -> torch.Tensor:
        raw = _Raw(files, settings.lead)
        x = normalised(pixels, 1 / 255, _MEAN, _STD)
        kernel, bias = raw.pair("patch_embedding.proj")
        x = F.conv2d(x, kernel, bias, stride=settings.patch_size).flatten(2).movedim(1, 2)
        first = raw["patch_embedding.cls_embedding"].expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + raw["patch_embedding.position_embedding.weight"]
        for i in range(settings.n_layers):
            x = _block(raw, f"transformer.layers.{i}.", x, settings)
            tick()
        return x[:, 1:]

    return run


def _block(raw: _Raw, name: str, x: torch.Tensor, settings: Eva2Settings) -> torch.Tensor:
    packed = F.linear(x, *raw.pair(f"{name}attention.query_key_value"))
    q, k, v = packed.unflatten(-1, (3, settings.n_heads, -1)).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v).movedim(1, 2).flatten(2)
    added = F.linear(attended, *raw.pair(f"{name}attention.dense"))
    x = x + raw.norm(f"{name}input_layernorm", added, settings.eps)
    inner = F.gelu(F.linear(x, *raw.pair(f"{name}mlp.fc1")))
    added = F.linear(inner, *raw.pair(f"{name}mlp.fc2"))
    return x + raw.norm(f"{name}post_attention_layernorm", added, settings.eps)


def gated_projector(files: Iterable[Path], lead: str) -> Connector:
    """Return patches [n, patches, width] → visual tokens between the two learned rows."""

    def run(x: torch.Tensor) -> torch.Tensor:
        raw = _Raw(files, lead)
        if "conv.weight" in raw:
            edge = round(x.shape[1] ** 0.5)
            square = x.movedim(1, 2).unflatten(2, (edge, edge))
            x = F.conv2d(square, *raw.pair("conv"), stride=2).flatten(2).movedim(1, 2)
        x = F.linear(x, raw["linear_proj.linear_proj.weight"])
        x = F.gelu(raw.norm("linear_proj.norm1", x, 1e-5))
        gate = F.silu(F.linear(x, raw["linear_proj.gate_proj.weight"]))
        x = F.linear(
            gate * F.linear(x, raw["linear_proj.dense_h_to_4h.weight"]),
            raw["linear_proj.dense_4h_to_h.weight"],
        )
        first, last = (raw[name].expand(len(x), 1, -1) for name in ("boi", "eoi"))
        return torch.cat([first, x, last], dim=1)

    return run


class _Raw:
    """Tensors in float32 by their names behind `lead`."""

    def __init__(self, files: Iterable[Path], lead: str) -> None:
        self._tensors, self._lead = RawTensors(files), lead

    def __contains__(self, name: str) -> bool:
        return self._lead + name in self._tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[self._lead + name].float()

    def pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self[f"{name}.weight"], self[f"{name}.bias"]

    def norm(self, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], *self.pair(name), eps)
