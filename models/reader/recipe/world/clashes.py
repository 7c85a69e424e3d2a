"""Descriptions that correct or contradict themselves, and those of several captioners."""

from __future__ import annotations

import random

from edgeprism.models.reader.recipe.world import asking
from edgeprism.models.reader.recipe.world.text import Ask, Passage, a, mark, number, pick, plural
from edgeprism.models.reader.recipe.world.words import COLOURS, NUMBERS, THINGS

CORRECTED = (
    "At first sight the {n} looks {x}, but it is in fact {y}.",
    "The {n} is not {x} but {y}.",
    "Not {x}, as one might think: the {n} turns out to be {y}.",
    "The {n} seems {x}; on closer look it is {y}.",
    "Although the {m} is {x}, the {n} is {y}.",
    "Unlike the {x} {m}, the {n} comes in {y}.",
    "The {n}, which stands beside the {x} {m}, is entirely {y}.",
    "The {x} {m} hides part of the {n}, whose colour is {y}.",
    "Next to the {y} {n} stands the {x} {m}, old and worn.",
    "Only the {n} is {y}, whereas the {m} is {x}.",
)  # fmt: skip
REPLACED = (
    "There are not {x} but {y} {p}.", "It looks like {x} {p}, but there are {y} {p}.",
    "One expects {x} {p}; there are only {y} of these {p}.",
    "Of the {x} {p} that belong to the set, {y} {p} are left.",
)  # fmt: skip
ALL_BUT = (
    "All the {p} are {x}, except one, which is {y}.",
    "Every one of the {p} is {x} apart from a single {y} one.",
)  # fmt: skip


def sample_clash(rng: random.Random) -> Passage:
    """Return sentences in which two colours or numbers compete, one of them right."""
    passage = Passage()
    for _ in range(rng.randint(1, 3)):
        fact = passage.fact()
        name, other = rng.sample([t for t in THINGS if t not in passage.text], 2)
        x, y = rng.sample(COLOURS, 2)
        kind = rng.random()
        if kind < 0.6:
            pattern = rng.choice(CORRECTED)
            passage.say(mark(fact, pattern.format(n=name, m=other, x=x, y=y)))
            passage.asks += asking.colour(rng, name, 1, y, (fact,))
            if "{m}" in pattern:
                passage.asks += asking.colour(rng, other, 1, x, (fact,))
        elif kind < 0.85:
            few, many = sorted(rng.sample(range(1, 13), 2))
            names = plural(name)
            passage.say(mark(fact, pick(rng, REPLACED, p=names, x=NUMBERS[many], y=NUMBERS[few])))
            passage.asks.append(asking.count(rng, names, few, (fact,)))
        else:
            names = plural(name)
            passage.say(mark(fact, pick(rng, ALL_BUT, p=names, x=x, y=y)))
            passage.asks += [
                Ask(f"Which colour are most of the {names}?", x, f"the colour of the {names}",
                    (fact,)),
                Ask(f"Are all the {names} {x}?", "no", f"the colour of the {names}", (fact,)),
                Ask(f"What is the colour of the one that differs among the {names}?", y, "",
                    (fact,)),
            ]  # fmt: skip
    return passage


def sample_disagreement(rng: random.Random) -> tuple[list[Passage], list[Ask]]:
    """Return what two captioners say of one picture; facts are numbered across both.

    They agree, or add to each other, or contradict each other; then the answer gives both.
    """
    name = rng.choice(THINGS)
    other = rng.choice([t for t in THINGS if t not in name and name not in t])
    x, y = rng.sample(COLOURS, 2)
    n, m = rng.sample(range(2, 9), 2)
    first, second = Passage(), Passage()
    agree = rng.random() < 0.5
    y = x if agree else y
    first.say(mark(0, pick(rng, ("{o} on a shelf.", "There is {o}, seen from the side."),
                           o=a(f"{x} {name}"))))  # fmt: skip
    second.say(pick(rng, ("The image shows {o}.", "In the middle one sees {o}."),
                    o=mark(1, a(f"{y} {name}"))))  # fmt: skip
    same = rng.random() < 0.5
    count = n if same else m
    first.say(mark(2, f"Around it are {number(rng, n)} {plural(other)}."))
    if rng.random() < 0.6:
        second.say(mark(3, f"{number(rng, count)} {plural(other)} lie around it."))
        counts: tuple[int, ...] = (2, 3)
    else:
        count, counts = n, (2,)
    asks = [Ask(pick(rng, asking.COLOUR, a=name), x if agree else f"{x} or {y}",
                f"the colour of the {name}", (0, 1), kind="colour"),
            Ask(pick(rng, asking.COUNT, p=plural(other)),
                NUMBERS[n] if count == n else f"{NUMBERS[n]} or {NUMBERS[count]}",
                f"the number of {plural(other)}", counts, kind="count"),
            asking.presence(rng, name, "yes", (0, 1)),
            *asking.unmentioned(rng, rng.choice([t for t in THINGS if t not in (name,
                other)]))]  # fmt: skip
    first.facts = second.facts = 4
    return [first, second], asks
