"""A Llama with two sets of weights in each layer, as CogVLM publishes it → two GGUFs.

Text goes through one set, the rows of a picture through the other; norms, embeddings and head are
shared. Queries, keys and values stand in one matrix. llama.cpp's `qwen2vl` computes a set: its
biases on queries, keys and values may be missing, it rotates halves as published, and with all of
M-RoPE's sections given to time, rows at one position keep their order.

Sources: the code of the published repositories (`modeling_cogvlm.py`) in public copies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from edgeprism.convert.language.config import LmConfig, LmTensor
from edgeprism.convert.language.vocabulary import BYTE, CONTROL, UNKNOWN, Vocabulary

if TYPE_CHECKING:
    import torch

LANGUAGE, VISION = "language", "vision"
ARCHITECTURE = "qwen2vl"
_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def mrope_config(config: LmConfig, *, qkv_bias: bool = False) -> LmConfig:
    """Return the configuration of a Llama as that of `qwen2vl` whose positions are all in time."""
    sections = (config.head_dim // 2, 0, 0, 0)
    return dataclasses.replace(
        config, architecture=ARCHITECTURE, rope_sections=sections, qkv_bias=qkv_bias
    )


def gguf_tensors(config: LmConfig, expert: str) -> Iterator[LmTensor]:
    """Yield a GGUF's tensors in file order; `expert` is LANGUAGE or VISION.

    The vision expert's file has embeddings of its stand-in vocabulary, and they are its head.
    """
    e, f = config.n_embd, config.n_ffn
    if expert == LANGUAGE:
        table = "model.embed_tokens.weight"
        yield LmTensor("token_embd.weight", (config.n_vocab, e), table, (config.n_vocab, e))
    else:
        yield LmTensor("token_embd.weight", (config.n_vocab, e), "", (), partial(_zeros, config))
    for i in range(config.n_layers):
        yield from _layer(config, expert, f"model.layers.{i}.", f"blk.{i}.", f)
    yield LmTensor("output_norm.weight", (e,), "model.norm.weight", (e,))
    if expert == LANGUAGE:
        head = (config.n_vocab, e)
        yield LmTensor("output.weight", head, "lm_head.weight", head)


def _layer(config: LmConfig, expert: str, layer: str, block: str, f: int) -> Iterator[LmTensor]:
    e, n_kv = config.n_embd, config.n_kv_heads * config.head_dim
    attention, mlp = f"{layer}self_attn.{expert}_expert_", f"{layer}mlp.{expert}_mlp."

    def norm(name: str, source: str) -> LmTensor:
        return LmTensor(f"{block}{name}.weight", (e,), f"{layer}{source}.weight", (e,))

    yield norm("attn_norm", "input_layernorm")
    packed, start = e + 2 * n_kv, 0
    for part, rows in (("q", e), ("k", n_kv), ("v", n_kv)):
        cut = partial(_rows, start, start + rows)
        name, source = f"{block}attn_{part}", f"{attention}query_key_value"
        yield LmTensor(f"{name}.weight", (rows, e), f"{source}.weight", (packed, e), cut)
        if config.qkv_bias:
            yield LmTensor(f"{name}.bias", (rows,), f"{source}.bias", (packed,), cut)
        start += rows
    yield LmTensor(f"{block}attn_output.weight", (e, e), f"{attention}dense.weight", (e, e))
    yield norm("ffn_norm", "post_attention_layernorm")
    for part, source in _MLP.items():
        shape = (e, f) if part == "down" else (f, e)
        yield LmTensor(f"{block}ffn_{part}.weight", shape, f"{mlp}{source}.weight", shape)


def _rows(start: int, stop: int, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[start:stop]


def _zeros(config: LmConfig, _: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.zeros(config.n_vocab, config.n_embd)


def stand_in_vocabulary() -> Vocabulary:
    """Return the smallest vocabulary of llama.cpp's kind "llama": each byte, and three marks."""
    marks = [b"<unk>", b"<s>", b"</s>"]
    pieces = [*marks, *(b"<0x%02X>" % byte for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
    return Vocabulary(
        model="llama", pre="default", pieces=pieces, types=types, bos=1, eos=2, add_bos=False,
        unk=0, scores=[0.0] * len(pieces),
    )  # fmt: skip
