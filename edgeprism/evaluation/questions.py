"""Rows of a VLMEvalKit TSV → questions and their pictures.

Columns (VLMEvalKit's documentation, "Development", and its vlmeval/dataset/image_base.py):
`index`, `question`, `answer`; `A`, `B`, … options; `hint`, `category`, `l2-category`, `split`;
`image`: base64, or a list of them, or in at most 64 characters the index of the row that holds
the picture; `image_path` if `image` is empty. MathVista adds `choices`, `answer_option`,
`answer_type`, `precision` and `task`. This module checks everything before a model is loaded.
"""

from __future__ import annotations

import ast
import base64
import binascii
import json
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from edgeprism.errors import ImageError, UsageError
from edgeprism.evaluation.tsv import BadRow, Row, TsvFile

_DATA_URI = re.compile(r"\s*data:[^,;]*(?:;(?!base64)[^,;]*)*(?P<base64>;base64)?,", re.I)
_LETTER = re.compile(r"[(\[]?(?P<letter>[A-Za-z])[)\].:]*(?:\s+(?P<text>.+))?", re.S)
MAX_REFERENCE = 64  # characters; a longer image cell holds a picture, not a reference
REQUIRED = ("index", "question", "answer")
LETTERS = string.ascii_uppercase
ANSWER_TYPES = ("", "text", "integer", "float", "list")
_PICTURE_MARK = re.compile(r"<image[ _]?(\d+)>", re.IGNORECASE)
_SPACES = str.maketrans("", "", " \t\r\n")


@dataclass(frozen=True)
class PictureRef:
    """The place of a picture: the `number`th in the cell of the row at `offset`, or a file."""

    offset: int = 0
    number: int = 0
    path: str = ""


@dataclass(frozen=True)
class EvalQuestion:
    """One question; `answer` is an option's letter, or the expected text of an open question."""

    index: str
    text: str
    answer: str
    pictures: tuple[PictureRef, ...]
    options: tuple[tuple[str, str], ...] = ()  # (letter, text)
    hint: str = ""
    category: str = ""
    l2_category: str = ""
    split: str = ""
    answer_type: str = ""
    precision: int | None = None  # decimal places to which a float answer is compared


@dataclass(frozen=True)
class Skipped:
    """A row that holds no question to score, and why."""

    line: int
    index: str
    reason: str

    def __str__(self) -> str:
        where = f"line {self.line}" + (f" (index {self.index})" if self.index else "")
        return f"{where}: {self.reason}"


class _Fault(Exception):
    """The current row has a fault, which the text names."""


class QuestionFile:
    """The questions of a TSV file; it reads pictures only when they are needed."""

    def __init__(self, path: Path, *, pictures: Path | None = None, **limits: int) -> None:
        """Read the questions' texts. `pictures` is the folder that holds every `image_path`.

        Raises UsageError for a file that is not such a table.
        """
        self.tsv = TsvFile(path, **limits)
        self.folder = (pictures or path.parent).resolve()
        columns = self.tsv.columns
        missing = [name for name in REQUIRED if name not in columns]
        if missing or not {"image", "image_path"} & set(columns):
            required = ", ".join([*REQUIRED, "image or image_path"])
            raise UsageError(
                f"{path}: its columns are {_shown(columns)}; it needs {required}.",
                "Give a VLMEvalKit TSV file.",
            )
        self._has_options = any(len(name) == 1 and name in LETTERS for name in columns)
        self.questions, self.skipped = self._read()

    def picture_bytes(self, ref: PictureRef) -> bytes | Path:
        """Return the picture's file content, or its path. Raises ImageError."""
        if ref.path:
            return Path(ref.path)
        row = self.tsv.row_at(ref.offset)
        if isinstance(row, BadRow):
            raise ImageError(f"{self.tsv.path}: changed while it was read.", "Start again.")
        return _decode(_cell_to_list(row.cells["image"])[ref.number])

    # ---- a single pass over the file

    def _read(self) -> tuple[list[EvalQuestion], list[Skipped]]:
        skipped: list[Skipped] = []
        cells: dict[str, tuple[int, int]] = {}  # index → (row's offset, pictures in its cell)
        # index → (question, line, indices of rows whose pictures it refers to)
        parsed: dict[str, tuple[EvalQuestion, int, list[str]]] = {}
        for row in self.tsv.rows():
            if isinstance(row, BadRow):
                skipped.append(Skipped(row.line, "", row.reason))
                continue
            index = row.cells["index"].strip()
            try:
                if not index:
                    raise _Fault("no index")
                if index in parsed or index in cells:
                    raise _Fault("an earlier row has the same index")
                pictures, references = self._pictures_of(row)
                if pictures and not pictures[0].path:
                    # Other rows may refer to these pictures even if this row's question is faulty.
                    cells[index] = (row.offset, len(pictures))
                question = replace(self._question(row, index), pictures=tuple(pictures))
                parsed[index] = (question, row.line, references)
            except _Fault as fault:
                skipped.append(Skipped(row.line, index, str(fault)))
        questions = []
        for question, line, references in parsed.values():
            try:
                questions.append(_resolve(question, references, cells))
            except _Fault as fault:
                skipped.append(Skipped(line, question.index, str(fault)))
        skipped.sort(key=lambda skip: skip.line)
        return questions, skipped

    def _pictures_of(self, row: Row) -> tuple[list[PictureRef], list[str]]:
        """Return the row's own checked pictures, or the indices of rows that it refers to."""
        cell = row.cells.get("image", "").strip()
        if cell:
            parts = _cell_to_list(cell)
            references = [
                part.strip()
                for part in parts
                if len(part) <= MAX_REFERENCE and not _DATA_URI.match(part)
            ]
            if references and len(references) < len(parts):
                raise _Fault("image mixes pictures and references")
            if references:
                return [], references
            for part in parts:
                _decode(part, fault=_Fault)
            return [PictureRef(row.offset, number) for number in range(len(parts))], []
        paths = row.cells.get("image_path", "").strip()
        if not paths:
            raise _Fault("no picture")
        return [PictureRef(path=str(self._inside(path))) for path in _cell_to_list(paths)], []

    def _inside(self, name: str) -> Path:
        try:
            path = (self.folder / name.strip()).resolve()
        except (OSError, ValueError) as error:
            raise _Fault(f"image_path cannot be a path: {error}") from error
        if not path.is_relative_to(self.folder):
            raise _Fault(f"image_path {name[:80]!r} leads out of {self.folder}")
        if not path.is_file():
            raise _Fault(f"image_path {name[:80]!r}: no such file")
        return path

    def _question(self, row: Row, index: str) -> EvalQuestion:
        def cell(*names: str) -> str:
            return next((row.cells[n].strip() for n in names if row.cells.get(n, "").strip()), "")

        text = _PICTURE_MARK.sub(r"picture \1", cell("question"))
        if not text:
            raise _Fault("no question")
        answer = cell("answer")
        if not answer:
            raise _Fault("no answer to score against")
        options = self._options(row)
        kind = cell("answer_type").lower()
        if kind not in ANSWER_TYPES:
            raise _Fault(f"answer_type {kind[:40]!r} is none of {', '.join(ANSWER_TYPES[1:])}")
        return EvalQuestion(
            index=index,
            text=text,
            answer=_answer(cell("answer_option") or answer, answer, options, self._has_options),
            pictures=(),
            options=options,
            hint=cell("hint"),
            category=cell("category"),
            l2_category=cell("l2-category", "l2_category", "task"),
            split=cell("split"),
            answer_type="" if options else kind,
            precision=_precision(cell("precision")),
        )

    def _options(self, row: Row) -> tuple[tuple[str, str], ...]:
        options = tuple(
            (letter, row.cells[letter].strip())
            for letter in LETTERS
            if row.cells.get(letter, "").strip()
        )
        choices = row.cells.get("choices", "").strip()
        if not options and choices and choices != "[]":
            options = tuple(zip(LETTERS, _literal_list(choices, "choices"), strict=False))
        if len(options) == 1:
            raise _Fault(f"missing options: there is only {options[0][0]}")
        return options


def _answer(answer: str, text: str, options: tuple[tuple[str, str], ...], has_options: bool) -> str:
    """Return the right option's letter, or the text of an open question's answer."""
    if not options:
        if has_options and len(answer) == 1 and answer in LETTERS:
            raise _Fault(f"missing options: the answer is {answer}, but there are none")
        return text
    letters = dict(options)
    if answer in letters:
        return answer
    same = [letter for letter, option in options if option == text]
    if len(same) == 1:  # MathVista's answers are the option's text
        return same[0]
    # "a", "A.", "(A)", "A)" and "A. red", where that is the text of option A
    if (match := _LETTER.fullmatch(answer)) and match["letter"].upper() in letters:
        letter = match["letter"].upper()
        if match["text"] in (None, letters[letter]):
            return letter
    raise _Fault(f"wrong answer: {answer[:40]!r} is none of the options {', '.join(letters)}")


def _precision(cell: str) -> int | None:
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError as error:
        raise _Fault(f"precision {cell[:40]!r} is not a number") from error
    if not 0 <= value <= 20:
        raise _Fault(f"precision {cell[:40]!r} is not a number of decimal places")
    return int(value)


def _resolve(
    question: EvalQuestion, references: list[str], cells: dict[str, tuple[int, int]]
) -> EvalQuestion:
    refs = list(question.pictures)
    for index in references:
        if index not in cells:
            raise _Fault(f"image refers to row {index[:64]!r}, which holds no picture")
        offset, count = cells[index]
        refs += [PictureRef(offset, number) for number in range(count)]
    return replace(question, pictures=tuple(refs))


def _cell_to_list(cell: str) -> list[str]:
    cell = cell.strip()
    if cell.startswith("[") and cell.endswith("]"):
        return _literal_list(cell, "image")
    return [cell]


def _literal_list(cell: str, column: str) -> list[str]:
    """Parse a list in Python's or JSON's form, without evaluating code."""
    value: Any
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(cell)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise _Fault(f"{column} is not a readable list") from error
    if not isinstance(value, list) or not value:
        raise _Fault(f"{column} is an empty list")
    return [str(entry) for entry in value]


def _shown(columns: Sequence[str]) -> str:
    """Return the first columns' names for a message; a file of another kind has any first line."""
    names = [name if len(name) <= 24 else f"{name[:24]}…" for name in columns[:8]]
    return ", ".join(names) + (", …" if len(columns) > 8 else "")


def _decode(text: str, fault: type[Exception] = ImageError) -> bytes:
    """Decode base64, as it is or in a data URI (RFC 2397)."""
    if uri := _DATA_URI.match(text):
        if not uri["base64"]:
            raise fault("the data URI in image is not in base64")
        text = unquote(text[uri.end() :])
    try:
        data = base64.b64decode(text.translate(_SPACES), validate=True)
    except (binascii.Error, ValueError) as error:
        raise fault(f"bad base64 in image: {error}") from error
    if not data:
        raise fault("bad base64 in image: it is empty")
    return data


# ---- choosing questions


def choose_questions(
    questions: Sequence[EvalQuestion],
    *,
    splits: Sequence[str] = (),
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> list[EvalQuestion]:
    """Return the questions of `splits` (or all), a `sample` of them, and its first `limit`.

    They keep the file's order. A sample depends on `seed` and the questions' indices alone. Raises
    UsageError if the data lacks a split or no question is left.
    """
    import random

    known = {question.split for question in questions}
    for name in splits:
        if name not in known:
            names = ", ".join(sorted(known - {""})) or "none"
            raise UsageError(f"Split {name!r} is not in the data.", f"It has these: {names}.")
    chosen = [q for q in questions if not splits or q.split in splits]
    if sample is not None and sample < len(chosen):
        picked = set(random.Random(seed).sample(sorted(q.index for q in chosen), sample))
        chosen = [q for q in chosen if q.index in picked]
    chosen = chosen[:limit]
    if not chosen:
        raise UsageError("No question is left to ask.", "See what was skipped, and `splits`.")
    return chosen
