"""BERT's WordPiece: an instruction's text → the ids that a connector reads.

The text is written in lower case and without accents, and cut into words; punctuation marks and
Chinese characters are words of their own. Each word becomes the longest pieces of the vocabulary,
from its beginning on. Source: Devlin et al. 2019 (arXiv 1810.04805), and the uncased tokenizer that
was published with it. Marks such as [SEP] in the text are plain text: only the tokenizer itself
puts them at the ends.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgeprism.errors import COPY_AGAIN, ModelError
from edgeprism.files.regular import read_limited

_UNKNOWN, _FIRST, _LAST = "[UNK]", "[CLS]", "[SEP]"
_CONTINUED = "##"  # the beginning of pieces that do not begin a word
_MOST_CHARACTERS = 100  # of a word; a longer one is unknown
_MOST_BYTES = 16 << 20  # of a vocabulary; the published ones have a quarter of a megabyte
# CJK ideographs: the unified ones, their extensions A to E, and the compatibility forms
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WordPiece:
    """A vocabulary's tokenizer."""

    def __init__(self, pieces: Mapping[str, int], *, max_ids: int, truncation: str) -> None:
        """`pieces` gives each piece its id; `max_ids` counts the marks at both ends.

        Raises ValueError for a vocabulary without these marks or the piece for unknown words.
        """
        if missing := [mark for mark in (_UNKNOWN, _FIRST, _LAST) if mark not in pieces]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        self._pieces, self._room, self._truncation = pieces, max_ids - 2, truncation
        self.n_pieces = max(pieces.values()) + 1

    @classmethod
    def from_file(cls, path: Path, *, max_ids: int, truncation: str) -> WordPiece:
        """Read a vocabulary with a piece in each line; raises ModelError, which names the file."""
        try:
            text = read_limited(path, _MOST_BYTES).decode("utf-8")
            lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
            pieces = {piece: i for i, piece in enumerate(lines)}
            return cls(pieces, max_ids=max_ids, truncation=truncation)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ModelError(f"{path}: no WordPiece vocabulary: {reason}.", COPY_AGAIN) from error

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text with the marks at its ends, at most `max_ids` of them.

        Of a longer text the words at one end are left out: at the left or the right, as chosen.
        """
        found = [piece for word in _words(text) for piece in self._pieces_of(word)]
        if len(found) > self._room:
            found = found[-self._room :] if self._truncation == "left" else found[: self._room]
        return [self._pieces[_FIRST], *found, self._pieces[_LAST]]

    def _pieces_of(self, word: str) -> list[int]:
        """Return the ids of a word's pieces; the unknown one for a word that has none."""
        unknown = [self._pieces[_UNKNOWN]]
        if len(word) > _MOST_CHARACTERS:
            return unknown
        found: list[int] = []
        start = 0
        while start < len(word):
            lead = _CONTINUED if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if lead + word[start:e] in self._pieces), None)
            if end is None:
                return unknown
            found.append(self._pieces[lead + word[start:end]])
            start = end
        return found


def _words(text: str) -> Iterator[str]:
    """Yield the words of a text, in lower case and without accents."""
    spaced = "".join(_spaced(character) for letter in text for character in letter.lower())
    for word in unicodedata.normalize("NFC", spaced).split():
        letters = unicodedata.normalize("NFD", word.lower())
        plain = (letter for letter in letters if unicodedata.category(letter) != "Mn")
        yield from "".join(f" {c} " if _is_punctuation(c) else c for c in plain).split()


def _spaced(character: str) -> str:
    """Return a character, with blanks around an ideograph; nothing for a control code."""
    if character in "\t\n\r":
        return " "
    category = unicodedata.category(character)
    if category.startswith("C") or character == "\ufffd":
        return ""
    if category == "Zs":
        return " "
    code = ord(character)
    return f" {character} " if any(a <= code <= b for a, b in _IDEOGRAPHS) else character


def _is_punctuation(character: str) -> bool:
    """Return whether a character is a word of its own: all signs of ASCII are, such as $ and ^."""
    if character.isascii():
        return character.isprintable() and not character.isalnum() and character != " "
    return unicodedata.category(character).startswith("P")
