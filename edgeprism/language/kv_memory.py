"""How much memory a KV cache takes, from the model's header, before llama.cpp takes it."""

from __future__ import annotations

from edgeprism.bundle.gguf import Array, GgufHeader
from edgeprism.errors import ModelError
from edgeprism.machine.available_memory import available_memory

KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
# architectures whose layers may have a sliding window without a pattern in the file
_SLIDING = (
    "afmoe", "cohere2", "exaone4", "gemma2", "gemma3", "gemma3n", "gemma4", "gpt-oss", "llama4",
    "mimo2", "olmo2", "phi3", "plamo3", "smallthinker", "step35",
)  # fmt: skip
_GB = 1e9


def kv_bytes(
    header: GgufHeader, cells: int, *, kv_type: str = "f16", n_seq: int = 1, n_batch: int = 512
) -> float:
    """Return the bytes of a KV cache of `cells` cells, or less where the header does not say.

    Parameters:
        cells: of all sequences together.
        kv_type: a key of `KV_BYTES`.
        n_seq: sequences; each keeps a window of its own in layers with a sliding window.
        n_batch: rows that go through the model at once, which such layers keep too.
    """
    layers = _number(header, "block_count")
    heads = _each(header, "attention.head_count", layers) or [1] * layers
    shared = _each(header, "attention.head_count_kv", layers) or heads
    own_width = header.n_embd // max(1, heads[0]) if heads else 0
    window = _number(header, "attention.sliding_window")
    sliding = _sliding_layers(header, layers) if window else [False] * layers
    every = _number(header, "full_attention_interval")  # the other layers keep no keys and values
    total = 0.0
    for i in range(layers):
        if every > 1 and (i + 1) % every:
            continue
        suffix = "_swa" if sliding[i] and _number(header, "attention.key_length_swa") else ""
        width = sum(
            _number(header, f"attention.{part}_length{suffix}") or own_width
            for part in ("key", "value")
        )
        held = min(cells, n_seq * (window + n_batch)) if sliding[i] else cells
        total += held * shared[i] * width * KV_BYTES[kv_type]
    return total


def check_kv_memory(name: str, n_bytes: float, cells: int) -> None:
    """Raise ModelError if a KV cache of `n_bytes` is larger than the memory that is free."""
    free = available_memory()
    if free is not None and n_bytes > free:
        raise ModelError(
            f"{name}: the KV cache for {cells} tokens takes {n_bytes / _GB:.1f} GB of memory, but "
            f"{free / _GB:.1f} GB are free.",
            "Lower `caption_tokens` or `answer_tokens`, show fewer pictures at once, or close "
            "other programs.",
        )


def _sliding_layers(header: GgufHeader, layers: int) -> list[bool]:
    """Return for each layer whether it has a sliding window; True where the file does not say."""
    pattern = header.metadata.get(f"{header.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, Array) and len(pattern.items) >= layers:
        return [bool(item) for item in pattern.items[:layers]]
    return [header.architecture in _SLIDING] * layers


def _number(header: GgufHeader, name: str) -> int:
    value = header.metadata.get(f"{header.architecture}.{name}")
    return value if isinstance(value, int) else 0


def _each(header: GgufHeader, name: str, layers: int) -> list[int]:
    """Return a value that is one for all layers, or one per layer, as one per layer."""
    value = header.metadata.get(f"{header.architecture}.{name}")
    if isinstance(value, Array) and len(value.items) >= layers:
        return [item if isinstance(item, int) else 0 for item in value.items[:layers]]
    return [value] * layers if isinstance(value, int) else []
