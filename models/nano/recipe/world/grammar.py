"""The captions of a scene: long, short, and with the sentence that a focus asks for.

    Four objects on a white background: two small apples at the top left and on the right, a large
    red star in the centre and the word "CAT" at the bottom. The word is below the red star.

Scenes of the plain world get exactly the captions of ``plain_grammar``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgeprism.models.nano.recipe.world.plain_grammar import PLACES, cells_to_relation
from edgeprism.models.nano.recipe.world.scene import SHAPES, Group, Item, Scene, scene_to_groups
from edgeprism.models.nano.recipe.world.things import THINGS, to_plural

NOTHING = "There is nothing here that I know."
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHORT = "Describe the picture briefly."


def join(parts: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def with_article(name: str) -> str:
    """A name with "a" or "an" before it."""
    return ("an " if name[0] in "aeiou" and not name.startswith("uni") else "a ") + name


def item_to_name(item: Item) -> str:
    """Return "apple", "red star", "word" or "number"."""
    if item.kind == "text":
        return "number" if item.name.isdigit() else "word"
    return f"{item.colour} {item.name}" if item.kind == "shape" else item.name


def _plural(item: Item) -> str:
    return f"{item.colour} {to_plural(item.name)}" if item.colour else to_plural(item.name)


def _print(item: Item) -> str:
    return f'the {item_to_name(item)} "{item.name}"'


def _group_to_phrase(group: Group) -> str:
    item, places = group.first, join([PLACES[i.cell] for i in group.items])
    if item.kind == "text":
        return f"{_print(item)} {places}"
    if len(group.items) == 1:
        return f"a {item.size} {item_to_name(item)} {places}"
    return f"{NUMBERS[len(group.items)]} {item.size} {_plural(item)} {places}"


def _group_to_short(group: Group) -> str:
    item = group.first
    if item.kind == "text":
        return _print(item)
    if len(group.items) == 1:
        return with_article(item_to_name(item))
    return f"{NUMBERS[len(group.items)]} {_plural(item)}"


def relation(a: Item, b: Item) -> str:
    """Return the sentence about the place of `a` relative to `b`."""
    return f"The {item_to_name(a)} is {cells_to_relation(a.cell, b.cell)} the {item_to_name(b)}."


def _singles(scene: Scene) -> list[Item]:
    """Return the items whose name no other item has."""
    items = [g.first for g in scene_to_groups(scene) if len(g.items) == 1]
    names = [item_to_name(i) for i in items]
    return [item for item, name in zip(items, names, strict=True) if names.count(name) == 1]


def scene_to_list(scene: Scene) -> str:
    """Return the list of all items, in reading order."""
    if scene.kind == "nothing":
        return NOTHING
    if scene.kind in ("chart", "table"):
        values = join([f"{i.name} is {i.value}" for i in scene.items])
        return f"{_sheet(scene)} on a {scene.background} background: {values}."
    count = len(scene.items)
    head = f"{NUMBERS[count].capitalize()} object{'s' if count > 1 else ''}"
    listed = join([_group_to_phrase(g) for g in scene_to_groups(scene)])
    return f"{head} on a {scene.background} background: {listed}."


def scene_to_relation(scene: Scene) -> str:
    """Return the relation of two items; "" if fewer than two have a name of their own."""
    singles = _singles(scene) if scene.kind == "mixed" else []
    if len(singles) < 2:
        return ""
    # As in the plain world: of two, the first to the second; of more, the last to the one before.
    a, b = (singles[0], singles[1]) if len(singles) == 2 else (singles[-1], singles[-2])
    return relation(a, b)


def list_then(scene: Scene, sentence: str) -> str:
    """Return the list and then ``sentence``, which the decoder can then copy from the list."""
    return f"{scene_to_list(scene)} {sentence}".rstrip()


def scene_to_long(scene: Scene) -> str:
    """Return the long caption: the list and the relation of two items."""
    return list_then(scene, scene_to_relation(scene))


def _sheet(scene: Scene) -> str:
    what, part = ("bar chart", "bars") if scene.kind == "chart" else ("table", "rows")
    return f"A {what} with {NUMBERS[len(scene.items)]} {part}"


def scene_to_short(scene: Scene) -> str:
    """Return the short caption: the items without their places."""
    if scene.kind == "nothing":
        return NOTHING
    if scene.kind in ("chart", "table"):
        return _sheet(scene) + "."
    text = join([_group_to_short(g) for g in scene_to_groups(scene)])
    return text[0].upper() + text[1:] + "."


# --- with a focus ------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """A question about a scene.

    ``focuses`` are its wordings in an instruction; a caption with such a focus ends with
    ``sentence``; ``question`` and ``answer`` are for a reasoner.
    """

    kind: str  # colour, count, relation, text, presence, chart, place
    focuses: tuple[str, ...]
    sentence: str
    question: str
    answer: str
    names: dict[str, str] = field(default_factory=dict)  # what stands for {a}, {b}, {p}, {o}, {v}


# Training never uses the last of each, which is for tests.
WORDINGS: dict[str, tuple[str, ...]] = {
    "colour": (
        "the colour of the {a}",
        "what colour the {a} is",
        "What colour is the {a}?",
        "{a}, colour",
        "the {a}'s colour",
        "which colour the {a} has",
        "Tell the colour of the {a}.",
        "colour of the {a}",
        "What is the colour of the {a}?",
        "Which colour does the {a} have?",
    ),
    "count": (
        "the number of {p}",
        "how many {p} there are",
        "How many {p} are there?",
        "count the {p}",
        "{p}, how many",
        "How many {p} do you see?",
        "How many {p} does the picture show?",
        "the count of {p} in the picture",
        "Count the {p} in the picture.",
        "Tell how many {p} there are.",
        "whether there are {p}, and how many",
        "How many {p} can you count?",
        "number of {p}",
        "Are there {p}, and how many?",
        "the {p}, counted",
        "whether there are {p}",
        "How many {p} are in the picture?",
    ),
    "relation": (
        "where the {a} is from the {b}",
        "the position of the {a} relative to the {b}",
        "how the {a} and the {b} stand to each other",
        "Where is the {a} relative to the {b}?",
        "Is the {a} above or below, left or right of the {b}?",
        "{a} and {b}, position",
        "on which side of the {b} the {a} is",
        "Seen from the {b}, where is the {a}?",
        "the direction of the {a} from the {b}",
        "In which direction from the {b} does the {a} lie?",
        "Does the {a} lie left or right of the {b}, above or below?",
        "Where does the {a} stand to the {b}?",
        "how the {a} stands to the {b}",
        "the place of the {a} as seen from the {b}",
        "What is the position of the {a} relative to the {b}?",
        "In relation to the {b}, where is the {a}?",
        "Is the {a} left or right of the {b}, and is it above or below?",
        "where the {a} lies, viewed from the {b}",
        "From the {b}, in which direction is the {a}?",
        "Where does the {a} stand, seen from the {b}?",
    ),
    "text": (
        "the text",
        "what is written",
        "any words or numbers",
        "What does it say?",
        "the writing",
        "letters and digits",
        "Read the text.",
        "the printed word or number",
        "Read out what is printed.",
        "the text that is printed",
        "What is written in the picture?",
        "Which word or number is printed?",
        "What is printed in the picture?",
    ),
    "presence": (
        "whether there is {o}",
        "Is there {o}?",
        "{o}",
        "if {o} is shown",
        "Do you see {o}?",
        "Does the picture show {o}?",
        "Can you see {o} in the picture?",
        "Is there {o} in the picture?",
        "Is {o} in the picture?",
    ),
    "chart": (
        "the value of {v}",
        "What is the value of {v}?",
        "{v}, value",
        "how much {v} is",
        "the number of {v}",
        "which value {v} has",
        "How high is {v}?",
        "Tell the value of {v}.",
        "What value does {v} have?",
    ),
    "place": (
        "where the {a} is",
        "the place of the {a}",
        "Where is the {a}?",
        "the {a}'s position",
        "In which part of the picture is the {a}?",
        "where in the picture the {a} is",
        "Where does the {a} stand in the picture?",
        "the position of the {a}",
        "Where in the picture is the {a}?",
    ),
}


def make_query(kind: str, sentence: str, answer: str, question: str, **names: str) -> Query:
    """Return a query in the wordings of ``kind``, with the ``names`` in their places."""
    focuses = tuple(w.format(**names) for w in WORDINGS[kind])
    return Query(kind, focuses, sentence, question.format(**names), answer, names)


def _absent(scene: Scene, rng: random.Random) -> str:
    """Return the name of a thing or shape that the scene lacks."""
    present = {i.name for i in scene.items}
    return rng.choice([n for n in (*THINGS, *SHAPES) if n not in present])


def ask_colour(scene: Scene, rng: random.Random) -> Query | None:
    """Ask for a shape's colour; None if no shape's name is unique."""
    shapes = [i for i in scene.items if i.kind == "shape"]
    names = [i.name for i in shapes]
    once = [i for i in shapes if names.count(i.name) == 1]
    if not once:
        return None
    item = rng.choice(once)
    return make_query("colour", f"The {item.name} is {item.colour}.", item.colour,
                      "What colour is the {a}?", a=item.name)  # fmt: skip


def ask_count(scene: Scene, rng: random.Random, absent: float = 0.12) -> Query | None:
    """Ask for a number; ``absent`` is the share of questions about absent things."""
    groups = [g for g in scene_to_groups(scene) if g.first.kind in ("thing", "shape")]
    if not groups and scene.kind != "mixed":
        return None
    if not groups or rng.random() < absent:
        name, count = to_plural(_absent(scene, rng)), 0
    else:
        group = max(groups, key=lambda g: (len(g.items) * (rng.random() < 0.5), rng.random()))
        name, count = _plural(group.first), len(group.items)
        if count == 1:
            sentence = f"There is one {item_to_name(group.first)}."
            return make_query("count", sentence, "one", "How many {p} are there?", p=name)
    sentence = f"There are {NUMBERS[count]} {name}."
    return make_query("count", sentence, NUMBERS[count], "How many {p} are there?", p=name)


def ask_relation(scene: Scene, rng: random.Random) -> Query | None:
    """Ask for one item's place relative to another; None without two unique names."""
    singles = _singles(scene)
    if scene.kind != "mixed" or len(singles) < 2:
        return None
    a, b = rng.sample(singles, 2)
    sentence = relation(a, b)
    answer = cells_to_relation(a.cell, b.cell)
    question = "Where is the {a} relative to the {b}?"
    return make_query("relation", sentence, answer, question, a=item_to_name(a), b=item_to_name(b))


def ask_text(scene: Scene, rng: random.Random) -> Query | None:
    """Ask for the printed text; None if this scene does not suit."""
    if scene.kind != "mixed":
        return None
    texts = [i.name for i in scene.items if i.kind == "text"]
    if not texts and rng.random() < 0.7:
        return None
    read = join([f'"{text}"' for text in texts]) if texts else ""
    sentence = f"The text reads {read}." if texts else "There is no text."
    answer = join(texts) if texts else "no text"
    return make_query("text", sentence, answer, "What does the text read?")


def ask_presence(scene: Scene, rng: random.Random) -> Query | None:
    """Ask whether something is in the picture; half of the time it is."""
    if scene.kind not in ("mixed", "nothing"):
        return None
    groups = [g for g in scene_to_groups(scene) if g.first.kind in ("thing", "shape")]
    question = "Is there {o} in the picture?"
    if groups and rng.random() < 0.5:
        group = rng.choice(groups)
        name = item_to_name(group.first)
        few = len(group.items) == 1
        sentence = (
            f"There is {with_article(name)}." if few else f"There are {_group_to_short(group)}."
        )
        return make_query("presence", sentence, "yes", question, o=with_article(name))
    name = _absent(scene, rng)
    return make_query("presence", f"There is no {name}.", "no", question, o=with_article(name))


def ask_chart(scene: Scene, rng: random.Random) -> Query | None:
    """Ask for a value of a chart or table; None for other pictures."""
    if scene.kind not in ("chart", "table"):
        return None
    what = "bar" if scene.kind == "chart" else "row"
    values = [i.value for i in scene.items]
    kind = rng.random()
    item = rng.choice(scene.items)
    if kind < 0.4 and scene.kind == "chart":
        word, pick = rng.choice((("tallest", max(values)), ("lowest", min(values))))
        if values.count(pick) == 1:
            item = scene.items[values.index(pick)]
            sentence = f"The {word} bar is {item.name} with {item.value}."
            return make_query(
                "chart", sentence, str(pick), "What is the value of {v}?", v=f"the {word} bar"
            )
    name = item.name if rng.random() < 0.5 else f"{what} {item.name}"
    return make_query(
        "chart",
        f"{item.name} is {item.value}.",
        str(item.value),
        "What is the value of {v}?",
        v=name,
    )


def ask_place(scene: Scene, rng: random.Random) -> Query | None:
    """Ask for an item's place in the picture; None without a unique name."""
    singles = _singles(scene)
    if scene.kind != "mixed" or not singles:
        return None
    item = rng.choice(singles)
    place = PLACES[item.cell]
    return make_query(
        "place",
        f"The {item_to_name(item)} is {place}.",
        place,
        "Where is the {a}?",
        a=item_to_name(item),
    )


ASK: dict[str, Callable[[Scene, random.Random], Query | None]] = {
    "colour": ask_colour, "count": ask_count, "relation": ask_relation, "text": ask_text,
    "presence": ask_presence, "chart": ask_chart, "place": ask_place,
}  # fmt: skip


def sample_query(scene: Scene, rng: random.Random) -> Query | None:
    """Return a random question about this scene."""
    for kind in rng.sample(list(ASK), len(ASK)):
        query = ASK[kind](scene, rng)
        if query is not None:
            return query
    return None
