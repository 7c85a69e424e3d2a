"""Write a Qwen-VL-Chat in its published layout and dimensions, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.checkpoints.one_tile import Shapes, write_config, write_shards
from tests.helpers.tiny_qwen_vl import write_tokenizer

_WIDTH, _LAYERS, _HEADS, _MLP_RATIO, _SIZE, _PATCH = 1664, 48, 16, 4.9231, 448, 14
_HIDDEN, _FFN, _LM_HEADS, _VOCAB, _QUERIES = 4096, 11008, 32, 151936, 256


def write_qwen_vl(above: Path, n_layers: int) -> None:
    """Write ViT-bigG, 256 queries and a Qwen of `n_layers` layers, a shard a layer."""
    folder = above / "captioner"
    folder.mkdir(parents=True)
    n_ids = write_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"chat_format": "chatml"}))
    ends: Shapes = {
        "transformer.wte.weight": (_VOCAB, _HIDDEN), "transformer.ln_f.weight": (_HIDDEN,),
        "lm_head.weight": (_VOCAB, _HIDDEN),
    }  # fmt: skip
    shards = [*_tower_layers(), _pool(), *(_layer(i) for i in range(n_layers)), ends]
    write_shards(folder, shards, torch.bfloat16, torch.Generator().manual_seed(0))
    visual = {
        "width": _WIDTH, "layers": _LAYERS, "heads": _HEADS, "mlp_ratio": _MLP_RATIO,
        "image_size": _SIZE, "patch_size": _PATCH, "output_dim": _HIDDEN,
        "image_start_id": n_ids - 3,
    }  # fmt: skip
    write_config(
        folder, model_type="qwen", hidden_size=_HIDDEN, intermediate_size=2 * _FFN,
        num_hidden_layers=n_layers, num_attention_heads=_LM_HEADS,
        kv_channels=_HIDDEN // _LM_HEADS, layer_norm_epsilon=1e-6, rotary_emb_base=10000,
        rotary_pct=1.0, vocab_size=_VOCAB, seq_length=2048, max_position_embeddings=8192,
        no_bias=True, scale_attn_weights=True, tie_word_embeddings=False, use_dynamic_ntk=True,
        use_logn_attn=True, visual=visual,
    )  # fmt: skip


def _tower_layers() -> list[Shapes]:
    e, inner = _WIDTH, int(_WIDTH * _MLP_RATIO)
    linears = {"attn.in_proj": (3 * e, e), "attn.out_proj": (e, e), "mlp.c_fc": (inner, e),
               "mlp.c_proj": (e, inner)}  # fmt: skip
    layers: list[Shapes] = []
    for i in range(_LAYERS):
        layer = f"transformer.visual.transformer.resblocks.{i}."
        shapes: Shapes = {}
        for name, shape in linears.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{layer}{name}.{kind}": (e,) for kind in ("weight", "bias")}
        layers.append(shapes)
    return layers


def _pool() -> Shapes:
    """Return what stands before and behind the tower's layers."""
    e, lead, pool = _HIDDEN, "transformer.visual.", "transformer.visual.attn_pool."
    shapes: Shapes = {
        f"{lead}conv1.weight": (_WIDTH, 3, _PATCH, _PATCH), f"{lead}proj": (e, e),
        f"{lead}positional_embedding": (256, _WIDTH), f"{pool}query": (_QUERIES, e),
        f"{pool}pos_embed": (_QUERIES, e), f"{pool}kv_proj.weight": (e, _WIDTH),
        f"{pool}attn.in_proj_weight": (3 * e, e), f"{pool}attn.in_proj_bias": (3 * e,),
        f"{pool}attn.out_proj.weight": (e, e), f"{pool}attn.out_proj.bias": (e,),
    }  # fmt: skip
    norms = {f"{lead}ln_pre": _WIDTH, f"{lead}ln_post": e, f"{pool}ln_q": e, f"{pool}ln_kv": e}
    for name, n in norms.items():
        shapes |= {f"{name}.{kind}": (n,) for kind in ("weight", "bias")}
    return shapes


def _layer(i: int) -> Shapes:
    e, f, layer = _HIDDEN, _FFN, f"transformer.h.{i}."
    return {
        f"{layer}ln_1.weight": (e,), f"{layer}ln_2.weight": (e,),
        f"{layer}attn.c_attn.weight": (3 * e, e), f"{layer}attn.c_attn.bias": (3 * e,),
        f"{layer}attn.c_proj.weight": (e, e), f"{layer}mlp.w1.weight": (f, e),
        f"{layer}mlp.w2.weight": (f, e), f"{layer}mlp.c_proj.weight": (e, f),
    }  # fmt: skip
