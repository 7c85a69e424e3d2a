"""The gate's reference of EVA-ViT-g and the Q-Former: transformers' classes, from LAVIS' files.

Like `towers`, it shares no code with the converter. BLIP-2's classes are the same computation under
other names; LAVIS' norm behind the tower has an epsilon of its own, and keys have no bias. The
Q-Former is read from either layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from edgeprism.convert.gate.files import RawTensors
from edgeprism.convert.gate.towers import Features, Tick, normalised

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# a block's tensors: transformers' name → LAVIS'
_BLOCK = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.projection": "attn.proj",
          "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}  # fmt: skip


@dataclass(frozen=True)
class EvaFiles:
    """The files of a tower; `norm` holds the norm behind it, which may be none."""

    tower: Sequence[Path]
    norm: Sequence[Path]
    n_blocks: int
    n_heads: int
    image_size: int


def eva_tower(files: EvaFiles) -> Features:
    """Return pixels uint8 [n, size, size, 3] → rows [n, 1 + patches, width], class row first."""

    def run(pixels: np.ndarray, tick: Tick) -> torch.Tensor:
        from transformers import Blip2VisionConfig, Blip2VisionModel

        raw, behind = RawTensors(files.tower), RawTensors(files.norm)
        lead = raw.lead_of("patch_embed.proj.weight")
        state = _tower_state(raw, lead, files)
        kernel = state["embeddings.patch_embedding.weight"]
        config = Blip2VisionConfig(
            hidden_size=kernel.shape[0],
            intermediate_size=len(raw[f"{lead}blocks.0.mlp.fc1.bias"]),
            num_hidden_layers=files.n_blocks,
            num_attention_heads=files.n_heads,
            image_size=files.image_size,
            patch_size=kernel.shape[-1],
            layer_norm_eps=1e-6,
        )
        ones, zeros = torch.ones(len(kernel)), torch.zeros(len(kernel))
        for kind, default in (("weight", ones), ("bias", zeros)):
            names = [name for name in behind.names() if name.endswith(f"ln_vision.{kind}")]
            state[f"post_layernorm.{kind}"] = behind[names[0]].float() if names else default
        with torch.device("meta"):
            model = Blip2VisionModel(config)
        model.load_state_dict(state, assign=True)
        model.post_layernorm.eps = 1e-5
        model.eval()
        rows = []
        for picture in normalised(pixels, 1 / 255, _MEAN, _STD).split(1):
            rows.append(model(pixel_values=picture).last_hidden_state)
        for _ in range(files.n_blocks):
            tick()
        return torch.cat(rows)

    return run


def _tower_state(raw: RawTensors, lead: str, files: EvaFiles) -> dict[str, torch.Tensor]:
    """Return the tower's tensors under transformers' names."""

    def w(name: str) -> torch.Tensor:
        return raw[lead + name].float()

    kernel = w("patch_embed.proj.weight")
    state = {
        "embeddings.class_embedding": w("cls_token"),
        "embeddings.position_embedding": _positions(
            w("pos_embed"), files.image_size // kernel.shape[-1]
        ),
        "embeddings.patch_embedding.weight": kernel,
        "embeddings.patch_embedding.bias": w("patch_embed.proj.bias"),
    }
    for i in range(files.n_blocks):
        ours, theirs = f"encoder.layers.{i}.", f"blocks.{i}."
        for name, published in _BLOCK.items():
            for kind in ("weight", "bias"):
                state[f"{ours}{name}.{kind}"] = w(f"{theirs}{published}.{kind}")
        q, v = w(f"{theirs}attn.q_bias"), w(f"{theirs}attn.v_bias")
        state[f"{ours}self_attn.qkv.weight"] = w(f"{theirs}attn.qkv.weight")
        state[f"{ours}self_attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return state


def _positions(table: torch.Tensor, grid: int) -> torch.Tensor:
    """Resample positions [1, 1 + old², e] for `grid`² patches; the class row keeps its own."""
    old = round((table.shape[1] - 1) ** 0.5)
    square = table[:, 1:].unflatten(1, (old, old)).movedim(-1, 1)
    if old != grid:
        square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], square.movedim(1, -1).flatten(1, 2)], dim=1)


def qformer(files: Iterable[Path], n_heads: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a tower's rows [n, rows, width] → query rows [n, n_queries, n_embd], without text.

    `files` are of LAVIS' or of transformers' layout.
    """

    def run(features: torch.Tensor) -> torch.Tensor:
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        raw = RawTensors(files)
        queries = raw[f"{raw.lead_of('query_tokens')}query_tokens"].float()
        lead = raw.lead_of("encoder.layer.0.intermediate_query.dense.bias")
        name_of = _lavis_name if f"{lead}embeddings.LayerNorm.weight" in raw else str
        layers = {int(found[1]) for name in raw.names() if (found := _LAYER.search(name))}
        config = Blip2QFormerConfig(
            hidden_size=queries.shape[-1],
            num_hidden_layers=len(layers),
            num_attention_heads=n_heads,
            intermediate_size=len(raw[f"{lead}encoder.layer.0.intermediate_query.dense.bias"]),
            encoder_hidden_size=features.shape[-1],
            cross_attention_frequency=2,
            layer_norm_eps=1e-12,
        )
        with torch.device("meta"):
            model = Blip2QFormerModel(config)
        state = {name: raw[lead + name_of(name)].float() for name in model.state_dict()}
        model.load_state_dict(state, assign=True)
        model.eval()
        rows: torch.Tensor = model(
            query_embeds=queries.expand(len(features), -1, -1), encoder_hidden_states=features
        ).last_hidden_state
        return rows

    return run


_LAYER = re.compile(r"encoder\.layer\.(\d+)\.intermediate_query\.")


def _lavis_name(name: str) -> str:
    """Return LAVIS' name of a tensor of Blip2QFormerModel."""
    if name.startswith("layernorm."):
        return f"embeddings.LayerNorm.{name.removeprefix('layernorm.')}"
    return re.sub(r"attention\.attention\.", "attention.self.", name)


def framed(files: Iterable[Path], ends: tuple[str, str]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return rows [n, rows, width] → the same between two learned rows, named by `ends`."""

    def run(rows: torch.Tensor) -> torch.Tensor:
        raw = RawTensors(files)
        first, last = (raw[name].float().expand(len(rows), 1, -1) for name in ends)
        return torch.cat([first, rows, last], dim=1)

    return run


def joined_patches(rows: torch.Tensor) -> torch.Tensor:
    """[n, 1 + patches, width] → [n, patches / 4, 4 · width]: neighbours in raster order."""
    without_class = rows[:, 1:]
    return torch.cat([without_class[:, i::4] for i in range(4)], dim=-1)
