"""The reader's tables: what is asked of them has the answer that the written table gives."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from edgeprism.models.reader.recipe.world.nanos import find_names
from edgeprism.models.reader.recipe.world.subjects import SUBJECTS
from edgeprism.models.reader.recipe.world.tables import sample_table
from edgeprism.models.reader.recipe.world.text import UNKNOWN, Ask, Passage, marks, unmarked
from edgeprism.models.reader.recipe.world.words import NUMBERS
from edgeprism.reason.evidence import caption_to_sentences


def passages(count: int = 400) -> list[Passage]:
    return [sample_table(random.Random(f"tables/{seed}")) for seed in range(count)]


def written_grid(passage: Passage) -> list[list[str]]:
    """Read the rows of a table with bars or tabs, without knowing how it was written."""
    rows = []
    for line in unmarked(passage.text).split("\n"):
        cells = [c.strip() for c in line.strip("| ").split("\t" if "\t" in line else " | ")]
        if len(cells) > 2 and not all(c == "---" for c in cells):
            rows.append(cells)
    nouns = {subject.noun for subject in SUBJECTS}
    first_is_heading = bool(rows) and rows[0][0].lower() in nouns
    same_length = len({len(row) for row in rows}) == 1
    return rows if first_is_heading and same_length else []


def value(cell: str) -> float:
    return float(cell.split()[0].replace(",", ""))


def headed(ask: Ask, rows: list[list[str]]) -> int | None:
    """Return the column whose heading a question has, if it has one heading alone."""
    asked = f" {ask.question.lower()}"
    names = {row[0] for row in rows}
    found = [
        i
        for i, h in enumerate(rows[0])
        if i and f" {h.lower()}" in asked and h.lower() not in names
    ]
    return found[0] if len(found) == 1 else None


def test_every_kind_of_question_is_asked_and_each_form_occurs() -> None:
    kinds = Counter(ask.kind for passage in passages() for ask in passage.asks)
    wanted = "cell row extreme|extreme value|compare|sum|count|order|heading|not said"
    assert set(kinds) == {k for part in wanted.split("|") for k in
                          (part.split() if part == "cell row extreme" else [part])}  # fmt: skip
    texts = [unmarked(p.text) for p in passages()]
    for form in ("| --- |", "\t", ", ", "; ", "The columns are", ": "):
        assert sum(form in text for text in texts) > 15, form


def test_answers_are_those_of_the_written_table() -> None:
    checked = Counter[str]()
    for passage in passages():
        rows = written_grid(passage)
        for ask in passage.asks if rows else ():
            column = headed(ask, rows)
            names = [row[0] for row in rows[1:]]
            if ask.kind == "order" and "last" in ask.question:
                assert ask.answer == names[-1]
            elif ask.kind == "count" and column is None and ask.answer.isdigit():
                assert int(ask.answer) == len(names)
            elif ask.kind == "extreme value" and column is not None:
                values = [value(row[column]) for row in rows[1:]]
                most = any(w in ask.question for w in ("highest", "greatest", "most", "longest",
                                                       "latest"))  # fmt: skip
                assert value(ask.answer) == (max if most else min)(values)
            elif ask.kind == "cell" and column is not None:
                named = [row for row in rows[1:] if row[0] in ask.question]
                if len(named) != 1:
                    continue
                assert ask.answer == named[0][column]
            elif ask.kind == "sum" and column is not None:
                named = [row for row in rows[1:] if row[0] in ask.question.split(" under ")[0]]
                if len(named) != 2:
                    continue
                assert value(ask.answer) == sum(value(row[column]) for row in named)
            else:
                continue
            checked[ask.kind] += 1
    assert min(checked[k] for k in ("order", "count", "extreme value", "cell", "sum")) > 10, checked


def test_an_answer_stands_where_its_fact_is_marked_and_wrong_ones_differ() -> None:
    for passage in passages():
        sentences = caption_to_sentences(passage.text)
        for ask in passage.asks:
            assert ask.answer not in ask.wrong
            if ask.kind in ("cell", "row", "extreme value"):
                stated = [s for s in sentences if marks(s) & set(ask.facts)]
                assert len(stated) == 1, (ask, sentences)
                if ask.kind != "row":
                    assert ask.answer in unmarked(stated[0])


def test_what_is_not_said_is_not_in_the_table() -> None:
    for passage in passages():
        text = unmarked(passage.text)
        for ask in passage.asks:
            if ask.answer == UNKNOWN:
                absent_name = any(
                    name in ask.question and name not in text
                    for subject in SUBJECTS for name in subject.names
                )  # fmt: skip
                assert absent_name or ask.wrong


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.noun)
def test_numbers_differ_and_rows_have_one_name_each(subject: object) -> None:
    rng = random.Random(1)
    for column in next(s for s in SUBJECTS if s is subject).columns:
        if column.numbers is not None:
            cells = column.cells(rng, 6)
            assert len(set(cells)) == 6
            assert all(cell.endswith(column.unit) for cell in cells)
    assert NUMBERS[6] == "six"


def test_no_subject_has_a_name_of_nanos() -> None:
    assert not find_names(repr(SUBJECTS))
