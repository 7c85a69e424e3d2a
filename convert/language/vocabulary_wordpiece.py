"""BERT's WordPiece vocabulary → that of a GGUF file, in the form that llama.cpp reads.

Source: `BertModel.set_vocab` of llama.cpp's converter: a piece that continues a word stands without
its "##", and one that begins a word with "▁" before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeprism.convert.language.vocabulary import CONTROL, NORMAL, UNUSED, Vocabulary
from edgeprism.errors import CheckpointError

# llama.cpp's own ids of these, which a file without further keys has
_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
_CONTINUES = "##"


def wordpiece_vocabulary(
    pieces: Sequence[str], n_vocab: int, start: int, where: object
) -> Vocabulary:
    """Return the vocabulary of a decoder whose texts begin with `start` and end with [SEP].

    Args:
        pieces: The tokenizer's own, by id.
        n_vocab: The rows of the decoder's table; those behind `pieces` were added in training.
        start: The id of the token with which every text begins.
        where: What the pieces are from, for errors.

    Raises:
        CheckpointError: The pieces are not BERT's, or more than the decoder has rows.
    """
    faults = [
        f"{name} is not number {number}"
        for name, number in _IDS.items()
        if list(pieces[number : number + 1]) != [name]
    ]
    if not len(pieces) <= n_vocab or not 0 <= start < n_vocab:
        faults.append(
            f"it has {len(pieces)} pieces and the first token is {start}, but the decoder has "
            f"{n_vocab} rows"
        )
    if faults:
        raise CheckpointError(
            f"{where} holds no tokenizer of this decoder: {'; '.join(faults)}.",
            "Use BERT's vocab.txt (uncased), with which the captioner was trained.",
        )
    added = range(len(pieces), n_vocab)
    types = [CONTROL if piece in _IDS else NORMAL for piece in pieces]
    types += [CONTROL if number == start else UNUSED for number in added]
    types[start] = CONTROL
    texts = [_text_of(piece) for piece in pieces]
    texts += ["[DEC]" if number == start else f"[added {number}]" for number in added]
    return Vocabulary(
        model="bert",
        pre="default",
        pieces=[text.encode() for text in texts],
        types=types,
        bos=start,
        eos=_IDS["[SEP]"],
        add_bos=True,
        unk=_IDS["[UNK]"],
    )


def _text_of(piece: str) -> str:
    if piece in _IDS:
        return piece
    if piece.startswith(_CONTINUES) and piece != _CONTINUES:
        return piece.removeprefix(_CONTINUES)
    return f"▁{piece}"
