"""Wordings of questions about scenes, with their answers and what must be looked at.

None of them is a wording of nano's. Each focus has the shape that the runtime sets: words of the
question, an opening, links.
"""

from __future__ import annotations

import random

from edgeprism.models.reader.recipe.world.text import UNKNOWN, Ask, a, number, pick, plural
from edgeprism.models.reader.recipe.world.things import RELATIONS, Thing
from edgeprism.models.reader.recipe.world.words import COLOURS, NUMBERS

COLOUR = (
    "Which colour is the {a}?", "What is the {a}'s colour?", "Name the colour of the {a}.",
    "What colour can be seen on the {a}?", "Of what colour is the {a}?", "The {a} is what colour?",
    "In which colour is the {a} shown?", "What color would you call the {a}?",
    "What colour does the {a} appear to be?", "State which colour the {a} shows.",
)  # fmt: skip
COLOURS_OF = (
    "Which colour are the {a}?", "What color are the {a}?", "Name the colour of the {a}.",
    "Of what colour are the {a}?", "In which colour are the {a} shown?",
    "What colour do the {a} have?", "The {a} are what colour?",
)  # fmt: skip
COUNT = (
    "How many {p} are visible?", "How many {p} can be made out?", "What is the total of {p}?",
    "How many {p} appear in the scene?", "Give the number of {p}.", "How many {p} can one find?",
    "How many {p} are mentioned?", "Exactly how many {p} are shown?",
    "What number of {p} is there?",
    "How many {p} does it show?", "How many {p} can you see here?", "{p}: how many?",
    "How many {p} does the photo have?", "How many {p} have been put there?",
)  # fmt: skip
PRESENT = (
    "Is {o} visible?", "Is {o} anywhere to be seen?", "Can one find {o} here?",
    "Is {o} part of the scene?", "Does the photo contain {o}?", "Can {o} be seen?",
    "Does {o} appear?", "Would you find {o} in this scene?", "Is {o} shown?",
    "Does it show {o}?", "Does the image include {o}?",
)  # fmt: skip
PRESENT_MANY = (
    "Are there any {p}?", "Are {p} in sight?", "Can any {p} be seen?", "Does it show any {p}?",
    "Are {p} visible?", "Is there any sign of {p}?",
)  # fmt: skip
PLACE = (
    "Where can the {a} be found?", "Whereabouts is the {a}?", "Where has the {a} been put?",
    "In what part of the photo is the {a}?", "Where does one find the {a}?",
    "Where do we see the {a}?", "What is the {a}'s place in the scene?",
)  # fmt: skip
RELATION = (
    "Where is the {a} in relation to the {b}?", "How is the {a} placed with respect to the {b}?",
    "Compared with the {b}, where is the {a}?", "Where is the {a}, as seen from the {b}?",
    "Taking the {b} as the reference, where is the {a}?",
    "What is the place of the {a} with regard to the {b}?",
    "How does the {a} lie with reference to the {b}?",
    "Where can the {a} be found with respect to the {b}?",
)  # fmt: skip
BACKDROP = (
    "Which colour is the background?", "What colour is behind the things?",
    "In front of which colour do they stand?", "What is the colour of the backdrop behind it?",
    "What colour has the backdrop?",
)  # fmt: skip
MATERIAL = (
    "What is the {a} made of?", "Which material is the {a}?", "Of what material is the {a}?",
    "What material was used for the {a}?",
)  # fmt: skip
SIZE = ("How big is the {a}?", "Which size has the {a}?", "What size is the {a}?")
NOT_SAID = (
    ("What is the weather like?", "the weather"), ("Who took the photo?", "the name"),
    ("What time of day is it?", "the time of day"), ("Which year is it?", "the year"),
    ("How old is the photographer?", "the photographer"), ("In which city is this?", "the city"),
    ("How much did it cost?", "the cost"), ("Why was this made?", ""),
    ("Which season does it show?", "the season"), ("What does the poster say?",
    "the text on the poster"),
    ("What brand is the sofa?", "the brand of the sofa"), ("How warm is the room?", "the room"),
    ("What text can be read?", "the text"), ("Which words are written there?", "the words"),
)  # fmt: skip


def _others(
    rng: random.Random, answer: str, among: tuple[str, ...], most: int = 3
) -> tuple[str, ...]:
    return tuple(rng.sample([w for w in among if w not in answer], most))


def colour(
    rng: random.Random, name: str, many: int, value: str, facts: tuple[int, ...]
) -> list[Ask]:
    """Ask for a colour; now and then whether the thing has a colour."""
    wrong = _others(rng, value, COLOURS)
    if rng.random() < 0.15:
        right = rng.random() < 0.5
        verb = "Is" if many == 1 else "Are"
        claim = value if right else wrong[0]
        question = pick(rng, ("{v} the {n} {c}?", "{v} the {n} of {c} colour?"),
                        v=verb, n=name, c=claim)  # fmt: skip
        answer = "yes" if right else "no"
        return [Ask(question, answer, f"the colour of the {name}", facts, kind="is colour")]
    question = pick(rng, COLOUR if many == 1 else COLOURS_OF, a=name)
    return [Ask(question, value, f"the colour of the {name}", facts, wrong, "colour")]


def count(rng: random.Random, names: str, value: int, facts: tuple[int, ...]) -> Ask:
    """Ask how many there are."""
    wrong = tuple(str(n) for n in rng.sample([n for n in range(10) if n != value], 3))
    answer = NUMBERS[value] if 0 < value < len(NUMBERS) else str(value)
    question = pick(rng, COUNT, p=names)
    return Ask(question, answer, f"the number of {names}", facts, wrong, "count")


def presence(
    rng: random.Random, name: str, answer: str, facts: tuple[int, ...], several: bool = False
) -> Ask:
    """Ask whether something is there."""
    if several or rng.random() < 0.2:
        names = plural(name)
        question = pick(rng, PRESENT_MANY, p=names)
        return Ask(question, answer, f"whether there are {names}", facts, kind="presence")
    question = pick(rng, PRESENT, o=a(name))
    return Ask(question, answer, f"whether there is {a(name)}", facts, kind="presence")


def relation(
    rng: random.Random, name: str, other: str, value: str, facts: tuple[int, ...]
) -> list[Ask]:
    """Ask how one thing stands to another; now and then whether it stands so."""
    focus = f"the position of the {name} relative to the {other}"
    wrong = _others(rng, value, tuple(r for r, _ in RELATIONS if value not in r))
    if rng.random() < 0.12:
        right = rng.random() < 0.5
        claim = value if right else next((r for r, _ in RELATIONS if r == _opposite(value)), "")
        if (claim and claim != value) or right:
            question = f"Is the {name} {claim} the {other}?"
            return [Ask(question, "yes" if right else "no", focus, facts, kind="is relation")]
    return [Ask(pick(rng, RELATION, a=name, b=other), value, focus, facts, wrong, "relation")]


def _opposite(value: str) -> str:
    return dict(RELATIONS).get(value, "")


def backdrop(rng: random.Random, value: str, fact: int) -> Ask:
    """Ask for the colour behind the things."""
    question = rng.choice(BACKDROP)
    focus = "the colour of the " + ("backdrop" if "backdrop" in question else "background")
    if focus.rpartition(" ")[2] not in question:
        focus = ""
    return Ask(question, value, focus, (fact,), _others(rng, value, COLOURS), "colour")


def thing(rng: random.Random, what: Thing, *, shared: bool) -> list[Ask]:
    """Ask everything about a kind of thing; `shared`: another kind has the same name."""
    facts, asks = (what.fact,), []
    names = plural(what.name)
    known = f"{what.colour} {what.name}" if what.colour else what.name
    if not shared or what.colour:
        named = known if shared or (what.colour and rng.random() < 0.4) else what.name
        asks += [count(rng, plural(named), what.count, facts) for _ in range(2)]
        asks.append(presence(rng, named, "yes", facts, several=what.count > 1))
    if what.colour and not shared:
        asks += colour(rng, what.name if what.count == 1 else names, what.count, what.colour, facts)
        if rng.random() < 0.15:
            other = rng.choice([c for c in COLOURS if c not in what.colour])
            asks.append(presence(rng, f"{other} {what.name}", "no", ()))
    if what.place and what.count == 1 and (not shared or what.colour):
        named = known if shared else what.name
        question = pick(rng, PLACE, a=named)
        asks.append(Ask(question, what.place, f"the position of the {named}", facts, kind="place"))
    if what.material and not shared:
        word = "is" if what.count == 1 else "are"
        named = what.name if what.count == 1 else names
        question = pick(rng, MATERIAL, a=named).replace(" is ", f" {word} ")
        asks.append(Ask(question, what.material, f"the material of the {named}", facts,
                        kind="material"))  # fmt: skip
    if what.size and what.count == 1 and not shared:
        asks.append(Ask(pick(rng, SIZE, a=what.name), what.size, f"the size of the {what.name}",
                        facts, kind="size"))  # fmt: skip
    if not what.colour and not shared and rng.random() < 0.3:
        named = what.name if what.count == 1 else names
        patterns = COLOUR if what.count == 1 else COLOURS_OF
        asks.append(Ask(pick(rng, patterns, a=named), UNKNOWN, f"the colour of the {named}",
                        kind="not said"))  # fmt: skip
    return asks


def said_absent(rng: random.Random, name: str, fact: int) -> list[Ask]:
    """Ask about a thing of which the description says that it is not there."""
    names, facts = plural(name), (fact,)
    none = "there is no " + name
    return [
        presence(rng, name, "no", facts),
        presence(rng, name, "no", facts),
        Ask(pick(rng, COUNT, p=names), "0", f"the number of {names}", facts,
            tuple(number(rng, n) for n in rng.sample(range(1, 7), 3)), "count"),
        rng.choice((
            Ask(pick(rng, COLOUR, a=name), none, f"the colour of the {name}", facts, kind="absent"),
            Ask(pick(rng, PLACE, a=name), none, f"the position of the {name}", facts,
                kind="absent"),
        )),
    ]  # fmt: skip


def unmentioned(rng: random.Random, name: str) -> list[Ask]:
    """Ask about a thing that the description does not mention."""
    names = plural(name)
    return [
        presence(rng, name, "no", ()),
        rng.choice((
            Ask(pick(rng, COUNT, p=names), "0", f"the number of {names}", (), kind="count"),
            Ask(pick(rng, COLOUR, a=name), UNKNOWN, f"the colour of the {name}", kind="not said"),
            Ask(pick(rng, PLACE, a=name), UNKNOWN, f"the position of the {name}", kind="not said"),
        )),
    ]  # fmt: skip


def nothing_said(rng: random.Random) -> Ask:
    """Ask what descriptions of things do not say."""
    question, focus = rng.choice(NOT_SAID)
    return Ask(question, UNKNOWN, focus, kind="not said")
