"""Charts, tables and series in words: values, extremes, sums, differences, comparisons."""

from __future__ import annotations

import random
from dataclasses import dataclass

from edgeprism.models.reader.recipe.world.text import (
    UNKNOWN,
    Ask,
    Passage,
    join,
    mark,
    number,
    pick,
    plural,
)
from edgeprism.models.reader.recipe.world.words import BRANDS, CITIES, DAYS, MONTHS, NAMES

LABELS = (
    MONTHS, DAYS, CITIES, BRANDS, NAMES, tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    tuple(str(y) for y in range(1994, 2026)), tuple(f"Group {c}" for c in "ABCDEFG"),
    tuple(f"Team {n}" for n in range(1, 9)), ("tea", "juice", "milk", "soda", "water", "cocoa"),
    ("wheat", "rice", "barley", "oats", "maize", "rye"), ("wool", "silk", "cotton", "linen"),
    ("gold", "silver", "copper", "tin", "zinc"), ("north", "south", "west", "east"),
    ("women", "men", "children"), ("rent", "food", "travel", "clothing", "savings", "heating"),
)  # fmt: skip
TOPICS = ("sales", "visitors", "rainfall", "exports", "votes", "tickets", "temperature", "output",
          "profit", "attendance", "points", "harvest", "income", "spending")  # fmt: skip
UNITS = ("", "", "", "", "%", " tonnes", " euros", " km", " million", " mm", " litres", " minutes")
PARTS = (("bar chart", "bar"), ("bar chart", "column"), ("table", "row"), ("table", "entry"),
         ("pie chart", "slice"), ("line graph", "point"), ("list", "line"))  # fmt: skip
STARTS = (
    "A {k} of {t}.", "The {k} shows {t}.", "This is a {k} with {n} {p}.", "{k}, {n} {p}.",
    "The image is a {k} about {t}.", "We see a {k} with {n} {p}, titled {t}.", "{t}.",
    "A {k} that has {n} {p} on a white page.", "{k}: {t}.",
)  # fmt: skip
EACH = (
    "{l} stands at {v}.", "{l} comes to {v}.", "{l} has {v}.", "For {l} it shows {v}.",
    "{l}: {v}.", "{l} reaches {v}.", "The {p} for {l} gives {v}.", "The {p} {l} reads {v}.",
    "{l} accounts for {v}.", "{v} for {l}.",
)  # fmt: skip
WITHIN = ("{l} with {v}", "{l} at {v}", "{l} ({v})", "{v} for {l}", "{l} {v}", "{l}: {v}",
          "{l} was {v}", "{l} = {v}", "{p} {l} at {v}")  # fmt: skip
VALUE = (
    "What number stands beside {l}?", "What figure is given for {l}?", "How much does {l} have?",
    "Which number belongs to {l}?", "What does {l} come to?", "How many has {l}?",
    "What is shown for {l}?", "Which value is given for {l}?", "What is {l} at?",
    "What is the figure of {l}?", "State the value for {l}.", "How large is {l}?",
    "Which number does the {p} {l} have?", "What value is given by the {p} {l}?",
    "What does the {p} {l} show?", "Which value can be read for {p} {l}?",
)  # fmt: skip
MOST = (
    "Which {p} has the highest value?", "What has the largest value?", "Which one is the largest?",
    "At which one is the value greatest?", "Which {p} is the highest?", "Which is the biggest?",
    "What ranks first?", "Which has the most?",
)  # fmt: skip
LEAST = (
    "Which {p} has the lowest value?", "What has the smallest value?", "Which one is the smallest?",
    "At which one is the value least?", "Which {p} is the shortest?", "Which is the lowest?",
    "What ranks last?", "Which has the fewest?",
)  # fmt: skip


@dataclass
class Series:
    """Labels with values; each value is a fact."""

    kind: str
    part: str
    topic: str
    unit: str
    labels: list[str]
    values: list[int]
    facts: list[int]

    def shown(self, index: int) -> str:
        """The value with its unit."""
        return f"{self.values[index]}{self.unit}"


def _series(rng: random.Random, passage: Passage) -> Series:
    kind, part = rng.choice(PARTS)
    labels = list(rng.choice(LABELS))
    count = rng.randint(2, min(6, len(labels)))
    if rng.random() < 0.4:
        first = rng.randrange(len(labels) - count + 1)
        labels = labels[first : first + count]
    else:
        labels = rng.sample(labels, count)
    top = rng.choice((10, 10, 20, 60, 100, 100, 500))
    values = rng.sample(range(1, top + 2), count)
    unit = rng.choice(UNITS)
    return Series(kind, part, rng.choice(TOPICS), unit, labels, values,
                  [passage.fact() for _ in labels])  # fmt: skip


def _tell(rng: random.Random, passage: Passage, series: Series) -> None:
    start = pick(rng, STARTS, k=series.kind, t=series.topic, n=number(rng, len(series.labels)),
                 p=plural(series.part))  # fmt: skip
    shown = [
        (mark(fact, label), series.shown(i))
        for i, (label, fact) in enumerate(zip(series.labels, series.facts, strict=True))
    ]
    style = rng.random()
    if style < 0.45:
        pattern = rng.choice(WITHIN)
        listed = join([pattern.format(l=x, v=v, p=series.part) for x, v in shown])
        lead = rng.choice(("It gives {x}.", "Values: {x}.", "The values are {x}.", "One reads {x}.",
                           "From left to right: {x}.", "There we have {x}.", "{x}."))  # fmt: skip
        if rng.random() < 0.5:
            passage.say(start.rstrip(".:") + ": " + listed + ".")
        else:
            passage.say(start)
            passage.say(lead.format(x=listed))
    elif style < 0.75:
        passage.say(start)
        pattern = rng.choice(EACH)
        for x, v in shown:
            if rng.random() < 0.2:
                pattern = rng.choice(EACH)
            passage.say(pattern.format(l=x, v=v, p=series.part))
    else:
        passage.say(start)
        mid = rng.choice((" | ", ": ", "\t", " - ", ", "))
        passage.text += "".join(f"\n{x}{mid}{v}" for x, v in shown)
    if rng.random() < 0.12:
        passage.say(rng.choice(("The source is not named.", "The axis starts at zero.",
                                "It lacks a legend.", "The labels are in English.")))  # fmt: skip


def _ask_values(rng: random.Random, passage: Passage, series: Series) -> None:
    for i in range(len(series.labels)):
        label = series.labels[i]
        question = pick(rng, VALUE, l=label, p=series.part)
        named = f"{series.part} {label}" if f"{series.part} {label}" in question else label
        wrong = tuple(series.shown(j) for j in range(len(series.labels)) if j != i)[:3]
        passage.asks.append(Ask(question, series.shown(i), f"the value of {named}",
                                (series.facts[i],), wrong, "value"))  # fmt: skip
    other = rng.choice([x for x in rng.choice(LABELS) if x not in series.labels] or ["Neptune"])
    passage.asks.append(Ask(pick(rng, VALUE, l=other, p=series.part), UNKNOWN,
                            f"the value of {other}", kind="not said"))  # fmt: skip


def _ask_extremes(rng: random.Random, passage: Passage, series: Series) -> None:
    for wordings, index in (
        (MOST, series.values.index(max(series.values))),
        (LEAST, series.values.index(min(series.values))),
    ):
        question = pick(rng, wordings, p=series.part)
        facts = (series.facts[index],)
        others = tuple(x for x in series.labels if x != series.labels[index])[:3]
        passage.asks.append(Ask(question, series.labels[index], "", facts, others, "extreme"))
        adjective = rng.choice(("highest", "largest", "tallest", "biggest") if wordings is MOST
                               else ("lowest", "smallest", "shortest", "least"))  # fmt: skip
        question = pick(rng, ("How much is the {x} {p}?", "What number does the {x} {p} reach?",
                              "Which value has the {x} {p}?", "What is the {x} value?",
                              "Give the value of the {x} {p}."), x=adjective,
                              p=series.part)  # fmt: skip
        focus = f"the value of the {adjective} {series.part}"
        focus = focus if f"{adjective} {series.part}" in question else f"the {adjective} value"
        passage.asks.append(Ask(question, series.shown(index), focus, facts, (), "extreme"))


def _ask_sums(rng: random.Random, passage: Passage, series: Series) -> None:
    i, j = rng.sample(range(len(series.labels)), 2)
    x, y = series.labels[i], series.labels[j]
    facts = tuple(sorted((series.facts[i], series.facts[j])))
    a, b = series.values[i], series.values[j]
    focus = f"the value of {x} and {y}"
    passage.asks += [
        Ask(pick(rng, ("Is {x} larger than {y}?", "Does {x} have more than {y}?",
                       "Is {x} above {y}?"), x=x, y=y),
            "yes" if a > b else "no", focus, facts, kind="compare"),
        Ask(pick(rng, ("Which is larger, {x} or {y}?", "Which has more, {x} or {y}?"), x=x, y=y),
            x if a > b else y, focus, facts, kind="compare"),
        Ask(pick(rng, ("How many {p} are there in all?", "What is the number of {p} in it?",
                       "How many {p} has it?", "How many values are listed?"),
                 p=plural(series.part)),
            str(len(series.labels)), "", (), kind="count"),
    ]  # fmt: skip
    if max(series.values) <= 30:
        passage.asks += [
            Ask(pick(rng, ("What is the sum of {x} and {y}?", "What do {x} and {y} make together?",
                           "How much are {x} and {y} in total?"), x=x, y=y),
                f"{a + b}{series.unit}", focus, facts, kind="sum"),
            Ask(pick(rng, ("What is the difference between {x} and {y}?",
                           "By how much do {x} and {y} differ?"), x=x, y=y),
                f"{abs(a - b)}{series.unit}", focus, facts, kind="sum"),
        ]  # fmt: skip


def sample_figures(rng: random.Random) -> Passage:
    """Return a chart, a table or a series in words."""
    passage = Passage()
    series = _series(rng, passage)
    _tell(rng, passage, series)
    _ask_values(rng, passage, series)
    _ask_extremes(rng, passage, series)
    _ask_sums(rng, passage, series)
    return passage
