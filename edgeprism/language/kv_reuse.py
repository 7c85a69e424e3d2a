"""What a sequence of the KV cache holds, so that the next request need not prefill it again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from edgeprism.language.request import Part

Key = list[int] | bytes  # of a part: its ids, or the digest of its visual tokens


def part_to_key(part: Part) -> Key:
    """What tells a part from any other: visual tokens by content, so no array need be kept."""
    if isinstance(part, list):
        return part
    digest = hashlib.sha256(repr((part.values.shape, part.causal)).encode())
    digest.update(np.ascontiguousarray(part.values, dtype=np.float32).tobytes())
    if part.positions is not None:
        digest.update(np.ascontiguousarray(part.positions, dtype=np.int32).tobytes())
    return digest.digest()


def common_opening(held: Sequence[Key], wanted: Sequence[Key], *, split: bool) -> tuple[int, int]:
    """How much of `wanted` is held: (whole parts, tokens of the part after them).

    Its last token never counts: the logits behind it are what a request begins with. Parts are
    only cut in two with `split`: rows that went through the model beside others differ by rounding.
    """
    parts = 0
    while parts < min(len(held), len(wanted) - 1) and held[parts] == wanted[parts]:
        parts += 1
    tokens = 0
    if split and parts < len(held):
        ours, theirs = held[parts], wanted[parts]
        if isinstance(ours, list) and isinstance(theirs, list):
            most = min(len(ours), len(theirs) - (parts == len(wanted) - 1))
            while tokens < most and ours[tokens] == theirs[tokens]:
                tokens += 1
    return parts, tokens
