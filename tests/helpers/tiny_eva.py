"""Tiny random EVA-ViT-g towers and Q-Formers: transformers' classes, and names in LAVIS' layout.

LAVIS, MiniGPT-4 and InternLM-XComposer publish one layout of these two parts. Sources:
InternLM-XComposer's `modeling_vit.py`, `modeling_InternLM_XComposer.py` and index file, MiniGPT-4's
`minigpt4.py` and `base_model.py`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
)

from tests.helpers.tiny_captioners import make, tensors_of

WIDTH = 64  # EVA-ViT-g: 1408, in 16 heads too
QUERY_WIDTH = 48  # BERT-base: 768, in 12 heads too
EPS_AFTER_TOWER = 1e-5  # torch's default; transformers' own class has the tower's 1e-6 here too
# one block's tensors: transformers' name → LAVIS'
_BLOCK = {
    "layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.qkv": "attn.qkv",
    "self_attn.projection": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_EMBEDDINGS = {
    "embeddings.class_embedding": "cls_token", "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
}  # fmt: skip


def eva_tower(seed: int, *, image_size: int = 56, n_layers: int = 3) -> Blip2VisionModel:
    """Return a tower whose rows are small, so that the epsilons of its norms matter."""
    config = Blip2VisionConfig(
        hidden_size=WIDTH, intermediate_size=int(WIDTH * 4.3637), num_hidden_layers=n_layers,
        num_attention_heads=16, image_size=image_size, patch_size=14, layer_norm_eps=1e-6,
    )  # fmt: skip
    tower = make(Blip2VisionModel(config), seed)
    generator = torch.Generator().manual_seed(seed + 1000)
    with torch.no_grad():
        embeddings = tower.embeddings
        embeddings.position_embedding.normal_(generator=generator)
        embeddings.class_embedding.normal_(generator=generator)
        for name, parameter in tower.named_parameters():
            if name.endswith("qkv.bias"):
                parameter[WIDTH : 2 * WIDTH] = 0  # keys have no bias
            elif name.startswith("embeddings.") or "projection." in name or "fc2." in name:
                parameter.mul_(0.01)
    tower.post_layernorm.eps = EPS_AFTER_TOWER
    return tower


def halved(module: nn.Module) -> None:
    """Round a module's parameters to what float16 holds."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().float())


def qformer(seed: int, n_queries: int) -> tuple[Blip2QFormerModel, nn.Parameter]:
    """Return a Q-Former without text, and queries [1, n, width] so small that epsilon matters."""
    config = Blip2QFormerConfig(
        hidden_size=QUERY_WIDTH, num_hidden_layers=4, num_attention_heads=12, intermediate_size=96,
        encoder_hidden_size=WIDTH, layer_norm_eps=1e-12, cross_attention_frequency=2,
    )  # fmt: skip
    model = make(Blip2QFormerModel(config), seed)
    with torch.no_grad():  # so that queries stay apart, and see different patches
        for name, parameter in model.named_parameters():
            if name.endswith("crossattention.attention.query.weight"):
                parameter.mul_(3)
            elif name.endswith("output_query.dense.weight"):
                parameter.mul_(0.5)
            elif name.endswith(".attention.output.dense.weight"):
                parameter.mul_(0.3)
    generator = torch.Generator().manual_seed(seed + 2000)
    queries = 1e-5 * torch.randn(1, n_queries, QUERY_WIDTH, generator=generator)
    return model, nn.Parameter(queries, requires_grad=False)


def tower_rows(tower: Blip2VisionModel, pixels: torch.Tensor) -> torch.Tensor:
    """All rows [1, 1 + patches, width], normed; positions are resized to the pixels' grid."""
    rows = tower(pixels, interpolate_pos_encoding=True).last_hidden_state
    return cast("torch.Tensor", rows)


def query_rows(
    model: Blip2QFormerModel, queries: torch.Tensor, image: torch.Tensor
) -> torch.Tensor:
    """The queries [1, n, width] after the Q-Former has seen `image`."""
    rows = model(query_embeds=queries, encoder_hidden_states=image).last_hidden_state
    return cast("torch.Tensor", rows)


def published_tower(
    tower: Blip2VisionModel, lead: str = "visual_encoder."
) -> dict[str, torch.Tensor]:
    """The tower's tensors without the norm behind it."""
    state = tensors_of(tower)
    tensors = {lead + theirs: state[ours] for ours, theirs in _EMBEDDINGS.items()}
    for i in range(tower.config.num_hidden_layers):
        for ours, theirs in _BLOCK.items():
            for kind in ("weight", "bias"):
                tensor = state[f"encoder.layers.{i}.{ours}.{kind}"]
                if (theirs, kind) == ("attn.qkv", "bias"):
                    q, _, v = tensor.split(WIDTH)
                    tensors[f"{lead}blocks.{i}.attn.q_bias"] = q.clone()
                    tensors[f"{lead}blocks.{i}.attn.v_bias"] = v.clone()
                else:
                    tensors[f"{lead}blocks.{i}.{theirs}.{kind}"] = tensor
    return tensors


def published_norm(tower: Blip2VisionModel) -> dict[str, torch.Tensor]:
    """The norm behind the tower."""
    return tensors_of(tower.post_layernorm, "ln_vision.")


def published_qformer(model: Blip2QFormerModel, queries: torch.Tensor) -> dict[str, torch.Tensor]:
    """The queries and the Q-Former without its text parts."""
    tensors = {"query_tokens": queries.detach().clone()}
    for name, tensor in tensors_of(model).items():
        renamed = name.replace("attention.attention.", "attention.self.")
        if renamed.startswith("layernorm."):
            renamed = f"embeddings.LayerNorm.{renamed.removeprefix('layernorm.')}"
        tensors[f"Qformer.bert.{renamed}"] = tensor
    return tensors
