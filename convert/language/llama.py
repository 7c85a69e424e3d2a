"""Llama and models named alike as published → the tensors of llama.cpp's architectures.

Source of the names: transformers' LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and
GemmaForCausalLM. Vicuna, Yi, SmolLM, Llama 3, Qwen 1.5 and MiniCPM use the same names. A
captioner's checkpoint puts a prefix before the names, which `body_prefix` looks up in the
checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from edgeprism.convert.language.config import LmConfig, LmTensor
from edgeprism.convert.language.rope import llama3_factors, permute_for_rope
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# llama.cpp's architectures that rotate neighbours, where the published models rotate halves
_PAIRWISE = ("llama", "minicpm")
# Buffers that some files hold in addition to the weights
UNUSED = (r"rotary_emb\.inv_freq$",)

_PROBE = "layers.0.mlp.gate_proj.weight"  # no vision tower has one


def body_prefix(names: Iterable[str], where: str) -> str:
    """Return the prefix before `layers.0.…`, e.g. "model." or "language_model.model."."""
    prefixes = sorted(n.removesuffix(_PROBE) for n in names if n.endswith(_PROBE))
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{where} holds more than one language model: {', '.join(prefixes)}.",
            "Use the published checkpoint.",
        )
    return prefixes[0] if prefixes else "model."


def head_name(names: Iterable[str], body: str) -> str:
    """Return the output head's name: at the top in newer files, else with the body's prefix."""
    prefixed = f"{body.removesuffix('model.')}lm_head.weight"
    return "lm_head.weight" if "lm_head.weight" in names and prefixed not in names else prefixed


def gguf_tensors(config: LmConfig, body: str, head: str) -> Iterator[LmTensor]:
    """Yield the GGUF's tensors in file order, each with its published source."""
    e, f = config.n_embd, config.n_ffn
    n_q, n_kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim

    def same(name: str, source: str, *shape: int) -> LmTensor:
        return LmTensor(name, shape, source, shape)

    def turned(name: str, source: str, n_heads: int, *shape: int) -> LmTensor:
        # llama.cpp's qwen2 rotates halves, as published models do, so its rows keep their order
        turn = partial(permute_for_rope, n_heads=n_heads)
        return LmTensor(
            name, shape, source, shape, turn if config.architecture in _PAIRWISE else None
        )

    def norm(name: str, source: str) -> LmTensor:
        # Gemma's norms multiply by 1 + weight, llama.cpp's by the tensor
        turn = _plus_one if config.architecture == "gemma" else None
        return LmTensor(name, (e,), source, (e,), turn)

    yield same("token_embd.weight", f"{body}embed_tokens.weight", config.n_vocab, e)
    if config.rope_scaling.kind == "llama3":
        yield _rope_factors(config)
    for i in range(config.n_layers):
        layer, block = f"{body}layers.{i}.", f"blk.{i}."
        attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
        yield norm(f"{block}attn_norm.weight", f"{layer}input_layernorm.weight")
        yield turned(f"{block}attn_q.weight", f"{attention}q_proj.weight", config.n_heads, n_q, e)
        yield turned(
            f"{block}attn_k.weight", f"{attention}k_proj.weight", config.n_kv_heads, n_kv, e
        )
        yield same(f"{block}attn_v.weight", f"{attention}v_proj.weight", n_kv, e)
        if config.qkv_bias:
            yield turned(f"{block}attn_q.bias", f"{attention}q_proj.bias", config.n_heads, n_q)
            yield turned(f"{block}attn_k.bias", f"{attention}k_proj.bias", config.n_kv_heads, n_kv)
            yield same(f"{block}attn_v.bias", f"{attention}v_proj.bias", n_kv)
        yield same(f"{block}attn_output.weight", f"{attention}o_proj.weight", e, n_q)
        if config.output_bias:
            yield same(f"{block}attn_output.bias", f"{attention}o_proj.bias", e)
        yield norm(f"{block}ffn_norm.weight", f"{layer}post_attention_layernorm.weight")
        yield same(f"{block}ffn_gate.weight", f"{mlp}gate_proj.weight", f, e)
        yield same(f"{block}ffn_up.weight", f"{mlp}up_proj.weight", f, e)
        yield same(f"{block}ffn_down.weight", f"{mlp}down_proj.weight", e, f)
    yield norm("output_norm.weight", f"{body}norm.weight")
    if not config.tied:  # without a head, llama.cpp uses the embedding
        yield same("output.weight", head, config.n_vocab, e)


def _plus_one(weight: torch.Tensor) -> torch.Tensor:
    return weight + 1


def _rope_factors(config: LmConfig) -> LmTensor:
    import torch

    factors = llama3_factors(config.rope_scaling, config.rope_theta, config.head_dim)
    tensor = torch.tensor(factors, dtype=torch.float32)
    return LmTensor("rope_freqs.weight", tuple(tensor.shape), "", (), lambda _: tensor)
