"""Measure reading: ``python -m edgeprism.models.reader.recipe.measure.elsewhere``.

A reasoner answers questions written by hand over short texts of other origin: descriptions of
museum objects, alternative texts, captions, flags, products, tables and passages of old books.
`elsewhere_texts.jsonl` holds them with source and licence, `questions_elsewhere.jsonl` the
questions. Nothing in either file is trained on. `elsewhere_scoring` holds the rules by which a
reply is right, which ask no model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeprism import Caption, ModelInfo, NoAnswerError, Reasoner, Timings, TokenCounts, UsageError
from edgeprism.errors import EdgePrismError, ManifestError
from edgeprism.files.atomic import write_atomically
from edgeprism.files.strict_json import record_from_json
from edgeprism.models import reader
from edgeprism.models.reader.recipe.measure.elsewhere_scoring import Question, Text, is_right

TEXTS = Path(reader.__file__).with_name("elsewhere_texts.jsonl")
QUESTIONS = Path(reader.__file__).with_name("questions_elsewhere.jsonl")
NOT_SAID = "not said"
LONG_TEXT = 150  # words
_ANSWER_TOKENS = 40  # enough for a reply that is too long to show itself


@dataclass(frozen=True)
class Replies:
    """The replies of one reasoner, by the question's id; a run that was stopped goes on here."""

    questions: str  # the digest of what is asked
    reasoner: str
    digest: str  # of the reasoner's file
    replies: dict[str, str]


def read_set() -> tuple[dict[str, Text], list[Question]]:
    """Return the texts by id, and the questions in their order."""
    texts = [record_from_json(Text, line, f"{TEXTS}:{n}") for n, line in _lines(TEXTS)]
    questions = [record_from_json(Question, q, f"{QUESTIONS}:{n}") for n, q in _lines(QUESTIONS)]
    return {text.id: text for text in texts}, questions


def _lines(path: Path) -> list[tuple[int, str]]:
    return list(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))


def wilson(right: int, of: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's interval of a share, by default for 95 %; (0, 1) of nothing."""
    if not of:
        return 0.0, 1.0
    share, scale = right / of, 1 + z * z / of
    middle = (share + z * z / (2 * of)) / scale
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def text_to_caption(text: Text) -> Caption:
    """Return the caption that a reasoner is given: the text, as if a captioner had written it."""
    return Caption(
        text=text.text,
        image=text.id,
        image_sha256="",
        finish_reason="stop",
        tokens=TokenCounts(0, 0, 0),
        timings=Timings(),
        model=ModelInfo("elsewhere", ""),
        device="",
        instruction="",
        version="",
    )


def ask_all(
    reasoner: Reasoner,
    texts: dict[str, Text],
    questions: Sequence[Question],
    replies: dict[str, str],
    keep: Callable[[], None],
) -> None:
    """Ask what `replies` lacks and call `keep` after each; a reasoner without an answer said ""."""
    for question in questions:
        if question.id in replies:
            continue
        try:
            answer = reasoner.answer(
                [text_to_caption(texts[question.text])],
                question.question,
                options=question.options or None,
                hint=question.hint or None,
                answer_tokens=_ANSWER_TOKENS,
            )
            replies[question.id] = answer.text
        except NoAnswerError:
            replies[question.id] = ""
        keep()


@dataclass(frozen=True)
class Row:
    """A line of the table: how many questions, how many right, and the interval of the share."""

    name: str
    right: int
    of: int
    low: float
    high: float


def replies_to_rows(
    texts: dict[str, Text], questions: Sequence[Question], replies: dict[str, str]
) -> list[Row]:
    """Score the questions that have a reply: by kind, by what comes with them, by form of text."""
    rights: dict[str, list[bool]] = {"all": []}
    for question in questions:
        if question.id not in replies:
            continue
        text = texts[question.text]
        right = is_right(question, text, replies[question.id])
        names = ["all", question.kind]
        names += ["with options"] if question.options else []
        names += ["with a hint"] if question.hint else []
        names += ["of long texts"] if len(text.text.split()) >= LONG_TEXT else []
        for name in [*names, f"of form: {text.form}"]:
            rights.setdefault(name, []).append(right)
    order = sorted(rights, key=lambda name: (name.startswith("of "), name.startswith("with ")))
    order.remove("all")
    counts = [(name, sum(rights[name]), len(rights[name])) for name in ["all", *order]]
    return [Row(name, right, of, *wilson(right, of)) for name, right, of in counts]


def rows_to_table(rows: Sequence[Row]) -> str:
    """Return the table that is printed; the interval is Wilson's, for 95 %."""
    lines = [f"{'questions':<20}{'right':>7}{'of':>5}{'share':>9}   95 %"]
    for row in rows:
        share = f"{row.right / row.of:.1%}" if row.of else "–"
        interval = f"{row.low:.0%} to {row.high:.0%}"
        lines.append(f"{row.name:<20}{row.right:>7}{row.of:>5}{share:>9}   {interval}")
    return "\n".join(lines)


def set_digest(texts: dict[str, Text], questions: Sequence[Question]) -> str:
    """Return the digest of what a reasoner is given; the rules of scoring are no part of it."""
    given = [[q.id, texts[q.text].text, q.question, q.options, q.hint] for q in questions]
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()


def read_replies(path: Path | None, reasoner: Reasoner, digest: str) -> Replies:
    """Return the replies kept in `path`, or none; those of another reasoner or set are refused."""
    fresh = Replies(digest, reasoner.model.name, reasoner.model.digest, {})
    if path is None or not path.exists():
        return fresh
    other = "Name another file with --replies, or delete this one."
    try:
        kept = record_from_json(Replies, path.read_bytes(), str(path))
    except ManifestError as error:
        raise UsageError(f"{path}: not a file of replies.", other, error.details) from error
    if (kept.questions, kept.digest) != (fresh.questions, fresh.digest):
        raise UsageError(
            f"{path}: the replies are {kept.reasoner}'s to another file or other questions.",
            other,
        )
    return kept


def measure(reasoner: Reasoner, path: Path | None, part: str) -> tuple[Replies, list[Row]]:
    """Ask a part of the set, or what is left of it, and score it.

    `part` is "2/3" for every third text from the second on. Raises UsageError for no such part.
    """
    texts, questions = read_set()
    match = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", part)
    if not match or not 1 <= int(match[1]) <= int(match[2]) <= len(texts):
        raise UsageError(
            f"--part {part}: no such part of {len(texts)} texts.", "Say 1/3, 2/3, 3/3."
        )
    own = set(list(texts)[int(match[1]) - 1 :: int(match[2])])
    kept = read_replies(path, reasoner, set_digest(texts, questions))

    def keep() -> None:
        if path is not None:
            data = json.dumps(asdict(kept), ensure_ascii=False, indent=1) + "\n"
            write_atomically(path, data.encode(), durable=False)

    asked = [question for question in questions if question.text in own]
    ask_all(reasoner, texts, asked, kept.replies, keep)
    return kept, replies_to_rows(texts, asked, kept.replies)


def main(arguments: list[str] | None = None) -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--reasoner", default="smollm2-135m", help="name or GGUF file")
    parser.add_argument("--threads", type=int, help="of the reasoner; default: this machine's")
    parser.add_argument("--replies", type=Path, help="keep the replies here, and go on from them")
    parser.add_argument("--part", default="1/1", help="2/3: every third text from the second on")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    try:
        reasoner = Reasoner.load(options.reasoner, threads=options.threads)
        try:
            kept, rows = measure(reasoner, options.replies, options.part)
        finally:
            reasoner.close()
        print(f"{kept.reasoner}: {rows[0].of} of {len(read_set()[1])} questions asked")
        print(rows_to_table(rows))
        if options.json is not None:
            figures = {**asdict(kept), "rows": [asdict(row) for row in rows]}
            data = json.dumps(figures, ensure_ascii=False, indent=2) + "\n"
            write_atomically(options.json, data.encode())
    except EdgePrismError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
