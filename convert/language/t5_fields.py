"""The fields of T5's configuration → the settings of an `LmConfig`.

Source: transformers' T5Config and T5ForConditionalGeneration. T5 1.1 and FlanT5 can be converted:
their feed-forward networks have a gate, and their output head is a matrix of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprism.convert.language.rope import RopeScaling
from edgeprism.convert.read.fields import (
    flag_faults,
    number_faults,
    size_faults,
    unknown_fields,
    variant_error,
)

# transformers' defaults, which a published configuration may leave out
_SIZES: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
    "relative_attention_num_buckets": 32,
    # of the texts that T5 was trained on; a field that transformers passes over
    "n_positions": 512,
}  # fmt: skip
_EPS = 1e-6
# llama.cpp has GELU in its tanh form alone. BLIP-2 takes the erf form, which differs by up to 5e-4.
_ACTIVATIONS = ("gelu_new", "gelu", "gelu_pytorch_tanh")
# Each with the only value that llama.cpp computes
_FIXED: dict[str, Any] = {
    "feed_forward_proj": "gated-gelu", "is_gated_act": True, "relative_attention_max_distance": 128,
    "is_encoder_decoder": True, "tie_word_embeddings": False,
}  # fmt: skip
# transformers' defaults of these, where they are others
_SILENT: dict[str, Any] = {"feed_forward_proj": "relu", "tie_word_embeddings": True}
# Of training, of the tokenizer and of other tasks
_WITHOUT_EFFECT = (
    "output_past", "task_specific_params", "initializer_factor", "classifier_dropout", "prefix",
    "model_parallel", "device_map",
)  # fmt: skip


def t5_settings(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `LmConfig`'s settings of a T5, without its encoder's.

    Raises CheckpointError, which starts with `where` and lists all faults, for a variant that
    llama.cpp cannot compute.
    """
    fields = _given(data)
    faults = size_faults({name: fields[name] for name in _SIZES})
    faults += number_faults({"layer_norm_epsilon": fields["layer_norm_epsilon"]}, 1)
    faults += flag_faults({"tie_word_embeddings": fields["tie_word_embeddings"]})
    known = (*_SIZES, *_FIXED, *_WITHOUT_EFFECT, "num_decoder_layers", "layer_norm_epsilon",
             "dense_act_fn")  # fmt: skip
    faults += [
        f"{field} (a field that is not understood)" for field in unknown_fields(data, known, "t5")
    ]
    fixed = {**_FIXED, "num_decoder_layers": fields["num_layers"]}
    faults += [
        f"{name} = {fields[name]!r} (expected {value!r})"
        for name, value in fixed.items()
        if fields[name] != value
    ]
    if fields["dense_act_fn"] not in _ACTIVATIONS:
        faults.append(f"dense_act_fn = {fields['dense_act_fn']!r} (known: {_ACTIVATIONS})")
    start: object = start_token(data)
    if type(start) is not int or not 0 <= start < fields["vocab_size"]:
        faults.append(f"decoder_start_token_id = {start!r} (expected a token of the vocabulary)")
    if faults:
        raise variant_error(where, faults, "The layout of T5 1.1 and FlanT5 can be converted.")
    return {
        "n_layers": fields["num_layers"],
        "n_embd": fields["d_model"],
        "n_heads": fields["num_heads"],
        "n_kv_heads": fields["num_heads"],
        "head_dim": fields["d_kv"],
        "n_ffn": fields["d_ff"],
        "n_vocab": fields["vocab_size"],
        "context_length": fields["n_positions"],
        "rope_theta": 0.0,
        "rope_scaling": RopeScaling(),
        "norm_eps": float(fields["layer_norm_epsilon"]),
        "tied": False,
        "qkv_bias": False,
        "output_bias": False,
    }


def n_buckets(data: Mapping[str, Any]) -> int:
    """Return how many kinds of relative positions there are, of a configuration without faults."""
    buckets: int = _given(data)["relative_attention_num_buckets"]
    return buckets


def start_token(data: Mapping[str, Any]) -> int:
    """Return the id of the token that begins an answer: padding, if the file names none."""
    start: int | None = data.get("decoder_start_token_id")
    return data.get("pad_token_id", 0) if start is None else start


def _given(data: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in data.items() if value is not None}
    fields = {
        **_SIZES, **_FIXED, **_SILENT, "layer_norm_epsilon": _EPS, "dense_act_fn": "gelu_new",
        **given,
    }  # fmt: skip
    return {"num_decoder_layers": fields["num_layers"], **fields}


def fields_in_blip(folder: Path) -> dict[str, Any]:
    """Return the fields of a language model's config.json as LAVIS takes them.

    BLIP-2 and InstructBLIP replace the activation that FlanT5's own file names by the erf form.
    """
    from edgeprism.convert.read.checkpoint import read_json

    fields = read_json(folder / "config.json")
    return {**fields, "dense_act_fn": "gelu"} if fields.get("model_type") == "t5" else fields
