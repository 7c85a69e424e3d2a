"""The table by which a unigram vocabulary (T5's) rewrites characters, checked before it is used.

SentencePiece compiles it: the size of a trie, the trie, and the texts that replace what the trie
finds, each ended by a NUL. llama.cpp ends the process where a step in the trie leaves the table,
and only at texts that lead there, so that no trial finds every such table. Source: SentencePiece's
`precompiled_charsmap`; llama.cpp's llama-vocab.cpp, which calls the trie an XOR-compressed compact
double array.
"""

from __future__ import annotations

import numpy as np

_SIZE_BYTES = 4
_LABEL, _LEAF, _WIDE, _VALUE = 0x800000FF, 1 << 8, 1 << 9, 0x7FFFFFFF  # bits of an entry


def charsmap_fault(charsmap: bytes) -> str:
    """Return what is wrong with a table that rewrites characters; "" if nothing is."""
    if not charsmap:
        return ""
    size = int.from_bytes(charsmap[:_SIZE_BYTES], "little")
    texts = len(charsmap) - _SIZE_BYTES - size
    if len(charsmap) < _SIZE_BYTES or size % 4 or not size or texts < 1 or charsmap[-1]:
        return "it is cut short"
    trie = np.frombuffer(charsmap, "<u4", size // 4, _SIZE_BYTES).astype(np.uint32)
    return "" if _stays_inside(trie, texts) else "it leads out of itself"


def _stays_inside(trie: np.ndarray, n_texts: int) -> bool:
    """Return whether every text finds entries of `trie`, and places among `n_texts` bytes.

    A place and the next byte, joined by exclusive or, are an entry's number, if its label is
    that byte; its base, joined to its number, is the next place.
    """
    numbers = np.arange(len(trie), dtype=np.uint32)
    labels = trie & np.uint32(_LABEL)
    is_child = (labels > 0) & (labels < 256)  # of the place that its number and its label make
    is_child &= (numbers ^ labels) < len(trie)
    parents = np.where(is_child, numbers ^ labels, 0)
    following = numbers ^ _bases(trie)
    places, reached = _bases(trie[:1]), np.zeros(len(trie), bool)
    while len(places):
        if int((places | np.uint32(255)).max()) >= len(trie):
            return False
        reached[places] = True
        children = np.flatnonzero(is_child & reached[parents])
        is_child[children] = False  # these are known now
        places = following[children]
        ends = places[(trie[children] & np.uint32(_LEAF)) != 0]
        if int(ends.max(initial=0)) >= len(trie):
            return False
        if int((trie[ends] & np.uint32(_VALUE)).max(initial=0)) >= n_texts:
            return False
    return True


def _bases(entries: np.ndarray) -> np.ndarray:
    """Return where the entries that follow each of these begin, before the next byte is added."""
    wide: np.ndarray = (entries & np.uint32(_WIDE)) >> np.uint32(6)
    bases: np.ndarray = (entries >> np.uint32(10)) << wide
    return bases
