"""The vocabulary of a GGUF file: what it holds, and how it is written.

What llama.cpp looks at, and why each piece gets its type:

- CONTROL pieces are matched in text only where special tokens are parsed, i.e. in the template's
  own pieces, never in what a person or a picture wrote. So every named special token is CONTROL.
- USER_DEFINED pieces are matched in any text.
- UNUSED pieces never match and print as nothing: reserved pieces and padding.
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
    """What the GGUF's tokenizer fields hold; pieces, scores and types are by token id."""

    model: str  # "llama": SentencePiece's BPE; "gpt2": byte-level BPE
    pre: str  # how text is cut before pieces are looked up, by llama.cpp's name
    pieces: list[bytes]
    types: list[int]
    bos: int | None
    eos: int | None
    add_bos: bool
    unk: int | None = None
    scores: list[float] = field(default_factory=list)  # SentencePiece alone
    merges: list[str] = field(default_factory=list)  # byte-level BPE alone
    add_space_prefix: bool = False
    chat_template: str = ""  # data for others who read the GGUF; EdgePrism never runs it


@dataclass(frozen=True)
class TokenRules:
    """What a family knows of its tokenizer and the files do not say."""

    eos: str = ""  # the token that ends an answer, if it is not the tokenizer's own
    needed: tuple[str, ...] = ()  # special tokens that the prompt is made of
    renamed: Mapping[str, str] = field(default_factory=dict)  # reserved piece → special token
    chat_template: str = ""


def eos_id(pieces: list[bytes], rules: TokenRules, own: int | None) -> int | None:
    """The id of the rules' end token; the tokenizer's own where there is none."""
    name = rules.eos.encode()
    return pieces.index(name) if name and name in pieces else own


def write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Put the vocabulary into the GGUF's header."""
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
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
