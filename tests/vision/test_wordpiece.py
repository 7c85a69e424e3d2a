"""BERT's WordPiece against transformers' own tokenizers, over ordinary and hostile texts."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from edgeprism.errors import ModelError
from edgeprism.vision.wordpiece import WordPiece
from tests.helpers.instructed import VOCABULARY, write_vocabulary

SEED = 17
TEXTS = [
    "", " ", "\n\t\r ", "Describe the red house.", "  two  spaces ", "it's a DOG-house, isn't it?",
    "Écrivez où l’été déçoit: çà et là…", "İstanbul ΟΔΟΣ ΣΑΣ Straße K Å ﬁne", "naïve naïve",
    "[CLS] is no mark, nor is [SEP], [PAD], [MASK], [UNK] or [DEC].", "[SEP][SEP]", "a[SEP]b",
    "图片中有一只橘色的猫", "红red猫cat", "カタカナ ひらがな 한국어", "$^`~|<>=+ 3.14 €5",
    "\u200bzero\u200dwidth\ufeff", "nul\x00 bell\x07 del\x7f \ufffd end", "line\u2028and\u2029par",
    "wide\u3000blank\u00a0none\u1680ogham", "a" * 100, "a" * 101, "red" * 200, "é" * 120,
    "\u0301 lone accent", "a\u0301\u0323 stacked", "🙂👩‍👩‍👧 🇩🇪", "𝐛𝐨𝐥𝐝 ① ½ ²", "؟ ، 。！「」",
    "\ud800 lone half \udfff", "x\u0660\u0661", "ﷺ", "ǅ ǆ Ǆ", "\x85next", "a\x1cb\x1fc", "Ⅷ ⅷ",
]  # fmt: skip


def tokenizers(folder: Path) -> list[Any]:
    """Return transformers' slow and fast tokenizer, which take typed marks for plain text."""
    from transformers import BertTokenizer, BertTokenizerFast

    path = str(write_vocabulary(folder))
    slow = BertTokenizer(path, split_special_tokens=True, model_max_length=10**9)
    fast = BertTokenizerFast(path, split_special_tokens=True, model_max_length=10**9)
    return [slow, fast]


def random_texts(count: int) -> list[str]:
    """Return texts of letters, words and any assigned characters, in runs and mixed."""
    rng = random.Random(SEED)
    assigned = [chr(i) for i in range(0x3100) if unicodedata.category(chr(i)) != "Cn"]
    assigned += [chr(rng.randrange(0x3100, 0x2FFFF)) for _ in range(3000)]
    assigned = [c for c in assigned if not 0xD800 <= ord(c) < 0xE000]
    words = [piece.removeprefix("##") for piece in VOCABULARY if piece[0] != "["]
    sources = [assigned, words, list(" .,'-[]\n\t"), [*"abcXYZéÄß"]]
    return [
        "".join(rng.choice(rng.choice(sources)) for _ in range(rng.randrange(1, 60)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return tokenizers(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def ours(tmp_path: Path) -> WordPiece:
    return WordPiece.from_file(write_vocabulary(tmp_path), max_ids=10**9, truncation="left")


def test_ids_are_those_of_the_slow_tokenizer(ours: WordPiece, published: list[Any]) -> None:
    """The slow one takes a typed mark for the mark even so, if blanks stand around it."""
    slow = published[0]
    texts = [text for text in [*TEXTS, *random_texts(600)] if "[SEP]" not in text]
    different = [text for text in texts if ours.ids(text) != slow(text).input_ids]
    assert not different


def test_ids_are_those_of_the_fast_tokenizer(ours: WordPiece, published: list[Any]) -> None:
    """The fast one has other Unicode tables than Python, so it gets texts that both know."""
    fast = published[1]
    texts = [t for t in TEXTS if not any("\ud800" <= c <= "\udfff" for c in t)]
    different = [t for t in texts if ours.ids(t) != fast(t).input_ids]
    assert not different


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_text_is_cut_at_its_side(tmp_path: Path, published: list[Any], side: str) -> None:
    slow = published[0]
    slow.truncation_side = side
    for length in (3, 8, 20):
        ours = WordPiece.from_file(write_vocabulary(tmp_path), max_ids=length, truncation=side)
        for text in ["Describe the red house and a blue boat near the tree.", *random_texts(40)]:
            expected = slow(text, truncation=True, max_length=length).input_ids
            assert ours.ids(text) == expected
            assert len(expected) <= length


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join(VOCABULARY).encode())
    ours = WordPiece.from_file(path, max_ids=99, truncation="left")
    assert ours.ids("red") == [VOCABULARY.index(piece) for piece in ("[CLS]", "red", "[SEP]")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "lacks"),
        (b"[CLS]\n[SEP]\nred\n", r"lacks \[UNK\]"),
        (b"[UNK]\n[CLS]\n[SEP]\n\xff\xfe\n", "utf-8"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_named(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=words) as caught:
        WordPiece.from_file(path, max_ids=9, truncation="left")
    assert str(path) in caught.value.message
