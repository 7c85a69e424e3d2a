"""Faults of a GGUF model at which llama.cpp ends the process instead of refusing the model.

Each rule prevents an assertion or an uncaught exception of llama.cpp (the version in
llama-cpp-python 0.3.36); models with one fault each showed where it fails. The rules hold for
every architecture; assertions of a single architecture show in the trial (`trial.py`). A rule here
tells what is wrong with the model, a trial only that it fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from edgeprism.bundle.gguf import BYTES, CHARSMAP, STRING, Array, GgufHeader

_MAX_LAYERS, _MAX_EXPERTS = 512, 1024  # LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS
_TENSOR_ALIGNMENT = 32
_F32 = 0
_NOT_WEIGHTS = {24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}
_ROPE_SCALINGS = ("none", "linear", "longrope", "yarn")
# sentencepiece and byte-pair vocabularies; these checks do not cover what other kinds need
_SENTENCEPIECE = "llama"
TOKENIZERS = (_SENTENCEPIECE, "gpt2", "gemma4")
UNIGRAM = "t5"  # of models with an encoder, or that ONNX Runtime runs
WORDPIECE = "bert"
# bytes; llama.cpp calls itself for each byte of a unigram vocabulary's token, and a thread's stack
# of 512 kB ends between 2000 and 4000 of them
_LONGEST_UNIGRAM = 1024

# attention in both directions: models for embeddings, and those that write by diffusion
_NOT_CAUSAL = (
    "bert", "dream", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llada",
    "llada-moe", "llama-embed", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "rnd1",
    "t5encoder",
)  # fmt: skip
_ENCODERS = ("t5",)
_LEAST_BUCKETS = 4  # two directions, and in each of them a near and a far one


def gguf_faults(header: GgufHeader, *, encodes: bool = False) -> list[str]:
    """Return a description of each fault that would end the process.

    `header` must have been read with `tokens=True`; `encodes` says that the model is to have an
    encoder.
    """
    return [
        *(_encoder_faults(header) if encodes else purpose_faults(header)),
        *_dimension_faults(header),
        *_head_faults(header),
        *_expert_faults(header),
        *vocabulary_faults(header, (UNIGRAM,) if encodes else TOKENIZERS),
        *_tensor_faults(header),
    ]


def purpose_faults(header: GgufHeader) -> list[str]:
    """Return what keeps a model from writing text: llama.cpp wants other calls for such a one."""
    name = header.architecture
    if _model_value(header, "attention.causal") is False or name in _NOT_CAUSAL:
        return [
            f"the architecture {name}, which does not write text word by word: it is made for "
            "embeddings, or writes by diffusion"
        ]
    if name in _ENCODERS:
        return [f"the architecture {name}, whose text must first pass through an encoder"]
    return []


def _encoder_faults(header: GgufHeader) -> Iterator[str]:
    """Yield what keeps a model from encoding a prompt, and from beginning to answer it."""
    if header.architecture not in _ENCODERS:
        yield f"the architecture {header.architecture}, which has no encoder"
    start = _number(header, "decoder_start_token_id")
    if start is None or not 0 <= start < header.n_vocab:
        yield f"no token that begins an answer (decoder_start_token_id is {start})"
    buckets = _number(header, "attention.relative_buckets_count") or 0
    if buckets < _LEAST_BUCKETS:
        yield f"{buckets} kinds of relative positions (at least {_LEAST_BUCKETS} are needed)"


def _dimension_faults(header: GgufHeader) -> Iterator[str]:
    layers = _number(header, "block_count")
    if layers is None or not 1 <= layers <= _MAX_LAYERS:
        yield f"{layers} layers (known: 1…{_MAX_LAYERS})"
    if (_number(header, "nextn_predict_layers") or 0) > (layers or 0):
        yield "more prediction layers than layers"
    for name in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon",
                 "attention.group_norm_epsilon"):  # fmt: skip
        value = _model_value(header, name)
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            yield f"an {name} of {value}"
    scaling = _model_value(header, "rope.scaling.type")
    if scaling is not None and scaling not in _ROPE_SCALINGS:
        yield f"rope.scaling.type {scaling!r} (known: {', '.join(_ROPE_SCALINGS)})"
    yield from alignment_faults(header)


def alignment_faults(header: GgufHeader) -> Iterator[str]:
    """Yield the fault of a file whose tensors begin where llama.cpp does not expect it."""
    alignment = header.metadata.get("general.alignment", _TENSOR_ALIGNMENT)
    if not isinstance(alignment, int) or alignment % _TENSOR_ALIGNMENT:
        yield f"alignment {alignment} (a multiple of {_TENSOR_ALIGNMENT} is needed)"


def _head_faults(header: GgufHeader) -> Iterator[str]:
    heads = _numbers(header, "attention.head_count")
    shared = _numbers(header, "attention.head_count_kv") or heads
    if len(shared) > 1 and len(heads) == 1:
        heads *= len(shared)
    if len(heads) > 1 and len(shared) == 1:
        shared *= len(heads)
    for n, n_kv in zip(heads, shared, strict=False):
        if n and n_kv and n % n_kv:
            yield f"{n} heads, which cannot share {n_kv} key/value heads"
            return
    widths = {
        shape[1] / n_kv if n_kv else 0
        for i, n_kv in enumerate(shared)
        if len(shape := header.tensors.get(f"blk.{i}.attn_k.weight", ())) == 2
    }
    # layers with a sliding window may have heads of a width of their own
    known = {_number(header, "attention.key_length"), _number(header, "attention.key_length_swa")}
    if 0 in widths or (len(widths) > 1 and not widths <= known):
        yield "key/value heads that do not fit the tensors"
    n_rope = _number(header, "rope.dimension_count")
    if n_rope is None and heads and heads[0]:
        n_rope = header.n_embd // heads[0]
    if n_rope is not None and n_rope % 2:
        yield f"an odd number of rotary dimensions ({n_rope})"


def _expert_faults(header: GgufHeader) -> Iterator[str]:
    experts = _number(header, "expert_count") or 0
    used = max(_numbers(header, "expert_used_count"), default=0)
    groups = _number(header, "expert_group_count") or 0
    group_used = _number(header, "expert_group_used_count") or 0
    if experts > _MAX_EXPERTS or used > experts or (experts and not used):
        yield f"{used} of {experts} experts in use"
    # one group is no grouping: converters write it, and llama.cpp checks only several
    if groups > 1 and (
        groups >= max(experts, 1) or experts % groups or not 0 < group_used < groups
    ):
        yield f"{group_used} of {groups} groups of {experts} experts in use"


def vocabulary_faults(header: GgufHeader, kinds: Sequence[str] = TOKENIZERS) -> Iterator[str]:
    """Yield the faults of a vocabulary, which must be one of `kinds`."""
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind not in kinds:
        yield f"a vocabulary of kind {kind!r} (known: {', '.join(kinds)})"
    if kind == UNIGRAM and (fault := _table_fault(header)):
        yield f"a vocabulary whose table of characters is damaged: {fault}"
    vocabulary = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(vocabulary, Array) or vocabulary.kind != STRING:
        yield "no vocabulary"
        return
    # llama.cpp reads a token up to a NUL
    tokens = {token.partition(b"\0")[0] if b"\0" in token else token for token in header.tokens}
    if len(tokens) != len(header.tokens):
        yield "a vocabulary that lists a token twice"
    longest = max(map(len, header.tokens), default=0)
    if kind == UNIGRAM and longest > _LONGEST_UNIGRAM:
        yield f"a token of {longest} bytes (known: up to {_LONGEST_UNIGRAM})"
    if kind == _SENTENCEPIECE:
        missing = sum(b"<0x%02X>" % i not in tokens for i in range(256))
        if missing:
            yield f"a vocabulary without {missing} of the 256 byte tokens"


def _table_fault(header: GgufHeader) -> str:
    table = header.metadata.get(CHARSMAP)
    if table is None or (isinstance(table, Array) and table.kind in BYTES):
        from edgeprism.bundle.charsmap import charsmap_fault  # needs numpy, as few models do

        return charsmap_fault(header.charsmap)
    return "it holds no bytes"


def _tensor_faults(header: GgufHeader) -> Iterator[str]:
    for name, kind in header.tensor_types.items():
        shape = header.tensors[name]
        if kind in _NOT_WEIGHTS and name.endswith((".weight", ".bias")):
            yield f"a tensor {name} with {_NOT_WEIGHTS[kind]} values"
        elif kind != _F32 and name.endswith(("norm.weight", ".bias")) and len(shape) == 1:
            yield f"a tensor {name} that is not F32"


def _model_value(header: GgufHeader, name: str) -> Any:
    return header.metadata.get(f"{header.architecture}.{name}")


def _number(header: GgufHeader, name: str) -> int | None:
    value = _model_value(header, name)
    return value if isinstance(value, int) else None


def _numbers(header: GgufHeader, name: str) -> list[int]:
    """Return a metadata value that is one number for all layers, or one number per layer."""
    value = _model_value(header, name)
    if isinstance(value, Array):
        return [item for item in value.items if isinstance(item, int)]
    return [value] if isinstance(value, int) else []
