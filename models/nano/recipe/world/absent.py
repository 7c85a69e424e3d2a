"""Focuses on what is not in the picture, and on what is there under another name.

A caption with a focus on an absent thing ends with "There is no apple.", whatever the focus wants
to know of it. So that nothing in the picture is denied, training also has focuses that name things
as people do ("star" for a red star, "plane" for an airplane) or by their class ("animals").
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from edgeprism.models.nano.recipe.world.grammar import (
    NUMBERS,
    Query,
    item_to_name,
    make_query,
    scene_to_relation,
    with_article,
)
from edgeprism.models.nano.recipe.world.plain_grammar import PLACES, cells_to_relation
from edgeprism.models.nano.recipe.world.scene import (
    COLOURS,
    LETTERS,
    SHAPES,
    UNSEEN_PAIRS,
    Item,
    Scene,
    is_held_out,
)
from edgeprism.models.nano.recipe.world.things import THINGS, to_plural

ABSENT_KINDS = ("colour", "count", "relation", "presence", "chart", "place")
SPOKEN_KINDS = ("colour", "count", "relation", "presence", "place")

# What nano cannot name. Its captions copy these words from the focus; training never has a tenth.
_STRANGERS = """
giraffe zebra kangaroo rhinoceros hippo goat donkey llama alpaca otter beaver hedgehog squirrel
badger raccoon skunk hamster rat bat gorilla chimpanzee lemur sloth leopard jaguar cheetah hyena
jackal walrus seal lizard gecko iguana chameleon toad newt worm beetle wasp hornet cricket
grasshopper dragonfly mosquito ladle moth caterpillar centipede lobster shrimp squid jellyfish
starfish oyster clam salmon trout herring eel parrot pigeon sparrow raven crow swan stork heron
pelican flamingo peacock turkey ostrich vulture falcon robin woodpecker canary plum apricot mango
papaya fig coconut kiwi melon raspberry blueberry cabbage lettuce cauliflower broccoli onion radish
turnip pumpkin pea bean lentil peanut walnut almond hazelnut pretzel muffin waffle pancake sandwich
sausage omelette dumpling noodle kettle teapot saucer bowl pan toaster oven fridge microwave
blender sieve grater chopstick corkscrew napkin jug vase basket barrel bucket broom mop sponge
towel pillow blanket mattress curtain carpet sofa armchair stool bench table desk drawer wardrobe
mirror ladder chimney fireplace chair cradle bathtub shower sink tap radiator fan iron needle
thread button zip scarf glove mitten sock boot sandal slipper coat jacket sweater skirt belt tie
necklace bracelet earring brooch wallet purse suitcase parcel stamp postcard map globe compass
telescope microscope thermometer barometer magnet battery plug cable lantern torch match lighter
ashtray pipe violin cello harp flute trumpet trombone saxophone clarinet oboe banjo mandolin piano
organ tambourine xylophone accordion bagpipe saw axe chisel screwdriver drill shovel rake hoe
sickle nail screw bolt rope chain hook pulley lever wheel tent canoe kayak raft ferry submarine
yacht tram scooter skateboard sled ski snowboard parachute glider zeppelin ambulance caravan
wheelbarrow tank windmill lighthouse castle tower bridge tunnel fountain statue church temple
pyramid igloo cabin barn garage factory fence gate well mailbox bin bollard dragon mermaid wizard
witch vampire robot alien pirate knight queen king clown snowman scarecrow puppet doll teddy kite
yoyo marble dart racket puck frisbee trampoline swing slide seesaw comet planet meteor satellite
glacier waterfall island desert cave hill river lake beach daisy lily orchid poppy daffodil
lavender fern moss bamboo ivy thistle acorn
"""
STRANGERS = tuple(name for name in _STRANGERS.split() if not is_held_out(name))
HELD_OUT_STRANGERS = tuple(name for name in _STRANGERS.split() if is_held_out(name))
_SYLLABLES: tuple[tuple[str, ...], ...] = (
    (*"bcdfglmnprstv", "br", "cl", "dr", "fl", "gr", "pl", "st", "tr"),
    tuple("aeiou"),
    ("", "", *"lmnrt"),
)

# name → what a person may call it
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "airplane": ("plane", "aeroplane", "aircraft"), "bicycle": ("bike",), "car": ("automobile",),
    "burger": ("hamburger", "cheeseburger"), "doughnut": ("donut",), "television": ("tv",),
    "light bulb": ("bulb", "lamp"), "top hat": ("hat",), "sailboat": ("boat", "sailing boat"),
    "present": ("gift",), "shoe": ("sneaker", "trainer"), "shirt": ("t-shirt",),
    "phone": ("mobile phone", "smartphone"), "motorcycle": ("motorbike",),
    "ladybird": ("ladybug",), "football": ("soccer ball",), "truck": ("lorry",),
    "taxi": ("cab",), "crocodile": ("alligator",), "rabbit": ("bunny",), "die": ("dice",),
    "pair of glasses": ("glasses", "spectacles"), "pair of scissors": ("scissors",),
    "pair of cherries": ("cherries",), "pair of headphones": ("headphones",),
    "packet of fries": ("fries", "french fries"), "bunch of grapes": ("grapes",),
    "ice cream": ("ice cream cone",), "pepper": ("chili",), "beer": ("mug of beer",),
    "coffee": ("cup of coffee",), "wrench": ("spanner",), "lock": ("padlock",),
    "clover": ("four-leaf clover",), "leaf": ("maple leaf",), "eggplant": ("aubergine",),
}  # fmt: skip
# nano has not learnt which things belong to a class, so it neither counts nor denies these.
_CLASSES = """
animal pet insect fruit vegetable vehicle plant flower drink tool toy instrument shape object
thing item symbol icon creature machine building weapon snack
"""
CLASSES = tuple(_CLASSES.split())


def join_syllables(rng: random.Random) -> str:
    """Return a word without meaning of two or three syllables: "plonari"."""
    return "".join(rng.choice(part) for _ in range(rng.choice((2, 2, 3))) for part in _SYLLABLES)


def join_parts(rng: random.Random) -> str:
    """Return the beginning of one noun with the end of another, "kangarn", or of syllables.

    Nouns have other letters and tokens than syllables have. Joined at random, they cannot be learnt
    by heart either.
    """
    if rng.random() < 0.4:
        return join_syllables(rng)
    first, last = rng.sample(STRANGERS, 2)
    return first[: rng.randint(2, 5)] + last[-rng.randint(2, 5) :]


class Nouns(NamedTuple):
    """Words that nano cannot name: nouns of English, and made-up ones with their share."""

    strangers: tuple[str, ...]
    make_up: Callable[[random.Random], str]
    made_up: float


# Only a made-up word cannot be learnt by heart, so training has more of them than the measure.
TAUGHT_NOUNS = Nouns(STRANGERS, join_parts, 0.5)
MEASURED_NOUNS = Nouns(HELD_OUT_STRANGERS, join_syllables, 0.14)
_WORDS = {*STRANGERS, *HELD_OUT_STRANGERS, *THINGS, *SHAPES, *COLOURS}


def scene_to_names(scene: Scene) -> set[str]:
    """Return every name of what the scene has: "star", "red star", "airplane", "plane"."""
    named = [i for i in scene.items if i.kind in ("thing", "shape")]
    names = {i.name for i in named} | {item_to_name(i) for i in named}
    return names | {other for i in named for other in OTHER_NAMES.get(i.name, ())}


def sample_absent(scene: Scene, rng: random.Random, nouns: Nouns = TAUGHT_NOUNS) -> str:
    """Return a name of something that the scene lacks.

    It is a made-up word or another of ``nouns``, a thing, or a shape with or without a colour. Half
    of the coloured shapes differ from a shape of the scene in only the colour or the shape.
    """
    present = scene_to_names(scene)
    shown = [(i.colour, i.name) for i in scene.items if i.kind == "shape"]
    while True:
        kind = rng.random()
        if rng.random() < nouns.made_up:
            while (name := nouns.make_up(rng)) in _WORDS:
                pass
        elif kind < 0.42:
            name = rng.choice(tuple(THINGS))
        elif kind < 0.7:
            name = rng.choice(nouns.strangers)
        elif kind < 0.79:
            name = rng.choice(SHAPES)
        else:
            pair = rng.choice(tuple(COLOURS)), rng.choice(SHAPES)
            if shown and rng.random() < 0.5:
                other, keep = rng.choice(shown), rng.randrange(2)
                pair = (other[0], pair[1]) if keep else (pair[0], other[1])
            if pair in UNSEEN_PAIRS:
                continue
            name = " ".join(pair)
        if name not in present:
            return name


def ask_absent(
    kind: str, scene: Scene, rng: random.Random, nouns: Nouns = TAUGHT_NOUNS
) -> Query | None:
    """Ask for something (one of ``ABSENT_KINDS``) of what the scene lacks.

    None if the scene does not suit; pictures of nothing are left to ``grammar.ask_presence``.
    """
    if kind == "chart":
        return _ask_absent_value(scene, rng)
    if scene.kind == "nothing":
        return None
    name = sample_absent(scene, rng, nouns)
    if kind == "count":
        several = to_plural(name)
        question = "How many {p} are there?"
        return make_query(kind, f"There are no {several}.", "no", question, p=several)
    if kind == "relation":
        return _ask_absent_relation(scene, name, rng, nouns)
    question = {"colour": "What colour is the {a}?", "presence": "Is there {o} in the picture?",
                "place": "Where is the {a}?"}[kind]  # fmt: skip
    return make_query(kind, f"There is no {name}.", "no", question, a=name, o=with_article(name))


def _ask_absent_relation(scene: Scene, name: str, rng: random.Random, nouns: Nouns) -> Query:
    names, absent = [name], [name]
    singles = [n for n, items in _spoken(scene, rng).items() if len(items) == 1]
    if singles and rng.random() < 0.8:
        names.append(rng.choice(singles))
    else:
        other = sample_absent(scene, rng, nouns)
        while other == name:
            other = sample_absent(scene, rng, nouns)
        names.append(other)
        absent.append(other)
    a, b = rng.sample(names, 2)
    sentence = f"There is {' and '.join(f'no {n}' for n in (a, b) if n in absent)}."
    return make_query("relation", sentence, "no", "Where is the {a} relative to the {b}?", a=a, b=b)


def _ask_absent_value(scene: Scene, rng: random.Random) -> Query | None:
    if scene.kind not in ("chart", "table"):
        return None
    shown = {i.name for i in scene.items}
    letter = rng.choice([c for c in LETTERS if c not in shown])
    named = f"{'bar' if scene.kind == 'chart' else 'row'} {letter}"
    spoken = letter if rng.random() < 0.5 else named
    return make_query("chart", f"There is no {named}.", "no", "What is the value of {v}?", v=spoken)


def _spoken(scene: Scene, rng: random.Random) -> dict[str, list[Item]]:
    """Group things and shapes by what a person may call them: shapes by their bare name."""
    groups: dict[str, list[Item]] = {}
    chosen: dict[str, str] = {}
    for item in scene.items:
        if item.kind in ("thing", "shape"):
            names = OTHER_NAMES.get(item.name, (item.name,))
            groups.setdefault(chosen.setdefault(item.name, rng.choice(names)), []).append(item)
    return groups


def _number(items: list[Item]) -> str:
    name = items[0].name
    if len(items) == 1:
        return f"There is one {name}."
    return f"There are {NUMBERS[len(items)]} {to_plural(name)}."


def ask_spoken(kind: str, scene: Scene, rng: random.Random) -> Query | None:
    """Ask for something (one of ``SPOKEN_KINDS``) of what is there, in a name that captions lack.

    The sentence names it as captions do, a shape without its colour. nano does not learn the
    colours of things, so asked for one, it says only how many of the thing there are. None if the
    scene does not suit.
    """
    groups = _spoken(scene, rng)
    if kind == "colour":
        things = {name: items for name, items in groups.items() if items[0].kind == "thing"}
        if not things:
            return None
        name = rng.choice(list(things))
        return make_query(kind, _number(things[name]), "unknown", "What colour is the {a}?", a=name)
    other = {n: items for n, items in groups.items() if n != item_to_name(items[0])}
    single = {n: items[0] for n, items in groups.items() if len(items) == 1}
    if kind in ("place", "relation"):
        return _ask_where(kind, single, [n for n in other if n in single], rng)
    if not other:
        return None
    name = rng.choice(list(other))
    items = other[name]
    if kind == "count":
        plural = name if name.endswith("s") and " of " in items[0].name else to_plural(name)
        answer = NUMBERS[len(items)]
        return make_query(kind, _number(items), answer, "How many {p} are there?", p=plural)
    one = f"There is {with_article(items[0].name)}."
    sentence = one if len(items) == 1 else _number(items)
    question = "Is there {o} in the picture?"
    return make_query(kind, sentence, "yes", question, o=with_article(name))


def _ask_where(
    kind: str, single: dict[str, Item], other: list[str], rng: random.Random
) -> Query | None:
    if not other or (kind == "relation" and len(single) < 2):
        return None
    name = rng.choice(other)
    if kind == "place":
        place = PLACES[single[name].cell]
        sentence = f"The {single[name].name} is {place}."
        return make_query(kind, sentence, place, "Where is the {a}?", a=name)
    names = [name, rng.choice([n for n in single if n != name])]
    rng.shuffle(names)
    a, b = (single[n] for n in names)
    answer = cells_to_relation(a.cell, b.cell)
    sentence = f"The {a.name} is {answer} the {b.name}."
    question = "Where is the {a} relative to the {b}?"
    return make_query(kind, sentence, answer, question, a=names[0], b=names[1])


def ask_class(scene: Scene, rng: random.Random) -> Query | None:
    """Ask for a class of things: the caption ends as without a focus."""
    if scene.kind != "mixed":
        return None
    name = rng.choice(CLASSES)
    kind = rng.choice(("count", "presence", "place", "colour"))
    return make_query(
        kind, scene_to_relation(scene), "unknown", "Is there {o} in the picture?",
        a=name, o=with_article(name), p=to_plural(name),
    )  # fmt: skip
