"""Write an InstructBLIP-Vicuna-7B in transformers' layout and dimensions, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.checkpoints.one_tile import Shapes, write_config, write_shards
from tests.helpers.checkpoints import write_tokenizer
from tests.helpers.instructed import write_vocabulary

_WIDTH, _BLOCKS, _MLP, _SIZE, _PATCH = 1408, 39, 6144, 224, 14
_QUERY_WIDTH, _QUERY_LAYERS, _QUERY_MLP, _QUERIES = 768, 12, 3072, 32
_PIECES, _POSITIONS = 30523, 512
_HIDDEN, _FFN, _HEADS, _VOCAB = 4096, 11008, 32, 32001
_ROOM = {"height": _SIZE, "width": _SIZE}


def write_instructblip(above: Path, n_layers: int) -> None:
    """Write EVA-ViT-g, the Q-Former and a Vicuna of `n_layers` layers, a shard a layer."""
    folder = above / "captioner"
    (folder / "qformer_tokenizer").mkdir(parents=True)
    write_tokenizer(folder, add_dummy_prefix=True)
    write_vocabulary(folder / "qformer_tokenizer")
    processor = {
        "image_processor_type": "BlipImageProcessor", "size": _ROOM, "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    body = "language_model.model."
    ends: Shapes = {
        f"{body}embed_tokens.weight": (_VOCAB, _HIDDEN), f"{body}norm.weight": (_HIDDEN,),
        "language_model.lm_head.weight": (_VOCAB, _HIDDEN), **_embeddings(),
        **_linear("language_projection", _HIDDEN, _QUERY_WIDTH),
    }  # fmt: skip
    shards = [
        *(_block(f"vision_model.encoder.layers.{i}.") for i in range(_BLOCKS)),
        *(_query_layer(i) for i in range(_QUERY_LAYERS)),
        *(_layer(f"{body}layers.{i}.") for i in range(n_layers)),
        ends,
    ]
    write_shards(folder, shards, torch.float16, torch.Generator().manual_seed(0))
    write_config(
        folder, model_type="instructblip", num_query_tokens=_QUERIES,
        vision_config={
            "hidden_size": _WIDTH, "intermediate_size": _MLP, "num_hidden_layers": _BLOCKS,
            "num_attention_heads": 16, "image_size": _SIZE, "patch_size": _PATCH,
        },
        qformer_config={"vocab_size": _PIECES, "encoder_hidden_size": _WIDTH},
        text_config={
            "model_type": "llama", "hidden_size": _HIDDEN, "intermediate_size": _FFN,
            "num_hidden_layers": n_layers, "num_attention_heads": _HEADS,
            "num_key_value_heads": _HEADS, "vocab_size": _VOCAB, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 2048, "tie_word_embeddings": False,
        },
    )  # fmt: skip


def _linear(name: str, n_out: int, n_in: int) -> Shapes:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.{kind}": (width,) for kind in ("weight", "bias")}


def _embeddings() -> Shapes:
    """Return what stands before and behind the blocks of the tower and of the Q-Former."""
    rows = 1 + (_SIZE // _PATCH) ** 2
    tower, qformer = "vision_model.embeddings.", "qformer.embeddings."
    return {
        f"{tower}class_embedding": (1, 1, _WIDTH),
        f"{tower}position_embedding": (1, rows, _WIDTH),
        f"{tower}patch_embedding.weight": (_WIDTH, 3, _PATCH, _PATCH),
        f"{tower}patch_embedding.bias": (_WIDTH,),
        **_norm("vision_model.post_layernorm", _WIDTH),
        f"{qformer}word_embeddings.weight": (_PIECES, _QUERY_WIDTH),
        f"{qformer}position_embeddings.weight": (_POSITIONS, _QUERY_WIDTH),
        **_norm(f"{qformer}layernorm", _QUERY_WIDTH),
        "query_tokens": (1, _QUERIES, _QUERY_WIDTH),
    }


def _block(lead: str) -> Shapes:
    return {
        **_linear(f"{lead}self_attn.qkv", 3 * _WIDTH, _WIDTH),
        **_linear(f"{lead}self_attn.projection", _WIDTH, _WIDTH),
        **_linear(f"{lead}mlp.fc1", _MLP, _WIDTH),
        **_linear(f"{lead}mlp.fc2", _WIDTH, _MLP),
        **_norm(f"{lead}layer_norm1", _WIDTH),
        **_norm(f"{lead}layer_norm2", _WIDTH),
    }


def _query_layer(number: int) -> Shapes:
    lead, e = f"qformer.encoder.layer.{number}.", _QUERY_WIDTH
    seen = {"attention": e} | ({"crossattention": _WIDTH} if number % 2 == 0 else {})
    shapes: Shapes = {}
    for part, width in seen.items():
        shapes |= _linear(f"{lead}{part}.attention.query", e, e)
        for name in ("key", "value"):
            shapes |= _linear(f"{lead}{part}.attention.{name}", e, width)
        shapes |= _linear(f"{lead}{part}.output.dense", e, e)
        shapes |= _norm(f"{lead}{part}.output.LayerNorm", e)
    for end in ("", "_query"):
        shapes |= _linear(f"{lead}intermediate{end}.dense", _QUERY_MLP, e)
        shapes |= _linear(f"{lead}output{end}.dense", e, _QUERY_MLP)
        shapes |= _norm(f"{lead}output{end}.LayerNorm", e)
    return shapes


def _layer(lead: str) -> Shapes:
    shapes: Shapes = {f"{lead}self_attn.{part}_proj.weight": (_HIDDEN, _HIDDEN) for part in "qkvo"}
    shapes |= {f"{lead}mlp.{part}_proj.weight": (_FFN, _HIDDEN) for part in ("gate", "up")}
    norms = (f"{lead}{name}_layernorm.weight" for name in ("input", "post_attention"))
    down = {f"{lead}mlp.down_proj.weight": (_HIDDEN, _FFN)}
    return {**shapes, **down, **dict.fromkeys(norms, (_HIDDEN,))}
