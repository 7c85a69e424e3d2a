"""Tables by which a vocabulary rewrites characters: whatever passes is never left by any text."""

from __future__ import annotations

import io
import random
import struct

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from edgeprism.bundle.charsmap import charsmap_fault


@pytest.fixture(scope="module")
def published() -> bytes:
    """The table of T5, which SentencePiece compiles into each of its models."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a few words of a text"] * 9), model_writer=trained,
        model_type="unigram", vocab_size=20, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(trained.getvalue())
    table: bytes = model.normalizer_spec.precompiled_charsmap
    return table


def table(entries: list[int], texts: bytes = b"x\0") -> bytes:
    """A trie of 256 entries, the first of which are given."""
    padded = entries + [0] * (256 - len(entries))
    return struct.pack("<257I", 1024, *padded) + texts


def leaves(charsmap: bytes, texts: list[bytes]) -> bool:
    """Follow `texts` as llama.cpp does; return whether any of them steps out of the table."""
    (size,) = struct.unpack_from("<I", charsmap)
    trie = struct.unpack_from(f"<{size // 4}I", charsmap, 4)
    n_texts = len(charsmap) - 4 - size
    return not all(_stays(trie, n_texts, text) for text in texts)


def _base(entry: int) -> int:
    return (entry >> 10) << ((entry & (1 << 9)) >> 6)


def _stays(trie: tuple[int, ...], n_texts: int, text: bytes) -> bool:
    place = _base(trie[0])
    for byte in text:
        place ^= byte
        if place >= len(trie):
            return False
        entry = trie[place]
        if entry & (1 << 31 | 0xFF) != byte:
            return True
        place ^= _base(entry)
        if (entry >> 8) & 1 and (place >= len(trie) or trie[place] & 0x7FFFFFFF >= n_texts):
            return False
    return True


def test_what_sentencepiece_compiles_passes(published: bytes) -> None:
    assert len(published) > 100_000
    assert charsmap_fault(published) == ""
    assert charsmap_fault(b"") == ""  # a vocabulary need not have one


@pytest.mark.parametrize(
    ("charsmap", "words"),
    [
        (b"\0", "cut short"),
        (struct.pack("<I", 0) + b"x\0", "cut short"),
        (struct.pack("<II", 5, 0) + b"xx\0", "cut short"),
        (struct.pack("<II", 4, 0), "cut short"),
        (table([], b"x"), "cut short"),  # no NUL ends the last text
        (struct.pack("<II", 4, 0) + b"x\0", "leads out"),  # one entry, and any byte leaves it
        (table([1 << 10 << 8 | 1 << 9]), "leads out"),  # the root's children lie outside
        (table([0, *([0] * 64), 65 | 1 << 18]), "leads out"),  # those of "A" do
        (table([0, *([0] * 63), 64 | 1 << 8 | 1 << 10, 7]), "leads out"),  # the text of "@"
    ],
)
def test_faults_are_told(charsmap: bytes, words: str) -> None:
    assert words in charsmap_fault(charsmap)


def test_a_small_table_passes() -> None:
    assert charsmap_fault(table([0, *([0] * 63), 64 | 1 << 8 | 1 << 10, 1])) == ""


def test_no_text_leaves_what_passes(published: bytes) -> None:
    """Entries of the published table are changed at random; llama.cpp's walk finds no way out."""
    rng = random.Random(7)
    (size,) = struct.unpack_from("<I", published)
    texts = [chr(rng.choice((rng.randrange(0x20, 0x3000), rng.randrange(0x3000, 0xFFFF)))).encode(
        "utf-8", "replace") for _ in range(3000)]  # fmt: skip
    refused = 0
    for trial in range(12):
        changed = bytearray(published)
        for _ in range(1 + trial // 6):
            changed[4 + rng.randrange(size)] ^= 1 << rng.randrange(8)
        if charsmap_fault(bytes(changed)):
            refused += 1
        else:
            assert not leaves(bytes(changed), texts)
    assert 0 < refused < 12
    assert not leaves(published, texts)
