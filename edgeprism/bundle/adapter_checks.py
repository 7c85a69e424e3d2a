"""Faults of a GGUF adapter (LoRA), found in its header before llama.cpp opens the file.

llama.cpp (the version in llama-cpp-python 0.3.36, `llama-adapter.cpp`) ends the process at a value
of metadata that has another type than it expects, and at matrices that it cannot multiply. It
reports other faults, which are found here too, so that one message names them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from edgeprism.bundle.gguf import FLOAT32, GgufHeader
from edgeprism.bundle.gguf_checks import alignment_faults

_HALVES = (".lora_a", ".lora_b")
_ALPHA = "adapter.lora.alpha"
_AFTER_TOKENS = "adapter.alora.invocation_tokens"
# ggml types of matrices that llama.cpp multiplies with rows on every device
_MATRIX_TYPES = frozenset({0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23, 30})
# a picture's rows stand where tokens' embeddings would, and their scores are not computed
_UNUSED_BASES = ("token_embd.weight", "output.weight")
_MOST_NAMED = 3  # faults of one kind


def adapter_faults(header: GgufHeader, model: GgufHeader) -> list[str]:
    """Return a description of each fault of an adapter for the language model `model`."""
    return [
        *_metadata_faults(header, model),
        *alignment_faults(header),
        *_matrix_faults(header, model),
    ]


def _metadata_faults(header: GgufHeader, model: GgufHeader) -> Iterator[str]:
    for key, expected in (("general.type", "adapter"), ("adapter.type", "lora"),
                          ("general.architecture", model.architecture)):  # fmt: skip
        value = header.metadata.get(key)
        if value != expected:
            yield f"{key} is {value!r}, not {expected!r}"
    alpha, single = header.metadata.get(_ALPHA), header.kinds.get(_ALPHA) == FLOAT32
    if not (single and isinstance(alpha, float) and math.isfinite(alpha) and alpha > 0):
        yield f"{_ALPHA} is {alpha!r}, not a number above 0 in 32 bits"
    if _AFTER_TOKENS in header.metadata:
        yield f"{_AFTER_TOKENS}: it acts only after certain tokens"


def _matrix_faults(header: GgufHeader, model: GgufHeader) -> list[str]:
    bases = {name.removesuffix(half) for name in header.tensors for half in _HALVES}
    bases -= header.tensors.keys()
    strange = sorted(name for name in header.tensors if not name.endswith(_HALVES))
    faults = [f"{name} is no half of a matrix" for name in strange]
    faults += filter(None, (_pair_fault(base, header, model) for base in sorted(bases)))
    if not header.tensors:
        faults.append("it holds no matrix")
    hidden = len(faults) - _MOST_NAMED
    return [*faults[:_MOST_NAMED], *([f"{hidden} faults more"] if hidden > 0 else [])]


def _pair_fault(base: str, header: GgufHeader, model: GgufHeader) -> str:
    """Return what is wrong with the halves of `base`, a matrix of the model; "" if nothing is."""
    names = [base + half for half in _HALVES]
    shape = model.tensors.get(base, ())
    if len(shape) != 2 or base in _UNUSED_BASES:
        return f"{base} is no matrix of the language model that rows go through"
    for name in names:
        if name not in header.tensors:
            return f"{name} is missing"
        if header.tensor_types[name] not in _MATRIX_TYPES:
            return f"{name} has values of an unknown type ({header.tensor_types[name]})"
    a, b = (header.tensors[name] for name in names)  # the fastest dimension first
    n_in, n_out = shape
    if len(a) != 2 or len(b) != 2 or (a[0], b[1], a[1]) != (n_in, n_out, b[0]):
        return f"the halves of {base}, {list(a)} and {list(b)}, do not fit its {list(shape)}"
    return ""
