"""A unigram tokenizer.json with pieces for bytes → the vocabulary of a GGUF file.

transformers writes such a file from a SentencePiece model of unigrams: a character that is no piece
becomes a piece for each of its bytes. llama.cpp's `t5` tokenizer finds the same unigrams, but knows
no bytes. So a byte that is a character of ASCII, and no piece already, stands in the GGUF file as
that character, with the score of an unknown one. Other characters that are no piece become the
unknown token here. Texts are split by SentencePiece's rules of before 2023: a space in front of the
text, and none that is merged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.convert.language.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)
from edgeprism.convert.read.checkpoint import read_json
from edgeprism.errors import CheckpointError

FILE = "tokenizer.json"
_SPACE = "▁"  # how pieces write a space
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_ASCII = 128
_UNKNOWN_PENALTY = 10.0  # by which an unknown character's score is below all pieces'
# the only normalizer that llama.cpp's settings describe
_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": _SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
    ],
}


@dataclass(frozen=True)
class ByteVocabulary:
    """The vocabulary, and the texts that both tokenizers cut alike."""

    vocabulary: Vocabulary
    alphabet: frozenset[str]  # characters that are pieces
    names: tuple[str, ...]  # of pieces that no text becomes in llama.cpp

    def same_texts(self, texts: Sequence[str]) -> list[str]:
        """Return those of `texts` that need no unknown token, and spell no special one."""
        return [
            text
            for text in texts
            if all(c < chr(_ASCII) or c in self.alphabet for c in text)
            and not any(name in text for name in self.names)
        ]


def byte_vocabulary(
    folder: Path, n_vocab: int, end: str, control: Sequence[str], needed: Sequence[str] = ()
) -> ByteVocabulary:
    """Read `folder`/tokenizer.json for a model of `n_vocab` rows.

    Args:
        folder: The folder of the tokenizer.
        n_vocab: The rows of the model's table.
        end: The token that ends a text.
        control: The pieces that no text becomes, but a prompt's template.
        needed: Further pieces that must be there.

    Raises:
        CheckpointError: The tokenizer is of another kind, or lacks one of these tokens.
    """
    path = folder / FILE
    data = read_json(path)
    faults = _faults(data, n_vocab)
    pieces = [] if faults else [piece for piece, _ in data["model"]["vocab"]]
    faults += [f"no token is named {name}" for name in (end, *control, *needed)
               if not faults and name not in pieces]  # fmt: skip
    if faults:
        raise CheckpointError(
            f"{path} cannot be reproduced by llama.cpp: {'; '.join(faults)}.",
            "Use the tokenizer that was published with the language model.",
        )
    scores = [float(score) for _, score in data["model"]["vocab"]]
    alphabet = frozenset(piece for piece in pieces if len(piece) == 1)
    types, texts = _forms(data, pieces, scores, {end, *control}, alphabet)
    n_more = n_vocab - len(pieces)
    vocabulary = Vocabulary(
        model="t5",
        pre="default",
        pieces=[*texts, *(f"[PAD{i}]".encode() for i in range(len(pieces), n_vocab))],
        types=[*types, *[UNUSED] * n_more],
        bos=None,
        eos=pieces.index(end),
        add_bos=False,
        unk=data["model"]["unk_id"],
        scores=[*scores, *[0.0] * n_more],
        add_space_prefix=True,
    )
    hidden = (piece for piece, kind in zip(pieces, types, strict=True)
              if kind in (CONTROL, UNKNOWN) or _BYTE.fullmatch(piece))  # fmt: skip
    return ByteVocabulary(vocabulary, alphabet | {" "}, tuple(hidden))


def _forms(
    data: dict[str, Any],
    pieces: list[str],
    scores: list[float],
    special: set[str],
    alphabet: frozenset[str],
) -> tuple[list[int], list[bytes]]:
    """Return the type and the text of each piece; bytes that become characters get their score."""
    added = {token["id"]: token for token in data.get("added_tokens") or []}
    lowest = min(scores) - _UNKNOWN_PENALTY
    types, texts = [], []
    for i, piece in enumerate(pieces):
        byte, text, kind = _BYTE.fullmatch(piece), piece, NORMAL
        if i == data["model"]["unk_id"]:
            kind = UNKNOWN
        elif piece in special or (i in added and added[i].get("special")):
            kind = CONTROL
        elif i in added:
            kind = USER_DEFINED
        elif byte:
            letter, kind = chr(int(byte[1], 16)), BYTE
            if 0 < ord(letter) < _ASCII and letter != " " and letter not in alphabet:
                text, kind, scores[i] = letter, NORMAL, lowest
        types.append(kind)
        texts.append(text.encode())
    return types, texts


def _faults(data: dict[str, Any], n_vocab: int) -> list[str]:
    """Return what llama.cpp would not do as the file says."""
    model = data.get("model")
    entries = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or model.get("type") not in ("Unigram", None):
        return ["its model is not of unigrams"]
    if not isinstance(entries, list) or not entries or not all(map(_is_entry, entries)):
        return ["it holds no pieces with scores"]
    faults = []
    pieces = [piece for piece, _ in entries]
    known = set(pieces)
    if len(known) != len(pieces):
        faults.append("two pieces are alike")
    if len(pieces) > n_vocab:
        faults.append(f"it has {len(pieces)} pieces, the model's vocabulary {n_vocab} rows")
    if model.get("byte_fallback") is not True:
        faults.append("it does not fall back to bytes")
    unknown = model.get("unk_id")
    if type(unknown) is not int or not 0 <= unknown < len(pieces):
        faults.append("it has no unknown piece")
    if missing := sum(f"<0x{i:02X}>" not in known for i in range(256)):
        faults.append(f"it lacks {missing} of the 256 pieces for bytes")
    if data.get("normalizer") != _NORMALIZER or data.get("pre_tokenizer") is not None:
        shown = json.dumps(data.get("normalizer"), ensure_ascii=False)[:200]
        faults.append(f"its normalizer is {shown}, or it has a pre-tokenizer")
    added = data.get("added_tokens") or []
    if not isinstance(added, list) or not all(_is_added(each, pieces) for each in added):
        faults.append("its added tokens are not among its pieces")
    return faults


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and entry[0] != ""
        and type(entry[1]) in (int, float)
        and abs(entry[1]) < 1e6
    )


def _is_added(token: object, pieces: Sequence[str]) -> bool:
    if not isinstance(token, dict):
        return False
    number = token.get("id")
    if not isinstance(number, int) or not 0 <= number < len(pieces):
        return False
    return pieces[number] == token.get("content")
