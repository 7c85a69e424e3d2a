"""Prose about people and animals: who wears, holds and does what, who does not, and how many."""

from __future__ import annotations

import random
from dataclasses import dataclass

from edgeprism.models.reader.recipe.world.text import UNKNOWN, Ask, Passage, a, mark, pick, plural
from edgeprism.models.reader.recipe.world.words import (
    ACTIONS,
    CLOTHES,
    COLOURS,
    NAMES,
    NUMBERS,
    PEOPLE,
    THINGS,
    VEHICLES,
)

SETTINGS = (
    "in a narrow street", "at a railway station", "on a sandy beach", "in a crowded market",
    "in a small kitchen", "beside a frozen lake", "in front of a brick wall", "in a classroom",
    "on a wooden pier", "in a sunlit courtyard", "at the edge of a forest",
    "in a hospital corridor",
    "on a wide lawn", "in a workshop", "on a rooftop", "in a library",
)  # fmt: skip
TIMES = (("at dusk", "dusk"), ("in the early morning", "the early morning"), ("at noon", "noon"),
         ("at night", "night"), ("on a foggy afternoon", "a foggy afternoon"),
         ("in winter", "winter"), ("in late autumn", "late autumn"), ("in spring",
         "spring"))  # fmt: skip
WEATHER = (("It is raining.", "raining"), ("Snow covers the ground.", "snowy"),
           ("The sky is overcast.", "overcast"), ("The weather is sunny.", "sunny"),
           ("A strong wind blows.", "windy"), ("Fog hides the hills.", "foggy"))  # fmt: skip
MOODS = ("happy", "tired", "angry", "bored", "surprised", "proud", "worried", "relaxed", "serious")
HAIR = ("grey", "black", "red", "blond", "brown", "white", "curly", "short", "long", "braided")
HOLD = ("holds {o}", "is holding {o}", "carries {o}", "has {o} in one hand", "is carrying {o}")
WEAR = ("wears {c}", "is wearing {c}", "is dressed in {c}", "has {c} on")
ENDS = ("The scene feels calm.", "Overall, it is an everyday moment.",
"The focus is on the people.",
        "It looks like an ordinary day.", "All is quiet.")  # fmt: skip


@dataclass
class Person:
    """A person, and the facts that state clothing, object, action, mood, and what is lacking."""

    who: str
    garment: str
    colour: str
    thing: str
    thing_colour: str
    action: str
    mood: str


def _person(rng: random.Random, who: str, used: set[str]) -> Person:
    def new(words: tuple[str, ...]) -> str:
        word = rng.choice([w for w in words if w not in used])
        used.add(word)
        return word

    return Person(who, new(CLOTHES), new(COLOURS), new(THINGS), new(COLOURS), new(ACTIONS),
                  new(MOODS))  # fmt: skip


def _clothing(rng: random.Random, passage: Passage, person: Person) -> str:
    fact = passage.fact()
    who, garment, colour = person.who, person.garment, person.colour
    wrong = tuple(rng.sample([c for c in COLOURS if c not in colour], 3))
    passage.asks += [
        Ask(pick(rng, ("Which colour is the {w}'s {g}?", "What colour {g} does the {w} wear?",
                       "What color is the {g} of the {w}?", "Of what colour is the {w}'s {g}?"),
                 w=who, g=garment),
            colour, "", (fact,), wrong, "colour"),
        Ask(pick(rng, ("What does the {w} wear?", "What is the {w} wearing?",
                       "What has the {w} got on?"), w=who),
            a(f"{colour} {garment}"), f"the clothing of the {who}", (fact,), kind="clothing"),
        Ask(pick(rng, ("Who wears the {g}?", "Who is wearing {c}?", "Who has {c} on?"),
                 g=garment, c=a(f"{colour} {garment}")),
            f"the {who}", f"the {garment}", (fact,), kind="who"),
    ]  # fmt: skip
    return mark(fact, pick(rng, WEAR, c=a(f"{colour} {garment}")))


def _holding(rng: random.Random, passage: Passage, person: Person) -> str:
    fact = passage.fact()
    coloured = rng.random() < 0.6
    thing = f"{person.thing_colour} {person.thing}" if coloured else person.thing
    who = person.who
    passage.asks += [
        Ask(pick(rng, ("What does the {w} hold?", "What is in the {w}'s hand?",
                       "Which object does the {w} carry?", "What is the {w} carrying?"), w=who),
            a(thing), f"the {who}", (fact,), kind="object"),
        Ask(pick(rng, ("Who holds the {t}?", "Who carries {o}?", "Who has the {t}?"),
                 t=person.thing, o=a(person.thing)),
            f"the {who}", f"the {person.thing}", (fact,), kind="who"),
        Ask(pick(rng, ("Does the {w} hold {o}?", "Is the {w} carrying {o}?"), w=who,
                 o=a(person.thing)), "yes", f"whether there is {a(person.thing)}", (fact,),
            kind="presence"),
    ]  # fmt: skip
    if coloured:
        passage.asks.append(
            Ask(pick(rng, ("Which colour is the {t}?", "What is the {t}'s colour?",
                           "The {t} is of what colour?"), t=person.thing),
                person.thing_colour, f"the colour of the {person.thing}", (fact,),
                (person.colour,), "colour")
        )  # fmt: skip
    return mark(fact, pick(rng, HOLD, o=a(thing)))


def _acting(rng: random.Random, passage: Passage, person: Person) -> str:
    fact, who = passage.fact(), person.who
    wrong = tuple(rng.sample([x for x in ACTIONS if x != person.action], 3))
    passage.asks += [
        Ask(pick(rng, ("What does the {w} do?", "What is the {w} doing?",
                       "What is the {w} busy with?", "How is the {w} occupied?"), w=who),
            person.action, f"the activity of the {who}", (fact,), wrong, "activity"),
        Ask(f"Who is {person.action}?", f"the {who}", "", (fact,), kind="who"),
        Ask(f"Is the {who} {wrong[0]}?", "no", f"the activity of the {who}", (fact,),
            kind="presence"),
        Ask(f"Is the {who} {person.action}?", "yes", f"the activity of the {who}", (fact,),
            kind="presence"),
    ]  # fmt: skip
    return mark(fact, f"is {person.action}")


def _lacking(rng: random.Random, passage: Passage, person: Person) -> str:
    """A sentence that denies something of a person, with questions about it."""
    fact, who = passage.fact(), person.who
    garment = rng.choice([c for c in CLOTHES if c not in passage.text])
    passage.asks += [
        Ask(pick(rng, ("Does the {w} wear {g}?", "Is the {w} wearing {g}?", "Has the {w} {g} on?"),
                 w=who, g=a(garment)), "no", f"the clothing of the {who}", (fact,),
            kind="presence"),
        Ask(pick(rng, ("Which colour is the {w}'s {g}?", "What colour is the {g} of the {w}?"),
                 w=who, g=garment), f"there is no {garment}", "", (fact,), kind="absent"),
    ]  # fmt: skip
    return mark(fact, pick(rng, (
        "The {w} does not wear {g}.", "The {w} is not wearing {g}.", "There is no {n} on the {w}.",
        "The {w} is without {g}.", "The {w} has no {n}.",
    ), w=who, g=a(garment), n=garment))  # fmt: skip


def _setting(rng: random.Random, passage: Passage) -> str:
    place, time = rng.choice(SETTINGS), None
    fact = passage.fact()
    text = mark(fact, place)
    passage.asks.append(Ask(rng.choice(("Where does this take place?", "Where are they?",
                                        "In which setting was the photo taken?",
                                        "What is the place of the scene?")),
                            place, "", (fact,), kind="place"))  # fmt: skip
    if rng.random() < 0.5:
        time, when = rng.choice(TIMES)
        moment = passage.fact()
        text += " " + mark(moment, time)
        passage.asks.append(Ask(rng.choice(("When was it taken?", "What time or season is it?",
                                            "When does the scene take place?")),
                                when, "", (moment,), kind="time"))  # fmt: skip
    return text


def sample_people(rng: random.Random) -> Passage:
    """Return prose about one to three people."""
    passage, used = Passage(), set[str]()
    names = rng.sample(PEOPLE, rng.choice((1, 2, 2, 3)))
    if rng.random() < 0.3:
        passage.say(f"The image captures a scene {_setting(rng, passage)}.")
    for index, who in enumerate(names):
        person = _person(rng, who, used)
        parts = rng.sample((_clothing, _holding, _acting), rng.randint(1, 3))
        told = [part(rng, passage, person) for part in parts]
        subject = a(who) if index == 0 or rng.random() < 0.6 else f"The {who}"
        if len(told) > 1 and rng.random() < 0.5:
            text = f"{subject} {told[0]}"
            text += rng.choice((" and ", ", and ")) + " and ".join(told[1:])
            text += f" {_setting(rng, passage)}" if index == 0 and rng.random() < 0.3 else ""
            passage.say(text + ".")
        elif index and rng.random() < 0.4:
            passage.text = passage.text.rstrip(".") + f", while {a(who)} {told[0]}."
            for more in told[1:]:
                passage.say(f"The {who} {more}.")
        else:
            for more in told:
                passage.say(f"{subject} {more}.")
                subject = f"The {who}"
        if rng.random() < 0.25:
            passage.say(_lacking(rng, passage, person))
        if rng.random() < 0.2:
            _mood(rng, passage, person)
    _crowd(rng, passage, names)
    other = rng.choice([w for w in PEOPLE if w not in names and w not in passage.text])
    passage.asks += [
        Ask(f"What does the {other} wear?", UNKNOWN, f"the clothing of the {other}"),
        Ask(f"What is the {names[0]}'s name?", UNKNOWN, f"the name of the {names[0]}"),
        Ask(pick(rng, ("How old is the {w}?", "Where does the {w} come from?",
                       "Is the {w} married?", "How tall is the {w}?"), w=names[0]), UNKNOWN, ""),
    ]  # fmt: skip
    return passage


def _mood(rng: random.Random, passage: Passage, person: Person) -> None:
    fact = passage.fact()
    passage.say(mark(fact, pick(rng, ("The {w} looks {m}.", "The {w} seems {m}."), w=person.who,
                                m=person.mood)))  # fmt: skip
    question = pick(rng, ("How does the {w} look?", "What mood is the {w} in?",
                          "Which expression does the {w} have?"), w=person.who)  # fmt: skip
    passage.asks.append(Ask(question, person.mood, f"the expression of the {person.who}", (fact,),
                            tuple(rng.sample([m for m in MOODS if m != person.mood], 3)),
                            "mood"))  # fmt: skip


def _crowd(rng: random.Random, passage: Passage, names: list[str]) -> None:
    """Add a number of people, the weather, a name on a vehicle, or an ending."""
    if rng.random() < 0.35:
        value, fact = rng.randint(2, 15), passage.fact()
        kind = rng.choice([w for w in PEOPLE if w not in names])
        passage.say(mark(fact, pick(rng, (
            "In the background, {n} {p} are waiting.", "Behind them stand {n} {p}.",
            "{n} {p} pass by.", "A group of {n} {p} looks on.", "{n} {p} sit further away.",
        ), n=NUMBERS[value], p=plural(kind))))  # fmt: skip
        passage.asks.append(Ask(pick(rng, ("How many {p} are in the background?",
                                           "How many {p} can be counted?", "How many {p} appear?",
                                           "What is the number of the {p}?"), p=plural(kind)),
                                NUMBERS[value], f"the number of {plural(kind)}", (fact,),
                                kind="count"))  # fmt: skip
    if rng.random() < 0.25:
        sentence, answer = rng.choice(WEATHER)
        fact = passage.fact()
        passage.say(mark(fact, sentence))
        passage.asks.append(Ask(rng.choice(("What is the weather like?", "How is the weather?")),
                                answer, "the weather", (fact,), kind="weather"))  # fmt: skip
    if rng.random() < 0.2:
        vehicle, name, fact = rng.choice(VEHICLES), rng.choice(NAMES), passage.fact()
        passage.say(mark(fact, f'{a(vehicle)} with the name "{name}" is parked nearby.'))
        passage.asks.append(Ask(pick(rng, ("What is the name of the {v}?",
                                           "Which name is on the {v}?"), v=vehicle),
                                name, f"the name on the {vehicle}", (fact,),
                                kind="text"))  # fmt: skip
    if rng.random() < 0.2:
        passage.say(rng.choice(ENDS))
