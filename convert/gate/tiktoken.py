"""The gate's reference of tiktoken vocabularies: pieces joined by rank, without a list of merges.

Like the gate's other references, it shares no code with the converter.
"""

from __future__ import annotations

import base64
import itertools
import unicodedata
from collections.abc import Callable
from pathlib import Path

# How the published tokenizer splits text before it joins bytes
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tiktoken_ids(path: Path) -> Callable[[str], list[int]]:
    """Return the text → ids function of the vocabulary at `path`: no special tokens."""
    from tokenizers import Regex, pre_tokenizers

    ranks = {}
    for line in path.read_bytes().splitlines():
        if line:
            piece, rank = line.split()
            ranks[base64.b64decode(piece)] = int(rank)
    splitter = pre_tokenizers.Split(Regex(_PATTERN), "isolated")

    def to_ids(text: str) -> list[int]:
        words = splitter.pre_tokenize_str(unicodedata.normalize("NFC", text))
        return [i for word, _ in words for i in _ids_of_word(word.encode(), ranks)]

    return to_ids


def _ids_of_word(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Join the two neighbours whose joint piece has the lowest rank until no such piece exists."""
    ends = list(range(len(word) + 1))  # of the parts: part i is word[ends[i]:ends[i + 1]]
    while True:
        joints = [
            (ranks[word[ends[i - 1] : ends[i + 1]]], i)
            for i in range(1, len(ends) - 1)
            if word[ends[i - 1] : ends[i + 1]] in ranks
        ]
        if not joints:
            return [ranks[word[a:b]] for a, b in itertools.pairwise(ends)]
        del ends[min(joints)[1]]
