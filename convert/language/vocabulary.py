"""The vocabulary of a GGUF file and its writer.

A piece's type decides where llama.cpp matches it:

- CONTROL: only in text that is parsed for special tokens, i.e. the template's own, never in a
  user's or a picture's text. So every named special token is CONTROL.
- USER_DEFINED: in any text.
- UNUSED: nowhere, and it prints as nothing. These are reserved pieces and padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # as in GGUF


@dataclass(frozen=True)
class Vocabulary:
    """The GGUF's tokenizer fields; pieces, scores and types are indexed by token id."""

    model: str  # "llama": SentencePiece's BPE; "t5": its unigrams; "gpt2": byte-level BPE
    pre: str  # llama.cpp's name of the pre-tokenizer, which splits text before merging
    pieces: list[bytes]
    types: list[int]
    bos: int | None
    eos: int | None
    add_bos: bool
    unk: int | None = None
    scores: list[float] = field(default_factory=list)  # only SentencePiece has them
    merges: list[str] = field(default_factory=list)  # only byte-level BPE has them
    add_space_prefix: bool = False
    chat_template: str = ""  # for other programs that read the GGUF; EdgePrism never runs it
    charsmap: bytes = b""  # SentencePiece's table by which unigrams rewrite characters
    merge_spaces: bool = False  # only unigrams can


@dataclass(frozen=True)
class TokenRules:
    """Facts about a tokenizer that its files lack and its family supplies."""

    eos: str = ""  # the token that ends an answer; "": the tokenizer's own
    needed: tuple[str, ...] = ()  # special tokens that the prompt contains
    renamed: Mapping[str, str] = field(default_factory=dict)  # reserved piece → special token
    chat_template: str = ""
    control: tuple[str, ...] = ()  # special tokens among the pieces of byte-level BPE


def eos_id(pieces: list[bytes], rules: TokenRules, own: int | None) -> int | None:
    """Return the id of the rules' end token, or `own` if the rules name none."""
    name = rules.eos.encode()
    return pieces.index(name) if name and name in pieces else own


def write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Write the vocabulary into the GGUF's header."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.pieces)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for add, token in (
        (writer.add_bos_token_id, vocabulary.bos),
        (writer.add_eos_token_id, vocabulary.eos),
        (writer.add_unk_token_id, vocabulary.unk),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.merge_spaces:
        writer.add_remove_extra_whitespaces(True)
    if vocabulary.charsmap:
        writer.add_precompiled_charsmap(vocabulary.charsmap)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
