"""Compare a request with what a sequence's KV cache holds, to prefill only the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from edgeprism.language.request import Part

Key = list[int] | bytes  # a part's token ids, or the digest of its visual tokens


def part_to_key(part: Part) -> Key:
    """Return a key that identifies a part; visual tokens become a digest, to free the array."""
    if isinstance(part, list):
        return part
    digest = hashlib.sha256(repr((part.values.shape, part.causal)).encode())
    digest.update(np.ascontiguousarray(part.values, dtype=np.float32).tobytes())
    if part.positions is not None:
        digest.update(np.ascontiguousarray(part.positions, dtype=np.int32).tobytes())
    return digest.digest()


def common_opening(held: Sequence[Key], request: Sequence[Key], *, split: bool) -> tuple[int, int]:
    """Return how much of `request` the cache holds: (whole parts, tokens of the next part).

    The request's last token never counts, because decoding starts with its logits. Only with
    `split` may part of a part count: the model's results for it may then differ by rounding,
    since they were computed together with other tokens.
    """
    parts = 0
    while parts < min(len(held), len(request) - 1) and held[parts] == request[parts]:
        parts += 1
    tokens = 0
    if split and parts < len(held):
        old, new = held[parts], request[parts]
        if isinstance(old, list) and isinstance(new, list):
            limit = min(len(old), len(new) - (parts == len(request) - 1))
            tokens = min(common_tokens(old, new), limit)
    return parts, tokens


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
