"""Markers such as <|im_end|> and [INST] in text that a person, a picture or a model wrote.

A chat template's markers become special tokens, which end a turn or open another. In anything but
the template itself they are plain text, and must stay that.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgeprism.language.llama import import_llama

if TYPE_CHECKING:
    from edgeprism.language.vocabulary import Vocabulary

# A blank after the first character breaks a marker. A zero-width character would not do: several
# tokenizers remove those before they look for markers.
_MARKER = re.compile(
    r"<(?=[^\s<>]{1,64}>)"  # <|im_end|>, <s>, <start_of_turn>, <｜User｜>, <|turn>, <think>
    r"|\[(?=/?(?:[A-Z][A-Z0-9_]+|gMASK|sMASK|sop|eop|unused\d+|control_\d+|multipage)\])"
    r"|\](?=[~!<])|\[(?=e~\[)"  # ]~b], ]~!b[, [e~[
    r"|◁(?=/?\w{1,32}▷)"
)
_SPECIAL = 1 << 3 | 1 << 4  # CONTROL and USER_DEFINED of llama.cpp's llama_token_attr


def break_markers(text: str) -> str:
    """Return `text` with a blank in every marker of a chat template; other text is unchanged."""
    return _MARKER.sub(lambda match: f"{match[0]} ", text)


def tokenize_plain(vocabulary: Vocabulary, text: str) -> list[int]:
    """Tokenise text that is not the template's own, so that no marker becomes a special token.

    llama.cpp parses tokens of the type USER_DEFINED in any text, and several conversions give that
    type to the template's markers. Where one comes out, a blank breaks its text.
    """
    ids = vocabulary.tokenize(text, parse_special=False)
    pieces = _marker_pieces(vocabulary, ids)
    if not pieces:
        return ids
    text = break_markers(text)
    for piece in pieces:  # also a marker in a form that `break_markers` does not know
        text = text.replace(piece, f"{piece[0]} {piece[1:]}")
    return vocabulary.tokenize(text, parse_special=False)


def _marker_pieces(vocabulary: Vocabulary, ids: list[int]) -> set[str]:
    """Return the texts of those ids that may act as a marker of the template."""
    llama, native = import_llama(), vocabulary.native
    pieces = set()
    for token in set(ids):
        if not llama.llama_vocab_get_attr(native, token) & _SPECIAL:
            continue
        piece = llama.llama_vocab_get_text(native, token).decode("utf-8", "replace")
        # Runs of blanks, line feeds and whole words may be USER_DEFINED as well: those are text.
        if len(piece) > 1 and (vocabulary.is_end(token) or _MARKER.match(piece)):
            pieces.add(piece)
    return pieces
