"""A published WordPiece tokenizer (BERT's, uncased): its pieces, and where it cuts a long text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.convert.read.checkpoint import MAX_TEXT_BYTES, read_json
from edgeprism.errors import CheckpointError
from edgeprism.files.regular import read_limited

VOCABULARY, CONFIG, WHOLE = "vocab.txt", "tokenizer_config.json", "tokenizer.json"
_MARKS = ("[UNK]", "[CLS]", "[SEP]")


@dataclass(frozen=True)
class PublishedWordPiece:
    """Pieces by their ids, and the end at which a long text is cut, "left" or "right"."""

    pieces: tuple[str, ...]
    truncation: str


def read_wordpiece(folder: Path) -> PublishedWordPiece:
    """Read vocab.txt, or the vocabulary of tokenizer.json, and tokenizer_config.json if it exists.

    Raises CheckpointError for a folder without a vocabulary, and for a tokenizer that does more or
    less than lower case, accents off, and signs and ideographs apart.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not a folder.", f"Pass the folder of BERT's {VOCABULARY}."
        )
    path = folder / VOCABULARY
    if not path.is_file():
        path = folder / WHOLE
    pieces = _pieces_of_json(path) if path.name == WHOLE else _pieces_of_lines(path)
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    faults = [f"it lacks {mark}" for mark in _MARKS if mark not in pieces]
    faults += _faults(config)
    if faults:
        raise CheckpointError(
            f"{folder} holds no tokenizer of BERT's, uncased: {'; '.join(faults)}.",
            "Use the files as they were published.",
        )
    return PublishedWordPiece(pieces, str(config.get("truncation_side", "right")))


def _pieces_of_lines(path: Path) -> tuple[str, ...]:
    try:
        text = read_limited(path, MAX_TEXT_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{path} cannot be read: {reason}.", "Download it again.") from error
    return tuple(text.replace("\r\n", "\n").removesuffix("\n").split("\n"))


def _pieces_of_json(path: Path) -> tuple[str, ...]:
    model = read_json(path).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    if not all(type(number) is int for number in ids) or sorted(ids) != [*range(len(ids))]:
        raise CheckpointError(
            f"{path} holds no WordPiece vocabulary.", "Use the files as they were published."
        )
    by_id = {number: piece for piece, number in (vocabulary or {}).items()}
    return tuple(by_id[number] for number in range(len(ids)))


def _faults(config: dict[str, Any]) -> list[str]:
    expected: dict[str, tuple[Any, ...]] = {
        "do_lower_case": (True,),
        "do_basic_tokenize": (True,),
        "tokenize_chinese_chars": (True,),
        "strip_accents": (None, True),
        "never_split": (None, []),
        "truncation_side": ("left", "right"),
    }
    return [
        f"{name} is {config[name]!r} ({CONFIG})"
        for name, known in expected.items()
        if name in config and config[name] not in known
    ]
