"""Faults of a GGUF adapter (LoRA), found in its header before llama.cpp opens the file.

llama.cpp (the version in llama-cpp-python 0.3.36, `llama-adapter.cpp`) ends the process at a value
of metadata that has another type than it expects, and at matrices that it cannot multiply. It
reports other faults, which are found here too, so that one message names them all.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path

from edgeprism.bundle.gguf import FLOAT32, GgufHeader, read_gguf_header
from edgeprism.bundle.gguf_checks import alignment_faults
from edgeprism.bundle.gguf_purpose import ADAPTER, no_model, purpose_in_header
from edgeprism.files.safe_text import short_line

# Metadata of an adapter that was taught EdgePrism's prompts: which version of them.
PROMPTS_KEY, PROMPTS_VERSION = "edgeprism.reader", 1

_HALVES = (".lora_a", ".lora_b")
_ALPHA = "adapter.lora.alpha"
_AFTER_TOKENS = "adapter.alora.invocation_tokens"
# ggml types of matrices that llama.cpp multiplies with rows on every device
_MATRIX_TYPES = frozenset({0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23, 30})
_EMBEDDINGS, _SCORES = "token_embd.weight", "output.weight"
# a picture's rows stand where tokens' embeddings would, and their scores are not computed
_UNUSED_BY_ROWS = (_EMBEDDINGS, _SCORES)
_MOST_NAMED = 3  # faults of one kind
_SHOWN = 80  # characters of a value that an error repeats
# Products are scaled by alpha through the rank. Adapters have an alpha of once to four times their
# rank, seldom above 1,000; far above, nothing is left of the model's own products.
_MOST_ALPHA = 10_000


def read_adapter_header(path: Path) -> GgufHeader:
    """Read an adapter's header. Raises ModelError, which names the file, if it is not whole."""
    return read_gguf_header(path, what="adapter")


def other_kind(header: GgufHeader) -> str:
    """Return what a GGUF file is that is given as an adapter and is none; "" if it may be one."""
    if purpose_in_header(header) == ADAPTER:
        return ""
    what, _, _ = no_model(header).partition(",")
    return f"{what or 'a model'}, not a LoRA adapter"


def knows_prompts(header: GgufHeader) -> bool:
    """Return whether an adapter was taught EdgePrism's prompts, and needs no worked examples."""
    return header.metadata.get(PROMPTS_KEY) == PROMPTS_VERSION


def adapter_faults(header: GgufHeader, model: GgufHeader, *, of_rows: bool) -> list[str]:
    """Return a description of each fault of an adapter for the language model `model`.

    `of_rows` says that a picture's rows alone shall go through it, and no tokens.
    """
    unused: tuple[str, ...] = _UNUSED_BY_ROWS if of_rows else ()
    if not of_rows and _SCORES not in model.tensors:
        unused = (_EMBEDDINGS,)  # llama.cpp would multiply with the flipped halves for the scores
    return [
        *_metadata_faults(header, model),
        *alignment_faults(header),
        *_matrix_faults(header, model, unused),
    ]


def _metadata_faults(header: GgufHeader, model: GgufHeader) -> Iterator[str]:
    for key, expected in (("general.type", "adapter"), ("adapter.type", "lora"),
                          ("general.architecture", model.architecture)):  # fmt: skip
        value = header.metadata.get(key)
        if value != expected:
            yield f"{key} is {_shown(value)}, not {_shown(expected)}"
    alpha, single = header.metadata.get(_ALPHA), header.kinds.get(_ALPHA) == FLOAT32
    if not (single and isinstance(alpha, float) and math.isfinite(alpha) and alpha > 0):
        yield f"{_ALPHA} is {_shown(alpha)}, not a number above 0 in 32 bits"
    elif alpha > _MOST_ALPHA:
        yield f"{_ALPHA} is {alpha:g}, which no adapter has: at most {_MOST_ALPHA:,} is taken"
    if _AFTER_TOKENS in header.metadata:
        yield f"{_AFTER_TOKENS}: it acts only after certain tokens"
    prompts = header.metadata.get(PROMPTS_KEY, PROMPTS_VERSION)
    if isinstance(prompts, bool) or prompts != PROMPTS_VERSION:
        yield f"{PROMPTS_KEY} is {_shown(prompts)}: this EdgePrism knows {PROMPTS_VERSION} alone"


def _shown(value: object) -> str:
    return short_line(repr(value), _SHOWN)


def _matrix_faults(header: GgufHeader, model: GgufHeader, unused: Collection[str]) -> list[str]:
    bases = {name.removesuffix(half) for name in header.tensors for half in _HALVES}
    bases -= header.tensors.keys()
    strange = sorted(name for name in header.tensors if not name.endswith(_HALVES))
    faults = [f"{name} is no half of a matrix" for name in strange]
    faults += filter(None, (_pair_fault(base, header, model, unused) for base in sorted(bases)))
    if not header.tensors:
        faults.append("it holds no matrix")
    hidden = len(faults) - _MOST_NAMED
    return [*faults[:_MOST_NAMED], *([f"{hidden} faults more"] if hidden > 0 else [])]


def _pair_fault(base: str, header: GgufHeader, model: GgufHeader, unused: Collection[str]) -> str:
    """Return what is wrong with the halves of `base`, a matrix of the model; "" if nothing is."""
    names = [base + half for half in _HALVES]
    shape = model.tensors.get(base, ())
    if len(shape) != 2 or base in unused:
        return f"{base} is no matrix of the language model that can have an adapter here"
    for name in names:
        if name not in header.tensors:
            return f"{name} is missing"
        if header.tensor_types[name] not in _MATRIX_TYPES:
            return f"{name} has values of an unknown type ({header.tensor_types[name]})"
    a, b = (header.tensors[name] for name in names)  # the fastest dimension first
    n_in, n_out = shape
    expected = [(n_in, b[0]), (b[0], n_out)]
    if base == _EMBEDDINGS:  # rows of the first half are looked up, so it lies the other way
        expected = [(b[0], n_out), (b[0], n_in)]
    if [a, b] != expected:
        return f"the halves of {base}, {list(a)} and {list(b)}, do not fit its {list(shape)}"
    return ""
