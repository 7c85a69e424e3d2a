"""How much memory a KV cache takes, from the model's header, before llama.cpp takes it."""

from __future__ import annotations

from edgeprism.bundle.gguf import Array, GgufHeader
from edgeprism.errors import ModelError
from edgeprism.machine.available_memory import available_memory

KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
_GB = 1e9


def kv_bytes(header: GgufHeader, cells: int, kv_type: str = "f16") -> float:
    """Return the bytes of a KV cache of `cells` cells, of all sequences together.

    Layers with a sliding window keep as many cells as the others: llama.cpp's `swa_full`, which is
    its default, so that a prompt's beginning can be kept. `kv_type` is a key of `KV_BYTES`.
    """
    layers = _number(header, "block_count")
    heads = _each(header, "attention.head_count", layers) or [1] * layers
    shared = _each(header, "attention.head_count_kv", layers) or heads
    sliding = _each(header, "attention.sliding_window_pattern", layers) or [0] * layers
    own_width = header.n_embd // max(1, heads[0]) if heads else 0
    every = _number(header, "full_attention_interval")  # other layers keep no keys and values
    total = 0.0
    for i in range(layers):
        if every > 1 and (i + 1) % every:
            continue
        for part in ("key", "value"):
            width = _number(header, f"attention.{part}_length") or own_width
            if sliding[i]:
                width = _number(header, f"attention.{part}_length_swa") or width
            total += cells * shared[i] * width * KV_BYTES[kv_type]
    return total


def fits_memory(n_bytes: float) -> bool:
    """Return whether so much memory is free, or the system does not say."""
    free = available_memory()
    return free is None or n_bytes <= free


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


def _number(header: GgufHeader, name: str) -> int:
    value = header.metadata.get(f"{header.architecture}.{name}")
    return value if isinstance(value, int) else 0


def _each(header: GgufHeader, name: str, layers: int) -> list[int]:
    """Return a value that is one for all layers, or one per layer, as one per layer.

    The list is empty if the header has no such value.
    """
    value = header.metadata.get(f"{header.architecture}.{name}")
    if isinstance(value, Array) and len(value.items) >= layers:
        return [item if isinstance(item, int) else 0 for item in value.items[:layers]]
    return [value] * layers if isinstance(value, int) else []
