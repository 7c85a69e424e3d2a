"""The fields of OPT's configuration → the settings of an `LmConfig`.

Source: transformers' OPTConfig and OPTForCausalLM. The 350m model differs from all others: its
norms stand behind each half of a layer, and its embeddings have a width of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeprism.convert.language.rope import RopeScaling
from edgeprism.convert.read.fields import flag_faults, size_faults, unknown_fields, variant_error

# transformers' defaults, which a published configuration may leave out
_SIZES: dict[str, Any] = {
    "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072,
    "num_attention_heads": 12, "max_position_embeddings": 2048,
}  # fmt: skip
# Each with the only value that llama.cpp's `mpt` can be made to compute
_FIXED: dict[str, Any] = {
    "activation_function": "relu", "do_layer_norm_before": True, "enable_bias": True,
    "layer_norm_elementwise_affine": True, "_remove_final_layer_norm": False,
}  # fmt: skip
# Of training
_WITHOUT_EFFECT = ("layerdrop", "init_std", "prefix")
_EPS = 1e-5  # torch's default of a LayerNorm: the configuration has no field for it


def opt_settings(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `LmConfig`'s settings of an OPT.

    Raises CheckpointError, which starts with `where` and lists all faults, for a variant that
    llama.cpp cannot compute.
    """
    given = {name: value for name, value in data.items() if value is not None}
    fields = {**_SIZES, **_FIXED, "tie_word_embeddings": True, **given}
    faults = size_faults({name: fields[name] for name in _SIZES})
    flags = [name for name, value in _FIXED.items() if isinstance(value, bool)]
    faults += flag_faults({name: fields[name] for name in (*flags, "tie_word_embeddings")})
    known = (*_SIZES, *_FIXED, *_WITHOUT_EFFECT, "word_embed_proj_dim", "tie_word_embeddings")
    faults += [f"{field} (a field that is not understood)" for field in unknown_fields(data, known)]
    faults += [
        f"{name} = {fields[name]!r} (expected {value!r})"
        for name, value in _FIXED.items()
        if fields[name] != value
    ]
    width = fields["hidden_size"]
    if fields.get("word_embed_proj_dim", width) != width:
        faults.append(
            f"word_embed_proj_dim = {fields['word_embed_proj_dim']!r} (expected {width!r}, the "
            "hidden_size: the embeddings pass through no matrix)"
        )
    heads = fields["num_attention_heads"]
    if not faults and width % heads:
        faults.append(f"hidden_size {width} is no multiple of num_attention_heads {heads}")
    if faults:
        raise variant_error(
            where, faults, "The layout of OPT 1.3b, 2.7b, 6.7b and larger can be converted."
        )
    return {
        "n_layers": fields["num_hidden_layers"],
        "n_embd": width,
        "n_heads": heads,
        "n_kv_heads": heads,
        "head_dim": width // heads,
        "n_ffn": fields["ffn_dim"],
        "n_vocab": fields["vocab_size"],
        "context_length": fields["max_position_embeddings"],
        "rope_theta": 0.0,
        "rope_scaling": RopeScaling(),
        "norm_eps": _EPS,
        "tied": fields["tie_word_embeddings"],
        "qkv_bias": True,
        "output_bias": True,
    }
