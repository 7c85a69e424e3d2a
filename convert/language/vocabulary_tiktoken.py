"""A tiktoken vocabulary (`*.tiktoken`: a piece and its rank a line) → that of a GGUF file.

tiktoken joins the two neighbours whose joint piece has the lowest rank, again and again. llama.cpp
joins by a list of merges, which follows from the ranks: a piece is the merge of the two parts that
remain of it when only pieces of lower rank are joined. The file lacks the special tokens, whose ids
follow those of the pieces. Source: Qwen's public repository (`tokenization_qwen.py`).
"""

from __future__ import annotations

import base64
import binascii
import itertools
from pathlib import Path

from edgeprism.convert.language.vocabulary import (
    CONTROL,
    NORMAL,
    UNUSED,
    TokenRules,
    Vocabulary,
    eos_id,
)
from edgeprism.convert.read.checkpoint import MAX_TEXT_BYTES
from edgeprism.errors import CheckpointError
from edgeprism.files.regular import read_limited

FILE = "qwen.tiktoken"
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)),
    "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>",
)  # fmt: skip


def vocabulary(folder: Path, n_vocab: int, rules: TokenRules) -> Vocabulary:
    """Read qwen.tiktoken; ids that neither a piece nor a special token has are UNUSED.

    Raises CheckpointError for a damaged file, and for more ids than the model has rows.
    """
    path = folder / FILE
    ranks = _read_ranks(path)
    if len(ranks) + len(SPECIAL) > n_vocab:
        raise CheckpointError(
            f"{path} has {len(ranks)} pieces, with {len(SPECIAL)} special tokens more than the "
            f"model's vocabulary of {n_vocab}.",
            "Use the tokenizer that was published with the language model.",
        )
    pieces = [_as_characters(piece) for piece in ranks]
    special = [name.encode() for name in SPECIAL]
    n_spare = n_vocab - len(pieces) - len(special)
    spare = [f"[PAD{n_vocab - n_spare + i}]".encode() for i in range(n_spare)]
    types = [NORMAL] * len(pieces) + [CONTROL] * len(special) + [UNUSED] * n_spare
    return Vocabulary(
        model="gpt2",
        pre="qwen2",  # the same pattern splits text in both generations
        pieces=[*pieces, *special, *spare],
        types=types,
        bos=None,
        eos=eos_id([*pieces, *special], rules, len(pieces)),
        add_bos=False,
        merges=_merges(path, ranks),
        chat_template=rules.chat_template,
    )


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Return {piece: rank} in order of rank; ranks count from 0 and cover every byte."""
    ranks: dict[bytes, int] = {}
    try:
        for line in read_limited(path, MAX_TEXT_BYTES).splitlines():
            if line.strip():
                piece, rank = line.split()
                ranks[base64.b64decode(piece, validate=True)] = int(rank)
    except (OSError, ValueError, binascii.Error) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", "Download it again.") from error
    ordered = dict(sorted(ranks.items(), key=lambda item: item[1]))
    if list(ordered.values()) != list(range(len(ranks))):
        raise CheckpointError(f"{path}: ranks do not count from 0.", "Download it again.")
    absent = [byte for byte in range(256) if bytes([byte]) not in ordered]
    if absent:
        raise CheckpointError(
            f"{path} has no piece for {len(absent)} of the 256 bytes.", "Download it again."
        )
    return ordered


def _merges(path: Path, ranks: dict[bytes, int]) -> list[str]:
    merges = []
    for piece, rank in ranks.items():
        if len(piece) == 1:
            continue
        parts = _joined(piece, ranks, rank)
        if len(parts) != 2:
            raise CheckpointError(
                f"{path}: piece {piece!r} (rank {rank}) is no merge of two pieces of lower rank.",
                "Download it again.",
            )
        merges.append(" ".join(_as_characters(part).decode() for part in parts))
    return merges


def _joined(piece: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """Return the parts of `piece` after all merges of a rank below `below`."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        pairs = [ranks.get(a + b, below) for a, b in itertools.pairwise(parts)]
        lowest = min(pairs)
        if lowest >= below:
            break
        i = pairs.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _byte_characters() -> dict[int, str]:
    """Return GPT-2's character for each byte: itself if it prints, else one from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


_CHARACTERS = _byte_characters()


def _as_characters(piece: bytes) -> bytes:
    """Return a piece as byte-level BPE writes it in vocabularies, in UTF-8."""
    return "".join(_CHARACTERS[byte] for byte in piece).encode()
