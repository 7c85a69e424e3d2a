"""Tables of several columns, in the forms in which captioners and text recognition write them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeprism.models.reader.recipe.world.subjects import SUBJECTS, Column, Subject
from edgeprism.models.reader.recipe.world.text import (
    UNKNOWN,
    Ask,
    Passage,
    capital,
    join,
    mark,
    number,
    pick,
    plural,
)
from edgeprism.models.reader.recipe.world.words import DAYS, MONTHS, NUMBERS

LOOKUPS = (
    "What is listed under {h} for {r}?", "What {h} does {r} have?", "Which {h} belongs to {r}?",
    "What does the column {h} say for {r}?", "What is entered for {r} under {h}?",
    "{r}: which {h}?", "Read off the {h} for {r}.", "What {h} is given for {r}?",
)  # fmt: skip
REVERSE = (
    "Which {n} has {v} under {h}?", "For which {n} is the {h} {v}?", "Whose {h} is {v}?",
    "In whose row does one find {v}?", "{v} is the {h} of which {n}?",
    "Which {n} is listed with {v}?",
)  # fmt: skip
EXTREMES = (
    "Which row shows the {x} {h}?", "Name the {n} with the {x} {h}.",
)  # fmt: skip
EXTREME_VALUES = ("What is the {x} {h} in the table?", "How much is the {x} {h}?")
ORDER = ("Which {n} is listed {o}?", "What {n} stands in the {o} row?", "Which {n} comes {o}?")
HEADINGS = ("What is the heading of the {o} column?", "What does the {o} column give?")
ROW_COUNTS = (
    "How many {n} does the table list?", "How many {n} are compared?", "How many rows of {n}?",
    "What number of {n} are in the table?",
)  # fmt: skip
MATCHES = ("How many {n} have {v} as their {h}?", "For how many {n} is the {h} {v}?")
LARGER = (
    "Is the {h} of {a} above that of {b}?", "Does {a} have a larger {h} than {b}?",
    "Under {h}, does {a} have more than {b}?",
)  # fmt: skip
WHICH_LARGER = ("Which has the larger {h}, {a} or {b}?", "{a} or {b}: whose {h} is greater?")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_LEADS = (
    "The image shows a table titled {t}.", "{t}", "{t}:", "A table: {t}.", "Table. {t}.",
    "A screenshot of a table, {t}.", "", "", "The printed table has the heading {t}.",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows' names, columns, cells by row, and the number of the fact that a cell states."""

    subject: Subject
    names: list[str]
    columns: list[Column]
    cells: list[list[str]]
    facts: list[list[int]]

    @property
    def rows(self) -> list[list[str]]:
        """Each row's name and its cells, each cell with its mark."""
        return [
            [name, *map(mark, facts, cells)]
            for name, facts, cells in zip(self.names, self.facts, self.cells, strict=True)
        ]

    @property
    def headings(self) -> list[str]:
        """The headings, the rows' noun first."""
        return [self.subject.noun, *(column.heading for column in self.columns)]


def _sample_table(rng: random.Random, passage: Passage) -> Table:
    subject = rng.choice(SUBJECTS)
    count = rng.randint(2, 6)
    names = rng.sample(subject.names, count)
    if subject.names in (MONTHS, DAYS):
        names.sort(key=subject.names.index)
    columns = rng.sample(subject.columns, rng.choice((2, 2, 3, 3, 4)))
    drawn = [column.cells(rng, count) for column in columns]
    cells = [list(row) for row in zip(*drawn, strict=True)]
    facts = [[passage.fact() for _ in columns] for _ in names]
    return Table(subject, names, columns, cells, facts)


def _as_grid(rng: random.Random, table: Table) -> str:
    """Return the table with a line for its headings and one for each row."""
    headings = [capital(heading) for heading in table.headings]
    style = rng.randrange(5)
    if style == 0:
        rows = [headings, ["---"] * len(headings), *table.rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    between = (" | ", "\t", ", ", "; ")[style - 1]
    return "\n".join(between.join(row) for row in (headings, *table.rows))


def _as_lines(rng: random.Random, table: Table) -> str:
    """Return one line for each row, with the headings in it."""
    between, within = rng.choice((", ", "; ", " | ")), rng.choice((": ", " ", " = "))
    lines = []
    for name, *cells in table.rows:
        pairs = (
            f"{column.heading}{within}{cell}"
            for column, cell in zip(table.columns, cells, strict=True)
        )
        lines.append(f"{name}: {between.join(pairs)}")
    return "\n".join(lines)


def _as_prose(rng: random.Random, table: Table) -> str:
    """Return what a captioner says that the rows read."""
    pattern = rng.choice((
        "The {o} row reads {x}.", "In the {o} row: {x}.", "Row {i}: {x}.", "The {o} entry is {x}.",
    ))  # fmt: skip
    told = [
        pattern.format(o=_ORDINALS[i], i=i + 1, x=", ".join(row))
        for i, row in enumerate(table.rows)
    ]
    return f"The columns are {join(table.headings)}. {' '.join(told)}"


def _as_columns(rng: random.Random, table: Table) -> str:
    """Return one line for each column: its heading, then the cells of all rows."""
    between = rng.choice((" | ", ", ", "\t"))
    columns = zip(table.headings, *table.rows, strict=True)
    return "\n".join(f"{capital(heading)}: {between.join(cells)}" for heading, *cells in columns)


_FORMS: tuple[Callable[[random.Random, Table], str], ...] = (
    _as_grid, _as_grid, _as_grid, _as_lines, _as_prose, _as_columns,
)  # fmt: skip


def sample_table(rng: random.Random) -> Passage:
    """Return a table of up to six rows and four columns besides their names, with questions."""
    passage = Passage()
    table = _sample_table(rng, passage)
    lead = pick(rng, _LEADS, t=rng.choice(table.subject.titles).format(d=rng.choice(DAYS)))
    body = rng.choice(_FORMS)(rng, table)
    passage.text = f"{lead}\n{body}" if lead else body
    for column in range(len(table.columns)):
        passage.asks += _ask_cells(rng, table, column)
        if table.columns[column].numbers is not None:
            passage.asks += _ask_numbers(rng, table, column)
        else:
            passage.asks += _ask_matches(rng, table, column)
    passage.asks += _ask_shape(rng, table)
    passage.asks += _ask_absent(rng, table)
    return passage


def _word(rng: random.Random, natural: str, plain: Sequence[str], **names: str) -> str:
    """Ask as people do, where there are such wordings; a quarter speak of the table instead."""
    wordings = natural.split("|") if natural and rng.random() < 0.75 else plain
    return capital(pick(rng, wordings, **names))


def _ask_cells(rng: random.Random, table: Table, column: int) -> list[Ask]:
    heading, noun = table.columns[column].heading, table.subject.noun
    values = [row[column] for row in table.cells]
    everywhere = [cell for cells in table.cells for cell in cells]
    asks = []
    for row, name in enumerate(table.names):
        wrong = [v for v in dict.fromkeys((*values, *table.cells[row])) if v != values[row]]
        rng.shuffle(wrong)
        fact = (table.facts[row][column],)
        question = _word(rng, table.columns[column].ask, LOOKUPS, h=heading, r=name)
        asks.append(Ask(question, values[row], "", fact, tuple(wrong[:3]), "cell"))
        if everywhere.count(values[row]) == 1:
            wordings = table.columns[column].back
            question = _word(rng, wordings, REVERSE, n=noun, h=heading, v=values[row])
            others = tuple(n for n in table.names if n != name)
            asks.append(Ask(question, name, "", fact, others[:3], "row"))
    return asks


def _ask_numbers(rng: random.Random, table: Table, index: int) -> list[Ask]:
    column, noun = table.columns[index], table.subject.noun
    values = [int(row[index].removesuffix(column.unit)) for row in table.cells]
    asks = []
    for adjective, wordings, best in (
        (column.most, column.top, max(values)), (column.least, column.low, min(values)),
    ):  # fmt: skip
        row = values.index(best)
        fact = (table.facts[row][index],)
        others = tuple(n for n in table.names if n != table.names[row])[:3]
        question = _word(rng, wordings, EXTREMES, n=noun, x=adjective, h=column.heading)
        asks.append(Ask(question, table.names[row], "", fact, others, "extreme"))
        question = pick(rng, EXTREME_VALUES, x=adjective, h=column.heading)
        asks.append(Ask(question, table.cells[row][index], "", fact, (), "extreme value"))
    if column.most not in ("highest", "greatest", "most"):
        return asks  # years and durations
    a, b = rng.sample(range(len(values)), 2)
    facts = tuple(sorted((table.facts[a][index], table.facts[b][index])))
    names = {"h": column.heading, "a": table.names[a], "b": table.names[b]}
    larger = values[a] > values[b]
    asks.append(Ask(pick(rng, LARGER, **names), "yes" if larger else "no", "", facts,
                    kind="compare"))  # fmt: skip
    asks.append(Ask(pick(rng, WHICH_LARGER, **names), table.names[a if larger else b], "", facts,
                    (table.names[b if larger else a],), "compare"))  # fmt: skip
    if values[a] + values[b] <= 40 and column.most == "highest":
        question = pick(rng, ("What do {a} and {b} make together under {h}?",
                              "Add up the {h} of {a} and {b}."), **names)  # fmt: skip
        total = f"{values[a] + values[b]}{column.unit}"
        asks.append(Ask(question, total, "", facts, (), "sum"))
    return asks


def _ask_matches(rng: random.Random, table: Table, index: int) -> list[Ask]:
    values = [row[index] for row in table.cells]
    value = max(values, key=lambda v: (values.count(v), rng.random()))
    facts = tuple(
        table.facts[row][index] for row, other in enumerate(values) if other == value
    )  # fmt: skip
    count = len(facts)
    wrong = tuple(NUMBERS[n] for n in range(len(values) + 2) if n != count)[:3]
    question = pick(rng, MATCHES, n=plural(table.subject.noun), v=value,
                    h=table.columns[index].heading)  # fmt: skip
    return [Ask(question, NUMBERS[count], "", facts, wrong, "count")]


def _ask_shape(rng: random.Random, table: Table) -> list[Ask]:
    count, noun = len(table.names), table.subject.noun
    near = tuple(NUMBERS[n] for n in range(count - 1, count + 3) if n != count)
    place = rng.choice((0, 1, count - 1))
    ordinal = "last" if place == count - 1 and rng.random() < 0.7 else _ORDINALS[place]
    others = tuple(n for n in table.names if n != table.names[place])[:3]
    heading = rng.randrange(1, len(table.headings))
    headings = tuple(h for h in table.headings if h != table.headings[heading])[:3]
    return [
        Ask(pick(rng, ROW_COUNTS, n=plural(noun)), number(rng, count), "", (), near, "count"),
        Ask(pick(rng, ORDER, n=noun, o=ordinal), table.names[place], "", (), others, "order"),
        Ask(pick(rng, HEADINGS, o=_ORDINALS[heading]), table.headings[heading], "", (), headings,
            "heading"),
    ]  # fmt: skip


def _ask_absent(rng: random.Random, table: Table) -> list[Ask]:
    name = rng.choice([n for n in table.subject.names if n not in table.names])
    left = [column for column in table.subject.columns if column not in table.columns]
    pairs = [(rng.choice(table.columns), name), (rng.choice(left), rng.choice(table.names))]
    return [
        Ask(
            _word(rng, column.ask, LOOKUPS, h=column.heading, r=row), UNKNOWN,
            wrong=tuple(dict.fromkeys(column.cells(rng, 3))), kind="not said",
        )
        for column, row in pairs
    ]  # fmt: skip
