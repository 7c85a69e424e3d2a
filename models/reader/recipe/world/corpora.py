"""Texts and questions that other people wrote, from two collections with open licences.

- FairytaleQA (https://github.com/uci-soe/FairytaleQAData, Apache-2.0): sections of 278 tales from
  Project Gutenberg, with questions by experts in education (arXiv 2203.13947).
- QAMR (https://github.com/uwnlp/qamr, MIT): sentences of Wikipedia and Wikinews, with questions
  that several people answered alike (NAACL 2018, N18-2089).

The repository has neither: clone both into one folder. What shares eight words in a row with a
text that measures is left out, and so is each sentence or question with a name or a form of nano's.
"""

from __future__ import annotations

import csv
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edgeprism.models.reader.recipe.measure.elsewhere import read_set
from edgeprism.models.reader.recipe.world.nanos import (
    find_names,
    is_nanos_question,
    is_nanos_sentence,
)
from edgeprism.models.reader.recipe.world.text import UNKNOWN, Ask, Passage, mark, unmarked

TALES, SENTENCES = "FairytaleQAData", "qamr"  # the folders of the two clones
ANSWERED_TWICE = ("dev.tsv", "test.tsv")  # several people answered each question of these alone
MOST_ANSWER = 8  # words
MOST_TEXT = 190  # words
_RUN = 8  # words in a row that no text has in common with those that measure
_WORD = re.compile(r"[a-z0-9']+")
_SENTENCE_START = re.compile(r"(?<=[.!?]\s)(?=\S)|(?<=[.!?][\"']\s)(?=\S)")
_STRANGE_SHARE = 0.6  # of passages with a question that belongs to another
_NEAR_SHARE = 0.5  # of these questions, how many are about the same tale


@dataclass(frozen=True)
class Corpora:
    """Sections of tales by tale, in order, and sentences; each with its questions."""

    tales: tuple[tuple[Passage, ...], ...]
    sentences: tuple[Passage, ...]

    def sample(self, rng: random.Random) -> Passage:
        """Return a section of a tale, or up to three sentences, with their questions.

        Often one question more is of another text, and its answer unknown.
        """
        passage, strange = (self._tale if rng.random() < 0.55 else self._sentences)(rng)
        if rng.random() < _STRANGE_SHARE:
            ask = rng.choice(strange.asks)
            unsaid = replace(ask, answer=UNKNOWN, facts=(), kind="not said")
            passage = Passage(passage.text, [*passage.asks, unsaid], passage.facts)
        return passage

    def _tale(self, rng: random.Random) -> tuple[Passage, Passage]:
        sections = rng.choice(self.tales)
        at = rng.randrange(len(sections))
        far = [s for i, s in enumerate(sections) if abs(i - at) > 1]
        if not far or rng.random() > _NEAR_SHARE:
            far = [s for tale in rng.sample(self.tales, 2) if tale is not sections for s in tale]
        return sections[at], rng.choice(far)

    def _sentences(self, rng: random.Random) -> tuple[Passage, Passage]:
        *chosen, strange = rng.sample(self.sentences, rng.choice((1, 2, 2, 3, 3)) + 1)
        joined = Passage()
        for number, part in enumerate(chosen):
            joined.text += (" " if joined.text else "") + mark(number, unmarked(part.text))
            joined.asks += [replace(ask, facts=(number,)) for ask in part.asks]
        joined.facts = len(chosen)
        return joined, strange


def read_corpora(folder: Path) -> Corpora:
    """Read both collections. Raises FileNotFoundError if the folder lacks one."""
    measured = {run for text in read_set()[0].values() for run in _runs(text.text)}
    tales = tuple(tuple(tale) for tale in _read_tales(folder / TALES, measured) if tale)
    sentences = tuple(_read_sentences(folder / SENTENCES, measured))
    if len(tales) < 3 or len(sentences) < 4:
        raise FileNotFoundError(f"{folder}: lacks the clones {TALES} and {SENTENCES}.")
    return Corpora(tales, sentences)


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return zip(*(words[i:] for i in range(_RUN)), strict=False)


def _read_tales(folder: Path, measured: set[tuple[str, ...]]) -> Iterator[list[Passage]]:
    """Yield each tale's sections that have questions with short answers."""
    root = folder / "data-by-train-split"
    for path in sorted((root / "questions").glob("*/*-questions.csv")):
        story = f"{path.stem.removesuffix('-questions')}-story.csv"
        asks: dict[str, list[Ask]] = {}
        for row in _rows(path):
            ask = _to_ask(row["question"], row["answer1"])
            if row["ex-or-im1"] == "explicit" and ask is not None:
                asks.setdefault(row["cor_section"].strip(), []).append(ask)
        sections: list[Passage] = []
        for row in _rows(root / "section-stories" / path.parent.name / story):
            text = " ".join(row["text"].split())
            found = asks.get(row["section"].strip(), [])
            if found and measured.isdisjoint(_runs(text)):
                sections += _to_passages(text, found)
        yield sections


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _to_ask(question: str, answer: str) -> Ask | None:
    """Return a question with a short answer, neither of which is like nano's; else None."""
    question, answer = " ".join(question.split()), " ".join(answer.split()).rstrip(". ")
    if not question or not 0 < len(answer.split()) <= MOST_ANSWER:
        return None
    if find_names(f"{question} {answer}") or is_nanos_question(question):
        return None
    return Ask(question[0].upper() + question[1:], answer, kind="story")


def _to_passages(text: str, asks: list[Ask]) -> Iterator[Passage]:
    """Yield the parts of a section that lie between nano's names, with what is asked of them.

    A question's fact is the only sentence with its answer's words. Without one, the question is
    asked of nothing less than the whole section.
    """
    sentences = _SENTENCE_START.split(text)
    words = [" ".join(_WORD.findall(sentence.lower())) for sentence in sentences]
    traced = []
    for ask in asks:
        answer = " ".join(_WORD.findall(ask.answer.lower()))
        where = [i for i, known in enumerate(words) if f" {answer} " in f" {known} "]
        traced.append(replace(ask, facts=(where[0],)) if len(where) == 1 else ask)
    for part in _parts(sentences):
        whole = len(part) == len(sentences)
        told = [ask for ask in traced if (whole if not ask.facts else ask.facts[0] in part)]
        told = [replace(ask, facts=tuple(fact - part[0] for fact in ask.facts)) for ask in told]
        marked = "".join(mark(i - part[0], sentences[i]) for i in part).strip()
        if told and len(marked.split()) <= MOST_TEXT:
            yield Passage(marked, told, len(part))


def _parts(sentences: list[str]) -> list[list[int]]:
    """Return the runs of sentences that hold nothing of nano's, as indices."""
    parts: list[list[int]] = [[]]
    for number, sentence in enumerate(sentences):
        if find_names(sentence) or is_nanos_sentence(sentence.strip()):
            parts.append([])
        else:
            parts[-1].append(number)
    return [part for part in parts if part]


def _read_sentences(folder: Path, measured: set[tuple[str, ...]]) -> Iterator[Passage]:
    """Yield sentences with the questions that two people or more answered with the same words."""
    for path in sorted((folder / "data" / "readable").glob("*.tsv")):
        if path.name not in ANSWERED_TWICE:
            continue
        for block in path.read_text(encoding="utf-8").split("\n\n"):
            _, text, *lines = [*block.strip().split("\n"), ""]
            asks = [ask for line in lines if (ask := _line_to_ask(line)) is not None]
            strange = find_names(text) or is_nanos_sentence(text)
            if asks and not strange and measured.isdisjoint(_runs(text)):
                yield Passage(text, asks)


def _line_to_ask(line: str) -> Ask | None:
    """Read a question in the first 50 columns, and the answers behind it."""
    question, answers = line[:50].strip(), [part.strip() for part in line[50:].split("\t")]
    if not question.endswith("?") or not answers:
        return None
    answer, people = Counter(answers).most_common(1)[0]
    return _to_ask(question, answer) if people > 1 else None
