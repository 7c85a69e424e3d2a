"""Do cited sentences carry the fact? ``python -m edgeprism.models.nano.recipe.measure.evidence``.

The script asks the question set as `edgeprism ask` and `edgeprism eval` do by default: the reasoner
draws the focus and sees no options. For right answers it counts how often a cited sentence carries
the fact, and how often deleting the cited sentences changes the answer. It also deletes every
sentence that carries the fact and counts what becomes of the answer and its evidence. It uses only
the public API, the question set's reader and its scoring rules.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from edgeprism import Captioner, Prism, Reasoner
from edgeprism.evaluation.questions import EvalQuestion, QuestionFile
from edgeprism.evaluation.scoring import score
from edgeprism.models import nano
from edgeprism.models.nano.recipe.world.grammar import NUMBERS
from edgeprism.models.nano.recipe.world.scene import SIZES
from edgeprism.reason.evidence import caption_to_sentences

QUESTIONS = Path(nano.__file__).with_name("questions.tsv")
_TOKENS = 48
_DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"a": "1", "an": "1"}
_ENDINGS = (
    ("ies", "y"),
    ("sses", "ss"),
    ("shes", "sh"),
    ("ches", "ch"),
    ("xes", "x"),
    ("ss", "ss"),
    ("s", ""),
)


def _plain(text: str) -> list[str]:
    """Return the words in order: in the singular, numbers and articles as digits, without sizes."""
    words = []
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        ending = next((e for e in _ENDINGS if word.endswith(e[0])), ("", ""))
        one = word.removesuffix(ending[0]) + ending[1] if len(word) > 3 else word
        words += [] if word in SIZES else [_DIGITS.get(word, one)]
    return words


_QUESTION_WORDS = {
    *_plain("and are bar colour does from have how in is many no picture printed row seen"),
    *_plain("stand the there value what where which"),
}


def carries(sentence: str, question: EvalQuestion) -> bool:
    """Whether a sentence says the right answer of what the question is about.

    It recognises the wordings of `grammar`, with which nano was trained: "two red stars", "the star
    is red", "is below the ring", "there is no star", "reads "STOP"", "B is 7".
    """
    answer = dict(question.options).get(question.answer, question.answer)
    plain, about = f" {' '.join(_plain(sentence))} ", _plain(question.text)
    named = [
        w for i, w in enumerate(about) if w not in _QUESTION_WORDS and not (w == "1" and i < 3)
    ]
    name = " ".join(named)
    if question.category == "text":
        return f'"{answer}"' in sentence or (answer == "no text" and " 0 text " in plain)
    if question.category == "chart":
        letter = re.search(r"\b([A-Z])\b(?! is)", question.text[1:])
        start = letter[1] if letter else ""
        return re.search(rf"\b{start} ?(?:is|with) {answer}\b", sentence) is not None
    if question.category == "relation":
        return f" is {answer} the " in sentence and set(named) <= set(plain.split())
    if question.category == "presence":
        shown = rf" (?:the|[1-9]) {name} "
        return re.search(rf" 0 {name} " if answer == "no" else shown, plain) is not None
    if question.category == "count":
        return f" {answer} {name} " in plain
    return f" {answer} {name} " in plain or f" {name} is {answer} " in plain


def measure(
    prism: Prism, questions: QuestionFile, *, mode: str, shown: bool, limit: int
) -> Counter[str]:
    """Return counts for the first ``limit`` questions; ``shown``: with lettered options."""
    counts: Counter[str] = Counter()
    first = questions.questions[:limit]
    focuses = [prism.focus_for(question.text, mode)[0] for question in first]
    for question, focus in zip(first, focuses, strict=True):
        picture = questions.picture_bytes(question.pictures[0])
        caption = prism.captioners[0].caption(picture, focus=focus or None)
        options = dict(question.options) if shown else None
        sentences = caption_to_sentences(caption.text)

        def ask(texts: list[str], evidence: bool = False) -> tuple[str, list[str] | None]:
            answer = prism.reasoner.answer(
                [replace(caption, text=" ".join(texts))],  # noqa: B023
                question.text,  # noqa: B023
                options=options,  # noqa: B023
                answer_tokens=_TOKENS,
                evidence=evidence,
            )
            cited = answer.evidence
            return answer.text, None if cited is None else [sentence.text for sentence in cited]

        counts["questions"] += 1
        reply, cited = ask(sentences, evidence=True)
        bearing = [text for text in sentences if carries(text, question)]
        if score(question, reply).right:
            counts["right"] += 1
            counts["right, some sentence carries the fact"] += bool(bearing)
            counts["right, nothing cited"] += not cited
            counts["right, a cited sentence carries the fact"] += bool(
                set(cited or ()) & set(bearing)
            )
            if cited:
                counts["right and cited"] += 1
                after, _ = ask([text for text in sentences if text not in cited])
                counts["deleting the cited changes it"] += (
                    score(question, after).choice != score(question, reply).choice
                )
        if bearing:
            counts["fact in the caption"] += 1
            after, left = ask([text for text in sentences if text not in bearing], evidence=True)
            counts["fact deleted: evidence is none"] += not left
            counts["fact deleted: still right"] += score(question, after).right
    return counts


def counts_to_table(counts: Counter[str]) -> str:
    """Format each count with its share of the cases in which it was counted."""
    rows = [
        ("right", "questions"),
        ("right, some sentence carries the fact", "right"),
        ("right, nothing cited", "right"),
        ("right, a cited sentence carries the fact", "right"),
        ("deleting the cited changes it", "right and cited"),
        ("fact deleted: evidence is none", "fact in the caption"),
        ("fact deleted: still right", "fact in the caption"),
    ]
    lines = []
    for name, base in rows:
        total = counts[base]
        share = f"{counts[name] / total:7.1%}" if total else "      –"
        lines.append(f"{name:<42}{counts[name]:>5} of {total:<5}{share}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=QUESTIONS, help="question set (TSV)")
    parser.add_argument("--bundle", default="nano", help="name or folder of the captioner")
    parser.add_argument("--reasoner", default="smollm2-135m", help="name or GGUF file")
    parser.add_argument("--instruction-mode", choices=("question", "generic"), default="question")
    parser.add_argument("--letters", action="store_true", help="show lettered options")
    parser.add_argument("--visual-tokens", type=int, help="at most so many of a picture")
    parser.add_argument("--limit", type=int, default=10**9, help="the first N questions only")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    captioner = Captioner.load(options.bundle, visual_tokens=options.visual_tokens)
    prism = Prism(captioner, Reasoner.load(options.reasoner))
    counts = measure(
        prism, QuestionFile(options.data), mode=options.instruction_mode, shown=options.letters,
        limit=options.limit,
    )  # fmt: skip
    prism.close()
    print(f"{options.reasoner} on {options.bundle}, {time.perf_counter() - began:.0f} s")
    print(counts_to_table(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
