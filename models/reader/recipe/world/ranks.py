"""Prose that ranks: who is tallest, what is oldest, which comes second, and by how much."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from edgeprism.models.reader.recipe.world.text import Ask, Passage, join, mark, pick
from edgeprism.models.reader.recipe.world.words import (
    ANIMALS,
    BRANDS,
    CITIES,
    NAMES,
    PEOPLE,
    SURNAMES,
    THINGS,
    VEHICLES,
)

RIVERS = ("Arno", "Tagus", "Vistula", "Oder", "Loire", "Drava", "Neckar", "Ebro", "Glomma", "Maas")
PEAKS = ("Rysy", "Teide", "Olympus", "Elbrus", "Ortler", "Zugspitze", "Snowdon", "Aneto", "Etna")


@dataclass(frozen=True)
class Measure:
    """What is compared, with its words: more, most, less, least; how a value is told and asked."""

    more: str
    most: str
    less: str
    least: str
    unit: str
    low: int
    high: int
    told: tuple[str, ...]
    ask: tuple[str, ...]
    who: Callable[[random.Random, int], list[str]]
    noun: str


def _the(words: tuple[str, ...]) -> Callable[[random.Random, int], list[str]]:
    return lambda rng, n: [f"the {word}" for word in rng.sample(words, n)]


def _bare(words: tuple[str, ...]) -> Callable[[random.Random, int], list[str]]:
    return lambda rng, n: rng.sample(words, n)


def _of(words: tuple[str, ...], noun: str) -> Callable[[random.Random, int], list[str]]:
    return lambda rng, n: [f"the {word} {noun}" for word in rng.sample(words, n)]


_TALL = ("{x} is {v} high", "{x} rises to {v}", "{x}, {v} high", "{x} measures {v} in height",
         "{x} stands {v} tall", "{x} reaches {v}")  # fmt: skip
_HOW_TALL = ("How tall is {x}?", "What height has {x}?", "How high does {x} rise?")
_COST = ("{x} costs {v}", "{x} sells for {v}", "{x} is offered at {v}", "for {x} one pays {v}",
         "{x} can be had for {v}", "{x}, at {v}")  # fmt: skip
_HOW_DEAR = ("What does {x} cost?", "At what price is {x} sold?", "How much is {x}?")
_WEIGH = ("{x} weighs {v}", "{x} brings {v} to the scale", "{x} comes to {v}", "{x}, {v} in weight")
_HOW_HEAVY = ("How much does {x} weigh?", "What is the weight of {x}?", "How heavy is {x}?")
_LONG = ("{x} is {v} long", "{x} runs for {v}", "{x}, with {v}", "{x} has a length of {v}",
         "{x} measures {v} from end to end")  # fmt: skip
_HOW_LONG = ("How long is {x}?", "What length has {x}?", "Over what distance does {x} run?")
_AGED = ("{x} is {v} old", "{x}, {v} old", "{x} has just turned {v}", "{x} is aged {v}")
_HOW_OLD = ("How old is {x}?", "What age is {x}?", "What is {x}'s age?")
_BUILT = ("{x} dates from {v}", "{x} was finished in {v}", "{x} opened in {v}", "{x} ({v})",
          "{x} was built in {v}", "{x} has stood since {v}")  # fmt: skip
_WHEN = ("When was {x} finished?", "From which year is {x}?", "In what year did {x} open?")
_FAST = ("{x} does {v}", "{x} reaches {v}", "{x} travels at {v}", "{x} comes to {v}")
_HOW_FAST = ("How fast is {x}?", "What speed does {x} reach?", "At what speed does {x} travel?")
_SEAT = ("{x} seats {v}", "{x} holds {v}", "{x} has room for {v}", "{x} takes {v}")
_HOW_MANY = (
    "How many does {x} seat?",
    "For how many has {x} room?",
    "How many people fit into {x}?",
)

MEASURES = (
    Measure("taller", "tallest", "lower", "lowest", " metres", 20, 400, _TALL, _HOW_TALL,
            _of(CITIES, "Tower"), "tower"),
    Measure("higher", "highest", "lower", "lowest", " m", 900, 5000, _TALL, _HOW_TALL,
            _bare(PEAKS), "peak"),
    Measure("taller", "tallest", "shorter", "shortest", " cm", 95, 199, _TALL, _HOW_TALL,
            _the(PEOPLE), "person"),
    Measure("dearer", "most expensive", "cheaper", "cheapest", " euros", 2, 90, _COST, _HOW_DEAR,
            _the(THINGS), "thing"),
    Measure("more expensive", "dearest", "cheaper", "cheapest", " dollars", 5, 700, _COST,
            _HOW_DEAR, _of(BRANDS, "model"), "model"),
    Measure("heavier", "heaviest", "lighter", "lightest", " kg", 2, 800, _WEIGH, _HOW_HEAVY,
            _the(ANIMALS), "animal"),
    Measure("heavier", "heaviest", "lighter", "lightest", " g", 20, 900, _WEIGH, _HOW_HEAVY,
            _the(THINGS), "thing"),
    Measure("longer", "longest", "shorter", "shortest", " km", 120, 1200, _LONG, _HOW_LONG,
            _of(RIVERS, "river"), "river"),
    Measure("longer", "longest", "shorter", "shortest", " metres", 30, 900, _LONG, _HOW_LONG,
            _of(CITIES, "Bridge"), "bridge"),
    Measure("older", "oldest", "younger", "youngest", " years", 3, 95, _AGED, _HOW_OLD,
            _bare(NAMES), "one"),
    Measure("newer", "newest", "older", "oldest", "", 1680, 2020, _BUILT, _WHEN,
            _of(SURNAMES, "Palace"), "palace"),
    Measure("faster", "fastest", "slower", "slowest", " km/h", 20, 300, _FAST, _HOW_FAST,
            _the(VEHICLES), "vehicle"),
    Measure("larger", "largest", "smaller", "smallest", " people", 8, 900, _SEAT, _HOW_MANY,
            _of(CITIES, "Hall"), "hall"),
)  # fmt: skip
FRAMES = ("", "", "", "Seen side by side: ", "From left to right: ", "The caption compares them: ",
          "According to the panel, ", "In this order: ", "The poster lists them: ")  # fmt: skip
MOST = ("Which {n} is the {s}?", "What is the {s} {n} of all?", "Which of them is the {s}?",
        "Which one is the {s}?", "What is the {s} {n} named?", "Name the {s} {n}.")  # fmt: skip
PAIR = ("Which is {w}, {x} or {y}?", "Of {x} and {y}, which is {w}?", "Is {x} or {y} {w}?")
TRUE = ("Is {x} {w} than {y}?", "Would you say that {x} is {w} than {y}?")
APART = ("How much {w} is {x} than {y}?", "By how much is {x} {w} than {y}?")


@dataclass
class Ranking:
    """Things in the order in which they are told, with values and the facts that state them."""

    measure: Measure
    names: list[str]
    values: list[int]
    facts: list[int]

    def shown(self, value: int) -> str:
        """A value with its unit."""
        return f"{value}{self.measure.unit}"

    def by_value(self) -> list[int]:
        """Return the places of the things, the largest value first."""
        return sorted(range(len(self.names)), key=lambda i: -self.values[i])


def sample_ranks(rng: random.Random) -> Passage:
    """Return prose about the values of a few things."""
    passage = Passage()
    measure = rng.choice(MEASURES)
    n = rng.randint(2, 4)
    names = measure.who(rng, n)
    step = rng.choice((1, 5, 10)) if measure.high - measure.low > 100 else 1
    values = rng.sample(range(measure.low, measure.high, step), n)
    ranking = Ranking(measure, names, values, [passage.fact() for _ in names])
    stated = rng.random() < 0.25 and n > 2
    if stated:
        _tell_rank(rng, passage, ranking)
    else:
        _tell_values(rng, passage, ranking)
    _ask_ranks(rng, passage, ranking, compared=not stated)
    return passage


def _tell_values(rng: random.Random, passage: Passage, ranking: Ranking) -> None:
    told = []
    pattern = rng.choice(ranking.measure.told)
    for name, value, fact in zip(ranking.names, ranking.values, ranking.facts, strict=True):
        if rng.random() < 0.4:
            pattern = rng.choice(ranking.measure.told)
        told.append(mark(fact, pattern.format(x=name, v=ranking.shown(value))))
    if rng.random() < 0.4 and not any(", " in text for text in told):
        for text in told:
            passage.say(f"{text}.")
    else:
        last = rng.choice(("and", "while", "and", "whereas"))
        passage.say(rng.choice(FRAMES) + join(told, last) + ".")


def _tell_rank(rng: random.Random, passage: Passage, ranking: Ranking) -> None:
    """Say which is first and which last in words; only the first has its value."""
    order = ranking.by_value()
    first, last = order[0], order[-1]
    measure = ranking.measure
    passage.say(mark(ranking.facts[first], pick(rng, (
        "The {s} of them is {x} with {v}.", "At {v}, {x} is the {s}.",
        "None is {w} than {x}, {v}.",
        "{x} is by far the {s}: {v}.",
    ), s=measure.most, w=measure.more, x=ranking.names[first],
        v=ranking.shown(ranking.values[first]))))  # fmt: skip
    between = [ranking.names[i] for i in order[1:-1]]
    passage.say(mark(ranking.facts[last], pick(rng, (
        "Next: {m}; {x} is the {l}.", "The {l} is {x}; in between: {m}.",
        "Behind it: {m} and, as the {l}, {x}.",
    ), m=join(between), l=measure.least, x=ranking.names[last])))  # fmt: skip


def _ask_ranks(rng: random.Random, passage: Passage, ranking: Ranking, *, compared: bool) -> None:
    measure, names, order = ranking.measure, ranking.names, ranking.by_value()
    for word, at in ((measure.most, order[0]), (measure.least, order[-1])):
        wrong = tuple(name for i, name in enumerate(names) if i != at)
        question = pick(rng, MOST, n=measure.noun, s=word)
        passage.asks.append(Ask(question, names[at], "", (ranking.facts[at],), wrong, "extreme"))
    known = range(len(names)) if compared else [order[0]]
    for i in known:
        wrong = tuple(ranking.shown(v) for v in ranking.values if v != ranking.values[i])
        question = pick(rng, measure.ask, x=names[i])
        passage.asks.append(Ask(question, ranking.shown(ranking.values[i]), "",
                                (ranking.facts[i],), wrong, "value"))  # fmt: skip
    if compared:
        i, j = rng.sample(range(len(names)), 2)
        _ask_pair(rng, passage, ranking, i, j)
    if compared and len(names) > 2:
        second = order[1]
        wrong = tuple(name for i, name in enumerate(names) if i != second)
        question = f"Which {measure.noun} is the second {measure.most}?"
        passage.asks.append(Ask(question, names[second], "", tuple(ranking.facts), wrong, "second"))


def _ask_pair(rng: random.Random, passage: Passage, ranking: Ranking, i: int, j: int) -> None:
    measure, facts = ranking.measure, tuple(sorted((ranking.facts[i], ranking.facts[j])))
    x, y = ranking.names[i], ranking.names[j]
    high, low = (i, j) if ranking.values[i] > ranking.values[j] else (j, i)
    word, winner = rng.choice(((measure.more, high), (measure.less, low)))
    passage.asks.append(Ask(pick(rng, PAIR, w=word, x=x, y=y), ranking.names[winner], "", facts,
                            (ranking.names[high + low - winner],), "compare"))  # fmt: skip
    word = rng.choice((measure.more, measure.less))
    right = "yes" if (word == measure.more) == (high == i) else "no"
    passage.asks.append(Ask(pick(rng, TRUE, w=word, x=x, y=y), right, "", facts, (), "compare"))
    gap = ranking.values[high] - ranking.values[low]
    if measure.unit and (gap <= 20 or gap % 10 == 0):
        question = pick(rng, APART, w=measure.more, x=ranking.names[high], y=ranking.names[low])
        passage.asks.append(Ask(question, ranking.shown(gap), "", facts, (), "sum"))
