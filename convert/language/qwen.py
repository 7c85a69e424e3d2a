"""The first Qwen as published → the tensors of llama.cpp's `qwen` architecture.

One matrix `c_attn` holds queries, keys and values, each with a bias. The feed-forward width of the
configuration counts both of its first matrices; llama.cpp halves it as the published code does.
Source: the model's public repository (`modeling_qwen.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeprism.convert.language.config import LmConfig, LmTensor

# Buffers that some files hold in addition to the weights
UNUSED = (r"rotary_emb\.inv_freq$", r"\.attn\.(masked_)?bias$")


def gguf_tensors(config: LmConfig) -> Iterator[LmTensor]:
    """Yield the GGUF's tensors in file order, each with its published source."""
    e, f, body = config.n_embd, config.n_ffn // 2, "transformer."

    def same(name: str, source: str, *shape: int) -> LmTensor:
        return LmTensor(name, shape, source, shape)

    yield same("token_embd.weight", f"{body}wte.weight", config.n_vocab, e)
    for i in range(config.n_layers):
        layer, block = f"{body}h.{i}.", f"blk.{i}."
        yield same(f"{block}attn_norm.weight", f"{layer}ln_1.weight", e)
        yield same(f"{block}attn_qkv.weight", f"{layer}attn.c_attn.weight", 3 * e, e)
        yield same(f"{block}attn_qkv.bias", f"{layer}attn.c_attn.bias", 3 * e)
        yield same(f"{block}attn_output.weight", f"{layer}attn.c_proj.weight", e, e)
        yield same(f"{block}ffn_norm.weight", f"{layer}ln_2.weight", e)
        yield same(f"{block}ffn_up.weight", f"{layer}mlp.w1.weight", f, e)
        yield same(f"{block}ffn_gate.weight", f"{layer}mlp.w2.weight", f, e)
        yield same(f"{block}ffn_down.weight", f"{layer}mlp.c_proj.weight", e, f)
    yield same("output_norm.weight", f"{body}ln_f.weight", e)
    yield same("output.weight", "lm_head.weight", config.n_vocab, e)
