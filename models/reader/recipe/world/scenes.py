"""Scenes of things: their numbers, colours, materials, places, relations, and what is absent."""

from __future__ import annotations

import random

from edgeprism.models.reader.recipe.world import asking, printed
from edgeprism.models.reader.recipe.world.text import (
    Ask,
    Passage,
    a,
    join,
    mark,
    number,
    pick,
    plural,
)
from edgeprism.models.reader.recipe.world.things import RELATIONS, Thing
from edgeprism.models.reader.recipe.world.words import (
    COLOURS,
    GROUPS,
    MATERIALS,
    PRINTED,
    SHADES,
    SIZES,
    THINGS,
)

# rows and columns of places in a frame, which say how two things stand to each other
PLACES = {
    "at the top left": (0, 0), "in the upper left corner": (0, 0), "at the top": (0, 1),
    "near the upper edge": (0, 1), "at the top right": (0, 2), "in the upper right corner": (0, 2),
    "on the left": (1, 0), "on the left side": (1, 0), "in the centre": (1, 1),
    "in the middle": (1, 1), "on the right": (1, 2), "on the right-hand side": (1, 2),
    "at the bottom left": (2, 0), "in the lower left corner": (2, 0), "at the bottom": (2, 1),
    "near the lower edge": (2, 1), "at the bottom right": (2, 2),
    "in the lower right corner": (2, 2),
}  # fmt: skip
LOOSE = (
    "in the background", "in the foreground", "by the window", "against the wall", "in the corner",
    "on the floor", "on the table", "on the shelf", "beside the path", "on the grass",
    "in the sand",
    "near the entrance", "under the roof", "on the pavement", "by the water", "in the shade",
)  # fmt: skip
STATED = (
    "The {a} stands {r} the {b}.", "The {a} can be seen {r} the {b}.", "The {a} lies {r} the {b}.",
    "The {a} has its place {r} the {b}.", "{r} the {b} is the {a}.", "The {a} appears {r} the {b}.",
    "We see the {a} {r} the {b}.", "The {a} is shown {r} the {b}.", "The {a} sits {r} the {b}.",
)  # fmt: skip
WHOLE = (
    "The photo shows {l}.", "In this image we can see {l}.", "The image features {l}.", "{l}.",
    "A picture of {l}.", "You can see {l}.", "In the scene there are {l}.", "Shown here: {l}.",
    "A close-up of {l}.", "{l} on {g} backdrop.", "Against {g} backdrop one sees {l}.",
    "This is a photograph of {l}.", "The view contains {l}.", "An arrangement of {l} in {k}.",
    "The drawing has {n} elements: {l}.", "{n} items can be counted: {l}.", "Here we have {l}.",
    "The picture, taken in {k}, shows {l}.", "In {k}, there is {l}.", "The scene consists of {l}.",
)  # fmt: skip
SINGLE = (
    "There is {x} in the scene.", "One can see {x}.", "I see {x}.", "{x} is there as well.",
    "The image also contains {x}.", "Next comes {x}.", "It includes {x}.", "Additionally, {x}.",
    "Moreover, {x} is visible.", "{x}.", "Another detail is {x}.", "Further on, {x} can be seen.",
)  # fmt: skip
MANY = tuple(text.replace(" is ", " are ") for text in SINGLE)
ABSENT = (
    "There is no {n} in the scene.", "No {n} can be seen.", "No {n} is visible.",
    "There are no {p} here.", "I cannot find any {p}.", "It shows no {n}.", "The {n} is missing.",
    "The image does not contain any {p}.", "There is not a single {n} around.", "No {p} at all.",
    "The place has no {n}.", "There is no {n} here.", "Nowhere is there a {n}.",
)  # fmt: skip
# sentences that say again what the inventory says, as a captioner writes for a focus
AGAIN_COUNT = ("{n} {p} in total.", "The number of {p} comes to {n}.", "All in all, {n} {p}.",
               "Counting the {p} gives {n}.", "{n} {p} can be counted.",
               "So it has {n} {p}.")  # fmt: skip
AGAIN_COLOUR = ("The colour of the {a} can be given as {c}.", "{c} is the {a}'s colour.",
                "Looking at the {a}, its colour turns out to be {c}.",
                "In colour, the {a} is {c}.")  # fmt: skip
LETTERING = ("word", "lettering", "letters", "inscription", "print", "characters")
DIGITS = ("digits", "numeral", "figures", "inscription")
AGAIN_THERE = ("Yes, {o} does appear in it.", "{o} is indeed part of it.", "{o} can be made out.")
KINDS = {
    "kitchen": "a kitchen", "room": "a living room", "workshop": "a workshop",
    "wardrobe": "a bedroom", "field": "a meadow", "street": "a street", "park": "a park",
    "drawing": "a sketch", "market": "a market", "office": "an office",
}  # fmt: skip
LAST = ("It looks calm.", "Overall, the scene is tidy.", "The mood is cheerful.",
        "The light is soft.", "The composition is simple.", "Everything is in focus.",
        "The colours are strong.", "The overall impression is peaceful.")  # fmt: skip


def sample_colour(rng: random.Random) -> str:
    """Return a colour, one in eight with a shade."""
    colour = rng.choice(COLOURS)
    return f"{rng.choice(SHADES)} {colour}" if rng.random() < 0.12 else colour


def sample_things(rng: random.Random, passage: Passage, group: str, most: int = 5) -> list[Thing]:
    """Return up to `most` things of a group of words, now and then two in different colours."""
    names = rng.sample(GROUPS[group], rng.choice((1, 2, 2, 3, 3, 4, most)))
    if len(names) > 1 and rng.random() < 0.2:
        names[1] = names[0]
    gridded = rng.random() < 0.5
    places = rng.sample(list(PLACES), len(names)) if gridded else rng.sample(LOOSE, len(names))
    things: list[Thing] = []
    for name, place in zip(names, places, strict=True):
        again = any(t.name == name for t in things)
        things.append(
            Thing(
                name,
                rng.choice((*(1,) * 12, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9, 12)),
                sample_colour(rng) if again or rng.random() < 0.65 else "",
                rng.choice(MATERIALS) if rng.random() < 0.15 else "",
                rng.choice(SIZES) if rng.random() < 0.4 else "",
                place if rng.random() < (0.9 if gridded else 0.4) else "",
                passage.fact(),
            )
        )
    colours = {t.colour for t in things if t.name == things[0].name}
    if len(things) > 1 and things[0].name == things[1].name and len(colours) < 2:
        things[1].colour, things[0].colour = "red", "blue"
    return things


def to_phrase(rng: random.Random, thing: Thing, *, marked: bool = True, place: bool = True) -> str:
    """Return "three small red jugs on the left"."""
    words = [thing.size, thing.colour, thing.material]
    named = " ".join([w for w in words if w] + [thing.one])
    if thing.count == 1:
        text = ("one " + named) if rng.random() < 0.08 else a(named)
    else:
        text = f"{number(rng, thing.count)} {named}"
    text += f" {thing.place}" if thing.place and place else ""
    return mark(thing.fact, text) if marked else text


def _print(rng: random.Random, passage: Passage) -> str:
    """Return a printed text as one of the things, and ask what it says."""
    text = rng.choice((rng.choice(PRINTED), printed.scramble(rng), printed.scramble(rng)))
    fact, called = passage.fact(), rng.choice(DIGITS if text.isdigit() else LETTERING)
    place = rng.choice(list(PLACES)) if rng.random() < 0.7 else rng.choice(LOOSE)
    wrong = tuple(rng.sample([w for w in PRINTED if w != text], 3))
    for question in rng.sample(printed.READ_ANY, 2):
        passage.asks.append(Ask(question, text, "the text", (fact,), wrong, "text"))
    return mark(fact, f'the {called} "{text}" {place}')


def _tell_things(
    rng: random.Random, passage: Passage, things: list[Thing], group: str
) -> int | None:
    """Write the inventory in one of the styles; return the fact of the backdrop, if told."""
    style = rng.random()
    phrases = [to_phrase(rng, thing) for thing in things]
    if rng.random() < 0.18:
        style = min(style, 0.59)
        phrases.insert(rng.randrange(len(phrases) + 1), _print(rng, passage))
    if style < 0.45:
        pattern = rng.choice(WHOLE)
        backdrop = passage.fact() if "{g}" in pattern else None
        colour = rng.choice(COLOURS)
        ground = mark(backdrop, a(colour)) if backdrop is not None else ""
        total = number(rng, sum(t.count for t in things), 0.3)
        passage.say(pattern.format(l=join(phrases), g=ground, k=KINDS[group], n=total))
        if backdrop is not None:
            passage.asks.append(asking.backdrop(rng, colour, backdrop))
        return backdrop
    if style < 0.6:
        between = rng.choice(("\n- ", "\n* ", "\n"))
        passage.say(
            rng.choice(("What can be seen:", "Contents:", "Objects in the photo:", "List:"))
        )
        for phrase in phrases:
            passage.text += between + phrase
        return None
    for thing, phrase in zip(things, phrases, strict=True):
        if thing.place and rng.random() < 0.4:
            bare = to_phrase(rng, thing, place=False)
            verb = "stands" if thing.count == 1 else "stand"
            passage.say(
                pick(rng, ("{p} {v} {x}.", "{x} {v} {p}.", "{p}, we find {x}."), p=thing.place,
                     v=verb, x=bare)
            )  # fmt: skip
        else:
            passage.say(pick(rng, SINGLE if thing.count == 1 else MANY, x=phrase))
    return None


def _tell_relation(rng: random.Random, passage: Passage, things: list[Thing]) -> None:
    """Add a sentence of how two things stand to each other, and questions about it."""
    once = [t for t in things if t.count == 1 and [u.name for u in things].count(t.name) == 1]
    if len(once) < 2:
        return
    x, y = rng.sample(once, 2)
    placed = x.place in PLACES and y.place in PLACES
    if rng.random() < (0.75 if placed else 0.9):
        relation, inverse = rng.choice(RELATIONS)
        if placed:
            relation, inverse = _from_places(x, y), _from_places(y, x)
        fact = passage.fact()
        named = [
            f"{t.colour} {t.name}" if t.colour and rng.random() < 0.5 else t.name for t in (x, y)
        ]
        passage.say(mark(fact, pick(rng, STATED, a=named[0], b=named[1], r=relation)))
        # Most questions ask what the sentence says: with as many of the inverse, the reader learnt
        # neither.
        for _ in range(4):
            passage.asks += asking.relation(rng, named[0], named[1], relation, (fact,))
        passage.asks += asking.relation(rng, named[1], named[0], inverse, (fact,))
    elif placed:
        passage.asks += asking.relation(rng, x.name, y.name, _from_places(x, y), ())


def _from_places(x: Thing, y: Thing) -> str:
    rows, columns = (PLACES[x.place][i] - PLACES[y.place][i] for i in (0, 1))
    parts = []
    if rows:
        parts.append("above" if rows < 0 else "below")
    if columns:
        parts.append("to the left of" if columns < 0 else "to the right of")
    return " and ".join(parts) or "next to"


def _tell_again(rng: random.Random, passage: Passage, things: list[Thing]) -> None:
    """Add a sentence that says again what the inventory says of a thing."""
    names = [t.name for t in things]
    thing = rng.choice(things)
    if names.count(thing.name) > 1:
        return
    way = rng.random()
    if thing.colour and thing.count == 1 and way < 0.4:
        text = pick(rng, AGAIN_COLOUR, a=thing.name, c=thing.colour)
    elif thing.count == 1 and way < 0.7:
        text = pick(rng, AGAIN_THERE, o=a(thing.name))
    else:
        text = pick(rng, AGAIN_COUNT, p=thing.one, n=number(rng, thing.count))
    passage.say(mark(thing.fact, text))


def _tell_more(rng: random.Random, passage: Passage, things: list[Thing]) -> None:
    """Add a colour that the inventory left out, or the absence of things."""
    bare = [t for t in things if not t.colour]
    if bare and rng.random() < 0.4:
        thing = rng.choice(bare)
        colour, fact = sample_colour(rng), passage.fact()
        verb = "is" if thing.count == 1 else "are"
        passage.say(
            mark(fact, pick(rng, (
                "The {n} {v} all {c}.", "The {n} {v} painted {c}.", "{c} is the colour of the {n}.",
                "As for the {n}, {c} is what one notices.", "The {n} in view {v} {c}.",
            ), n=thing.one, v=verb, c=colour))
        )  # fmt: skip
        passage.asks += asking.colour(rng, thing.one, thing.count, colour, (fact,))
        thing.colour = colour
    if rng.random() < 0.5:
        names = [t.name for t in things]
        absent = rng.choice([n for n in THINGS if n not in names])
        fact = passage.fact()
        passage.say(mark(fact, pick(rng, ABSENT, n=absent, p=plural(absent))))
        passage.asks += asking.said_absent(rng, absent, fact)


def sample_scene(rng: random.Random, most: int = 5) -> Passage:
    """Return a description of a few things."""
    passage = Passage()
    group = rng.choice(list(GROUPS))
    things = sample_things(rng, passage, group, most)
    told = _tell_things(rng, passage, things, group)
    names = [t.name for t in things]
    for thing in things:
        shared = names.count(thing.name) > 1
        passage.asks += asking.thing(rng, thing, shared=shared)
    if names.count(names[0]) > 1:
        same = [t for t in things if t.name == names[0]]
        passage.asks.append(
            asking.count(rng, plural(names[0]), sum(t.count for t in same),
                         tuple(t.fact for t in same))
        )  # fmt: skip
    _tell_relation(rng, passage, things)
    if rng.random() < 0.25:
        _tell_again(rng, passage, things)
    _tell_more(rng, passage, things)
    if rng.random() < 0.15:
        passage.say(rng.choice(LAST))
    absent = rng.choice([n for n in THINGS if n not in names and n not in passage.text])
    passage.asks += asking.unmentioned(rng, absent)
    if told is None and '"' not in passage.text:
        passage.asks.append(asking.nothing_said(rng))
    return passage
