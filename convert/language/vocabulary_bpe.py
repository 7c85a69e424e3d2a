"""Byte-level BPE's tokenizer.json → the vocabulary of a GGUF file.

The GGUF takes the file's vocabulary and merges unchanged. It only names the pre-tokenizer, which is
compiled into llama.cpp (see `pretokenizer`). Added tokens that look like markup ("<…>", "[…]") are
CONTROL even if the file does not call them special: a user's text must not turn into one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeprism.convert.language.pretokenizer import pretokenizer_name
from edgeprism.convert.language.vocabulary import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    TokenRules,
    Vocabulary,
    eos_id,
)
from edgeprism.convert.read.checkpoint import read_json
from edgeprism.errors import CheckpointError

FILE = "tokenizer.json"
_MARKUP = re.compile(r"<.+>|\[.+\]", re.DOTALL)
# Fields of `model` that change how BPE merges pieces, with the values that llama.cpp assumes
_PLAIN: dict[str, tuple[object, ...]] = {
    "type": ("BPE",),
    "dropout": (None, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
}


def vocabulary(folder: Path, n_vocab: int, rules: TokenRules) -> Vocabulary:
    """Read tokenizer.json and the folder's other files about special tokens."""
    path = folder / FILE
    data = read_json(path)
    return vocabulary_of_pieces(path, data, lambda: pretokenizer_name(path, data), n_vocab, rules)


def vocabulary_of_pieces(
    path: Path, data: dict[str, Any], pre: Callable[[], str], n_vocab: int, rules: TokenRules
) -> Vocabulary:
    """Return the vocabulary of `data`, the content of a tokenizer.json, that was read from `path`.

    `pre` names its pre-tokenizer; the special tokens' names stand in the files beside `path`.
    """
    import gguf

    faults = _faults(data, n_vocab)
    if faults:
        raise CheckpointError(
            f"{path} cannot be reproduced by llama.cpp: {'; '.join(faults)}.",
            "Use the tokenizer that was published with the language model; one made from a "
            "SentencePiece model needs its tokenizer.model in the folder.",
        )
    name = pre()
    try:
        special = gguf.SpecialVocab(path.parent, load_merges=True, n_vocab=n_vocab)
    except (ValueError, AttributeError, TypeError, KeyError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", "Download it again.") from error
    by_id = {number: piece.encode() for piece, number in data["model"]["vocab"].items()}
    named = {piece.encode() for piece in rules.control}
    kinds = {i: CONTROL if piece in named else NORMAL for i, piece in by_id.items()}
    for token in data.get("added_tokens") or []:
        number, text = token["id"], token["content"]
        by_id[number] = text.encode()
        control = token.get("special") or _MARKUP.fullmatch(text)
        kinds[number] = CONTROL if control else USER_DEFINED
    pieces = [by_id.get(i, f"[PAD{i}]".encode()) for i in range(n_vocab)]
    bos = special.special_token_ids.get("bos")
    template = rules.chat_template or special.chat_template
    return Vocabulary(
        model="gpt2",
        pre=name,
        pieces=pieces,
        types=[kinds.get(i, UNUSED) for i in range(n_vocab)],
        bos=bos,
        eos=eos_id(pieces, rules, special.special_token_ids.get("eos")),
        add_bos=bos is not None and bool(special.add_special_token.get("bos", False)),
        merges=special.merges,
        chat_template=template if isinstance(template, str) else "",
    )


def _faults(data: dict[str, Any], n_vocab: int) -> list[str]:
    model = data.get("model")
    if (
        not isinstance(model, dict)
        or not isinstance(model.get("vocab"), dict)
        or not model["vocab"]
    ):
        return ["it holds no vocabulary of pieces"]
    faults = [
        f"model.{name} is {model.get(name)!r}"
        for name, plain in _PLAIN.items()
        if model.get(name) not in plain
    ]
    ids = list(model["vocab"].values())
    added = data.get("added_tokens") or []
    if not isinstance(added, list):
        return [*faults, "added_tokens is no list"]
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            return [*faults, f"added token {token!r} is not a token"]
        ids.append(token.get("id"))
    if not all(type(number) is int and number >= 0 for number in ids):
        faults.append("an id is no whole number")
    elif max(ids) >= n_vocab:
        faults.append(f"it has ids up to {max(ids)}, the model's vocabulary {n_vocab} rows")
    elif len(set(model["vocab"].values())) < len(model["vocab"]):
        faults.append("two pieces have one id")
    if not model.get("merges"):
        faults.append("it has no merges")
    return faults
