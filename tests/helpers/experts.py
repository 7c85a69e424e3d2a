"""Tiny language models with M-RoPE that are alike in shape: a model and an expert for its rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgeprism.bundle.manifest_language import LanguageModelFile, RowWeights
from tests.helpers import bundles

N_EMBD, N_VOCAB, CONTEXT = bundles.N_EMBD, bundles.N_VOCAB, 1024


def write_model(
    path: Path,
    seed: int,
    *,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    width: int = N_EMBD,
    theta: float = 1e4,
    n_vocab: int = N_VOCAB,
    architecture: str = "qwen2vl",
) -> Path:
    """Write a model with random weights of `seed`; return the path."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    head, wide = width // heads, 2 * width
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(theta)
    if architecture == "qwen2vl":
        writer.add_rope_dimension_sections([head // 2, 0, 0, 0])
    tokens = bundles.PIECES[:n_vocab]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(n_vocab)])
    kinds = [2, 3, 3] + [6] * 256 + [3, 3] + [1] * (len(bundles.PIECES) - 261)
    writer.add_token_types(kinds[:n_vocab])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def add(name: str, *shape: int, scale: float | None = None) -> None:
        noise = rng.standard_normal(shape, dtype=np.float32)
        spread = 1.2 / shape[-1] ** 0.5 if scale is None else scale
        writer.add_tensor(name, noise * np.float32(spread))

    def norm(name: str) -> None:
        noise = rng.standard_normal(width, dtype=np.float32)
        writer.add_tensor(name, 1 + np.float32(0.2) * noise)

    add("token_embd.weight", n_vocab, width, scale=1)
    norm("output_norm.weight")
    add("output.weight", n_vocab, width)
    for i in range(layers):
        block = f"blk.{i}."
        for part, rows in (("q", width), ("k", kv_heads * head), ("v", kv_heads * head)):
            add(f"{block}attn_{part}.weight", rows, width)
            add(f"{block}attn_{part}.bias", rows, scale=0.1)
        add(f"{block}attn_output.weight", width, width)
        norm(f"{block}attn_norm.weight")
        norm(f"{block}ffn_norm.weight")
        add(f"{block}ffn_gate.weight", wide, width)
        add(f"{block}ffn_up.weight", wide, width)
        add(f"{block}ffn_down.weight", width, wide)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def expert_parts(**changes: Any) -> dict[str, Any]:
    """Return the parts of a tiny bundle's manifest that differ where it has an expert."""
    base = bundles.make_manifest({})
    lm = LanguageModelFile(
        "lm.gguf", "F32", "qwen2vl", N_EMBD, N_VOCAB, CONTEXT, "causal", "shared",
        rows=RowWeights("expert", "lm.rows.gguf", own_last=1),
    )  # fmt: skip
    vision = dataclasses.replace(base.vision, grid=[1, bundles.N_TOKENS], constant_rows=[1, 1])
    return {"lm": dataclasses.replace(lm, **changes), "vision": vision}


def write_expert_bundle(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a bundle with an expert; `changes` are of the expert's file, as `write_model` has them.

    A language model and an expert that `folder` already holds stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "lm.gguf").exists():
        write_model(folder / "lm.gguf", 10 + seed)
    if not (folder / "lm.rows.gguf").exists():
        write_model(folder / "lm.rows.gguf", 20 + seed, **{"n_vocab": 260, **changes})
    return bundles.write_bundle(folder, seed, **expert_parts())
