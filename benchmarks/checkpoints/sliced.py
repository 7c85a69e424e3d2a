"""Write captioners that cut slices of free shapes, as published, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.checkpoints.one_tile import Shapes, write_config, write_shards
from tests.helpers.checkpoints import write_tokenizer

_MARKS = ("<image>", "</image>", "<slice>", "</slice>")


def write_minicpm_v(above: Path, n_layers: int) -> None:
    """Write a MiniCPM-V 2.0: SigLIP so400m on slices, a resampler, MiniCPM-2.4B."""
    folder = above / "captioner"
    folder.mkdir(parents=True)
    n_pieces = write_tokenizer(folder, add_dummy_prefix=True)
    path = folder / "tokenizer_config.json"
    tokens = json.loads(path.read_text())
    for i, name in enumerate(_MARKS):
        tokens["added_tokens_decoder"][str(n_pieces + i)] = {"content": name, "special": True}
    path.write_text(json.dumps(tokens))
    hidden, ffn, n_vocab = 2304, 5760, 122753
    body = "llm.model."
    ends: Shapes = {
        f"{body}embed_tokens.weight": (n_vocab, hidden), f"{body}norm.weight": (hidden,),
        "llm.lm_head.weight": (n_vocab, hidden), **_tower(26, 1152, 4304),
        **_resampler(64, 1152, hidden),
    }  # fmt: skip
    shards = [ends, *(_layer(f"{body}layers.{i}.", hidden, ffn) for i in range(n_layers))]
    write_shards(folder, shards, torch.bfloat16, torch.Generator().manual_seed(0))
    write_config(
        folder, model_type="minicpmv", hidden_size=hidden, intermediate_size=ffn,
        num_hidden_layers=n_layers, num_attention_heads=36, num_key_value_heads=36,
        vocab_size=n_vocab, max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=10000.0,
        scale_emb=12, scale_depth=1.4, dim_model_base=256, tie_word_embeddings=False,
        query_num=64, image_size=448, patch_size=14, drop_vision_last_layer=True,
        slice_mode=True, max_slice_nums=9, scale_resolution=448, mm_use_im_start_end=True,
        vision_encoder="vit_so400m_patch14_siglip_384.webli",
    )  # fmt: skip


def _tower(n_layers: int, width: int, ffn: int) -> Shapes:
    """Return timm's ViT without a class row, whose table of positions has 27 × 27 places."""
    shapes: Shapes = {
        "vpm.patch_embed.proj.weight": (width, 3, 14, 14), "vpm.patch_embed.proj.bias": (width,),
        "vpm.pos_embed": (1, 27 * 27, width), "vpm.norm.weight": (width,),
        "vpm.norm.bias": (width,),
    }  # fmt: skip
    linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width),
               "mlp.fc1": (ffn, width), "mlp.fc2": (width, ffn)}  # fmt: skip
    for i in range(n_layers):
        block = f"vpm.blocks.{i}."
        for name, shape in linears.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}{name}.{kind}": (width,) for kind in ("weight", "bias")}
    return shapes


def _resampler(n_queries: int, n_in: int, width: int) -> Shapes:
    shapes: Shapes = {
        "query": (n_queries, width), "pos_embed": (n_queries, width),
        "kv_proj.weight": (width, n_in), "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,), "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,), "proj": (width, width),
    }  # fmt: skip
    for norm in ("ln_q", "ln_kv", "ln_post"):
        shapes |= {f"{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    return {f"resampler.{name}": shape for name, shape in shapes.items()}


def _layer(lead: str, width: int, ffn: int) -> Shapes:
    shapes: Shapes = {f"{lead}self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
    shapes |= {f"{lead}mlp.{part}_proj.weight": (ffn, width) for part in ("gate", "up")}
    norms = (f"{lead}{name}_layernorm.weight" for name in ("input", "post_attention"))
    return {**shapes, f"{lead}mlp.down_proj.weight": (width, ffn), **dict.fromkeys(norms, (width,))}
