"""The configuration of the first Qwen (`model_type` qwen) in the names of other language models.

transformers has no class for this model. Source: its public repository (`configuration_qwen.py`,
`modeling_qwen.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeprism.convert.read.fields import number_faults, size_faults, unknown_fields, variant_error

# published name → the name in other models' configurations
_NAMES = {
    "num_hidden_layers": "num_hidden_layers", "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads", "kv_channels": "head_dim",
    "intermediate_size": "intermediate_size", "vocab_size": "vocab_size",
    "layer_norm_epsilon": "rms_norm_eps", "rotary_emb_base": "rope_theta",
}  # fmt: skip
_NUMBERS = ("layer_norm_epsilon", "rotary_emb_base")
# Settings with the value of every published model; another value computes something else.
_FIXED: dict[str, object] = {
    "rotary_pct": 1.0, "no_bias": True, "scale_attn_weights": True, "tie_word_embeddings": False,
}  # fmt: skip
# Logarithmic attention and NTK-aware positions begin behind `seq_length` tokens, where the context
# ends here; the others choose a dtype or an export, and `visual` is the tower's.
_WITHOUT_EFFECT = (
    "use_logn_attn", "use_dynamic_ntk", "bf16", "fp16", "fp32", "onnx_safe", "visual",
)  # fmt: skip


def standard_fields(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of a Qwen's config.json under other models' names.

    The context ends with the trained length: behind it, the published code changes attention and
    positions in ways that llama.cpp does not. Raises CheckpointError, which lists all faults.
    """
    lengths = [data.get(name) for name in ("seq_length", "max_position_embeddings")]
    faults = [
        f"{name} = {data[name]!r} (expected {value!r})"
        for name, value in _FIXED.items()
        if data.get(name, value) != value
    ]
    faults += [f"{name} is missing" for name in (*_NAMES, "seq_length") if data.get(name) is None]
    known = (*_NAMES, *_FIXED, *_WITHOUT_EFFECT, "seq_length", "max_position_embeddings")
    faults += [f"{field} (a field that is not understood)" for field in unknown_fields(data, known)]
    faults = faults or _size_faults(data)
    if faults:
        raise variant_error(
            where,
            faults,
            "Use the config.json that was published.",
        )
    fields = {ours: data[theirs] for theirs, ours in _NAMES.items()}
    return {
        **fields,
        "model_type": "qwen",
        "num_key_value_heads": fields["num_attention_heads"],
        "max_position_embeddings": min(length for length in lengths if length is not None),
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": True,
    }


def _size_faults(data: Mapping[str, Any]) -> list[str]:
    """Return the sizes that are no whole number above 0 or contradict one another."""
    names = [name for name in _NAMES if name not in _NUMBERS]
    names += ["seq_length", *(["max_position_embeddings"] * ("max_position_embeddings" in data))]
    faults = size_faults({name: data[name] for name in names})
    faults += number_faults({name: data[name] for name in _NUMBERS}, 1e9)
    if faults:
        return faults
    if data["kv_channels"] * data["num_attention_heads"] != data["hidden_size"]:
        faults.append(
            f"kv_channels {data['kv_channels']} × num_attention_heads "
            f"{data['num_attention_heads']} is not hidden_size {data['hidden_size']}"
        )
    if data["intermediate_size"] % 2:
        faults.append(f"intermediate_size {data['intermediate_size']} is odd")
    return faults
