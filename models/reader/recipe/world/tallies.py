"""Small numbers that add up: so many of this and so many of that, some taken away, some left."""

from __future__ import annotations

import random

from edgeprism.models.reader.recipe.world.text import Ask, Passage, join, mark, number, pick, plural
from edgeprism.models.reader.recipe.world.words import (
    ANIMALS,
    COLOURS,
    NAMES,
    NUMBERS,
    PEOPLE,
    THINGS,
    VEHICLES,
)

KINDS = (("animals", ANIMALS), ("people", PEOPLE), ("vehicles", VEHICLES), ("things", THINGS))
MOST = 20  # of a sum: what has a word of its own
TOLD = (
    "{x} can be seen.", "The photo shows {x}.", "We count {x}.", "{x} fill the frame.",
    "In the foreground there are {x}.", "On the left stand {x}, a little apart.", "{x} in a row.",
    "A drawing with {x}.", "Here are {x}, nothing else.", "Someone has lined up {x}.",
)  # fmt: skip
ALTOGETHER = (
    "How many {k} are there altogether?", "How many {k} is that in all?",
    "How many {k} are seen, all told?", "What is the total number of {k}?",
    "Taken together, how many {k} are there?", "How many {k} in total?",
)  # fmt: skip
BOTH = (
    "How many {x} and {y} are there together?", "What do {x} and {y} add up to?",
    "If one counts {x} and {y}, how many is that?", "{x} and {y}: how many together?",
)  # fmt: skip
MORE = (
    "By how many do the {x} outnumber the {y}?", "How many {y} are lacking to match the {x}?",
    "By what number are the {y} fewer than the {x}?", "How large is the lead of {x} over {y}?",
)  # fmt: skip
WHICH_MORE = ("Are there more {x} or more {y}?", "Of which are there more, {x} or {y}?")
PARTS = (
    ("Of {n} {p}, {m} are {c}; the others are {d}.", "How many {p} are {d}?"),
    ("{N} {p} are on a shelf. {M} of them are {c}, the rest {d}.", "How many of the {p} are {d}?"),
    ("There were {n} {p}; {m} have been taken away.", "How many {p} are left?"),
    ("The box has room for {n} {p}. It holds {m}.", "How many more {p} would fit in?"),
    ("{N} {p} are needed, but only {m} are there.", "How many {p} are missing?"),
    ("{a} has {n} {p} and gives {b} {m} of them.", "How many {p} does {a} keep?"),
    ("All but {m} of the {n} {p} are {c}.", "How many {p} are {c}?"),
    ("A set of {n} {p}, {m} of which are broken.", "How many {p} are not broken?"),
    ("The shelf is full: {n} {p}, {m} of them upside down.", "How many {p} are the right way up?"),
)  # fmt: skip
ROWS = (
    ("{N} rows of {m} {p}.", "How many {p} are there in all?"),
    ("The {p} stand in {n} rows, {m} in each.", "How many {p} is that altogether?"),
    ("Each of the {n} boxes holds {m} {p}.", "How many {p} do the boxes hold together?"),
)  # fmt: skip


def _word(value: int) -> str:
    return NUMBERS[value] if 0 < value < len(NUMBERS) else str(value)


def _wrong(rng: random.Random, value: int) -> tuple[str, ...]:
    near = [n for n in range(max(0, value - 4), value + 5) if n != value]
    return tuple(map(str, rng.sample(near, 3)))


def _ask(rng: random.Random, question: str, value: int, facts: tuple[int, ...], kind: str) -> Ask:
    return Ask(question, _word(value), "", facts, _wrong(rng, value), kind)


def sample_tally(rng: random.Random) -> Passage:
    """Return a few kinds of things with their numbers, a whole and its parts, or rows."""
    return rng.choice((_kinds, _kinds, _parts, _rows))(rng)


def _kinds(rng: random.Random) -> Passage:
    passage = Passage()
    kind, words = rng.choice(KINDS)
    names = rng.sample(words, rng.choice((2, 2, 2, 3)))
    counts = [rng.randint(1, 8 if len(names) == 2 else 6) for _ in names]
    facts = [passage.fact() for _ in names]
    shown = [
        mark(fact, f"{number(rng, n)} {name if n == 1 else plural(name)}")
        for name, n, fact in zip(names, counts, facts, strict=True)
    ]
    if rng.random() < 0.6:
        passage.say(rng.choice(TOLD).format(x=join(shown)))
    else:
        for text in shown:
            passage.say(rng.choice(TOLD).format(x=text))
    total, every = sum(counts), tuple(facts)
    if total <= MOST:
        question = pick(rng, ALTOGETHER, k=kind)
        passage.asks.append(_ask(rng, question, total, every, "sum"))
    first, second = rng.sample(range(len(names)), 2)
    x, y = plural(names[first]), plural(names[second])
    pair = tuple(sorted((facts[first], facts[second])))
    passage.asks.append(_ask(rng, pick(rng, BOTH, x=x, y=y), counts[first] + counts[second], pair,
                             "sum"))  # fmt: skip
    if counts[first] != counts[second]:
        more, less = (first, second) if counts[first] > counts[second] else (second, first)
        x, y = plural(names[more]), plural(names[less])
        passage.asks += [
            _ask(rng, pick(rng, MORE, x=x, y=y), counts[more] - counts[less], pair, "sum"),
            Ask(pick(rng, WHICH_MORE, x=x, y=y), x, "", pair, (y,), "compare"),
        ]
    return passage


def _parts(rng: random.Random) -> Passage:
    passage = Passage()
    n = rng.randint(3, 15)
    m = rng.randint(2, n - 1)
    fact, thing = passage.fact(), plural(rng.choice(THINGS))
    c, d = rng.sample(COLOURS, 2)
    a, b = rng.sample(NAMES, 2)
    text, question = rng.choice(PARTS)
    words = {"n": number(rng, n), "m": number(rng, m), "p": thing, "c": c, "d": d, "a": a, "b": b}
    words |= {"N": words["n"].capitalize(), "M": words["m"].capitalize()}
    passage.say(mark(fact, text.format(**words)))
    passage.asks.append(_ask(rng, question.format(**words), n - m, (fact,), "sum"))
    whole = pick(rng, ("How many {p} are there in all?", "What number of {p} is named first?",
                       "Out of how many {p}?"), p=thing)  # fmt: skip
    passage.asks.append(_ask(rng, whole, n, (fact,), "count"))
    return passage


def _rows(rng: random.Random) -> Passage:
    passage = Passage()
    n, m = rng.randint(2, 5), rng.randint(2, 6)
    fact, thing = passage.fact(), plural(rng.choice(THINGS))
    text, question = rng.choice(ROWS)
    words = {"n": number(rng, n), "m": number(rng, m), "p": thing}
    words["N"] = words["n"].capitalize()
    passage.say(mark(fact, text.format(**words)))
    passage.asks.append(_ask(rng, question.format(**words), n * m, (fact,), "sum"))
    return passage
