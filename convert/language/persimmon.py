"""Persimmon as published → the weights of `RowDecoderGraph`, and its settings.

Source: transformers' PersimmonConfig and PersimmonForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeprism.convert.language.config import LmTensor
from edgeprism.convert.language.row_decoder import RowDecoderConfig
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.read.fields import (
    flag_faults,
    number_faults,
    require_known,
    size_faults,
    variant_error,
    with_older_rope,
)
from edgeprism.convert.vision.interleaved import head_weights
from edgeprism.convert.vision.weights import (
    VisionWeights,
    Weight,
    Weights,
    linear_weights,
    norm_weights,
    prefix_before,
)

# Buffers that older files hold
UNUSED = (r"(^|\.)rotary_emb\.inv_freq$",)
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "vocab_size", "max_position_embeddings")  # fmt: skip
# Each with the only value that the graph computes
_FIXED: dict[str, Any] = {
    "hidden_act": "relu2", "qk_layernorm": True, "tie_word_embeddings": False, "rope_scaling": None,
}  # fmt: skip
_NUMBERS = {"layer_norm_eps": 1, "rope_theta": 1e15, "partial_rotary_factor": 1 + 1e-9}
# Those that decide what the model computes
FIELDS = (*_SIZES, *_FIXED, *_NUMBERS)
_HEAD_BLOCK = 16  # channels; ONNX Runtime turns heads of whole blocks
_PROBE = "layers.0.self_attn.query_key_value.weight"
_NORMS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
_HEAD_NORMS = {"q_norm": "self_attn.q_layernorm", "k_norm": "self_attn.k_layernorm"}


def persimmon_config(data: Mapping[str, Any], where: str) -> RowDecoderConfig:
    """Read the fields of a Persimmon's configuration; missing ones get transformers' defaults.

    Raises CheckpointError, which starts with `where` and lists all faults, for a variant that the
    graph does not compute.
    """
    from transformers import PersimmonConfig

    data = with_older_rope(data, where)
    require_known(data, (), where, "persimmon")
    given = {name: value for name, value in data.items() if value is not None}
    fields = {**PersimmonConfig().to_dict(), **given}
    faults = size_faults({name: fields[name] for name in _SIZES})
    for name, below in _NUMBERS.items():
        faults += number_faults({name: fields[name]}, below)
    faults += flag_faults({name: fields[name] for name in ("qk_layernorm", "tie_word_embeddings")})
    faults += [
        f"{name} = {fields[name]!r} (expected {value!r})"
        for name, value in _FIXED.items()
        if fields[name] != value
    ]
    heads, width = fields["num_attention_heads"], fields["hidden_size"]
    rotary = 0
    if not faults and width % (heads * _HEAD_BLOCK):
        faults.append(
            f"hidden_size {width} does not give each of {heads} heads (num_attention_heads) a "
            f"multiple of {_HEAD_BLOCK} channels"
        )
    elif not faults:
        rotary = int(width // heads * fields["partial_rotary_factor"])
        if rotary % _HEAD_BLOCK:
            faults.append(
                f"partial_rotary_factor = {fields['partial_rotary_factor']!r} turns {rotary} "
                f"channels of a head (expected a multiple of {_HEAD_BLOCK})"
            )
    if faults:
        raise variant_error(where, faults, "Use the config.json that was published.")
    return RowDecoderConfig(
        n_layers=fields["num_hidden_layers"],
        n_embd=width,
        n_heads=heads,
        n_ffn=fields["intermediate_size"],
        n_vocab=fields["vocab_size"],
        context_length=fields["max_position_embeddings"],
        eps=float(fields["layer_norm_eps"]),
        rope_theta=float(fields["rope_theta"]),
        rotary=rotary,
    )


def persimmon_weights(config: RowDecoderConfig, checkpoint: Checkpoint) -> VisionWeights:
    """Return the weights of `RowDecoderGraph`."""
    e, f, lead = config.n_embd, config.n_ffn, _lead(checkpoint)
    head = prefix_before("lm_head.weight", checkpoint.names, "language_model.")
    graph: Weights = {
        "head.weight": Weight(
            checkpoint, {f"{head}lm_head.weight": (config.n_vocab, e)}, lambda rows: rows.t()
        ),
        **norm_weights("norm_last", checkpoint, f"{lead}final_layernorm", e),
    }
    for i in range(config.n_layers):
        module, source = f"layers.{i}.", f"{lead}layers.{i}."
        packed = f"{source}self_attn.query_key_value"
        graph |= head_weights(module, checkpoint, packed, e, config.n_heads)
        for name, published in _NORMS.items():
            graph |= norm_weights(f"{module}{name}", checkpoint, f"{source}{published}", e)
        for name, published in _HEAD_NORMS.items():
            where = f"{source}{published}"
            graph |= norm_weights(f"{module}{name}", checkpoint, where, config.head_dim)
        wide = {"out": ("self_attn.dense", e, e), "fc1": ("mlp.dense_h_to_4h", e, f),
                "fc2": ("mlp.dense_4h_to_h", f, e)}  # fmt: skip
        for name, (published, *widths) in wide.items():
            graph |= linear_weights(f"{module}{name}", checkpoint, f"{source}{published}", *widths)
    return VisionWeights({"": graph})


def embedding(config: RowDecoderConfig, checkpoint: Checkpoint) -> LmTensor:
    """Return the table by which tokens become rows."""
    shape = (config.n_vocab, config.n_embd)
    return LmTensor("token_embd.weight", shape, f"{_lead(checkpoint)}embed_tokens.weight", shape)


def _lead(checkpoint: Checkpoint) -> str:
    return prefix_before(_PROBE, checkpoint.names, "language_model.model.")
