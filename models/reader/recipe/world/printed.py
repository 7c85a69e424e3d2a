"""Printed text on things, and records of named fields: receipts, invitations, labels, pages."""

from __future__ import annotations

import random
import string
from collections.abc import Callable

from edgeprism.models.reader.recipe.world.text import UNKNOWN, Ask, Passage, a, mark, pick
from edgeprism.models.reader.recipe.world.words import (
    BRANDS,
    CITIES,
    COLOURS,
    DAYS,
    MATERIALS,
    MONTHS,
    NAMES,
    PRINTED,
    SAYINGS,
    SURNAMES,
    THINGS,
)

CARRIERS = ("sign", "poster", "label", "banner", "board", "plate", "wrapper", "cover", "ticket",
            "package", "screen", "wall", "side of the van", "shop front", "page",
            "sticker")  # fmt: skip
STATED = (
    'A {c} says "{t}".', 'The {c} carries the words "{t}".', '"{t}" is written on the {c}.',
    'On the {c} one reads "{t}".', 'The {c} shows the inscription "{t}".', 'The {c} reads: "{t}".',
    "The {c} says {t}.", 'The lettering on the {c} is "{t}".', 'It is labelled "{t}".',
    'There is a {c} with "{t}" on it.', 'The writing on it says "{t}".', 'It says "{t}".',
)  # fmt: skip
READ = (
    "What can be read on the {c}?", "What does the {c} say?", "Which words stand on the {c}?",
    "What is the inscription on the {c}?", "What has been written on the {c}?",
    "What text does the {c} carry?",
)  # fmt: skip
READ_ANY = (
    "What can be read?", "Which words can be read?", "What does the lettering say?",
    "Quote the lettering.", "What text appears?", "What inscription is there?",
    "What has been written there?", "Which text is visible?", "What reads the print?",
)  # fmt: skip
UNWRITTEN = (
    "There is no {w} on the {c}.", "The {c} has no {w}.", "No {w} is visible.",
    "The {c} carries no {w}.", "No {w} can be read.", "The image contains no {w}.",
    "Nowhere is there any {w}.", "No {w} appears in it.",
)  # fmt: skip
WRITING = ("text", "text", "writing", "lettering", "text", "print")


def scramble(rng: random.Random) -> str:
    """Return random characters, as on plates and labels: letters, digits or both."""
    kind = rng.random()
    letters = "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(2, 6)))
    digits = str(rng.randint(0, 10 ** rng.randint(1, 5)))
    if kind < 0.4:
        return letters
    return digits if kind < 0.75 else f"{letters}{rng.choice(('-', ' ', ''))}{digits}"


def sample_print(rng: random.Random) -> Passage:
    """Return what is written somewhere, or that nothing is."""
    passage = Passage()
    carrier = rng.choice(CARRIERS)
    thing = rng.choice(THINGS)
    if rng.random() < 0.6:
        passage.say(pick(rng, ("The photo shows {x} and a {c}.", "A {c} beside {x}.", "A {c}.",
                               "{x} can be seen with a {c}.", "This is a close-up of a {c}."),
                         x=a(f"{rng.choice(COLOURS)} {thing}"), c=carrier))  # fmt: skip
    fact = passage.fact()
    if rng.random() < 0.2:
        word = rng.choice(WRITING)
        passage.say(mark(fact, pick(rng, UNWRITTEN, c=carrier, w=word)))
        for _ in range(2):
            question = pick(rng, (*READ, *READ_ANY, *READ_ANY), c=carrier)
            passage.asks.append(Ask(question, f"no {word}", _reading(question, carrier), (fact,),
                                    kind="no text"))  # fmt: skip
        passage.asks.append(Ask(rng.choice((f"Is there any {word}?", f"Can any {word} be read?")),
                                "no", "", (fact,), kind="presence"))  # fmt: skip
        return passage
    text = rng.choice((rng.choice(PRINTED), rng.choice(SAYINGS), scramble(rng), scramble(rng)))
    pattern = rng.choice(STATED)
    passage.say(mark(fact, pattern.format(c=carrier, t=text)))
    wrong = tuple(rng.sample([p for p in PRINTED if p != text], 3))
    for _ in range(2):
        question = pick(
            rng, READ if "{c}" in pattern and rng.random() < 0.4 else READ_ANY, c=carrier
        )
        passage.asks.append(
            Ask(question, text, _reading(question, carrier), (fact,), wrong, "text")
        )
    if text.isdigit():
        passage.asks.append(Ask(rng.choice(("Which number can be read?", "What number is on it?",
                                            "Which digits appear?")),
                                text, "the number", (fact,), kind="text"))  # fmt: skip
    passage.asks.append(Ask(rng.choice(("Is any text visible?", "Is something written there?")),
                            "yes", "", (fact,), kind="presence"))  # fmt: skip
    if rng.random() < 0.3:
        passage.say(rng.choice(("The letters are bold.", "The paint is peeling.",
                                "The print is small.", "The light is dim.")))  # fmt: skip
    return passage


def _reading(question: str, carrier: str) -> str:
    words = carrier.split(" of ")[0]
    return f"the text on the {words}" if carrier in question else "the text"


Field = tuple[str, str, str]  # name, value, question


def _receipt(rng: random.Random) -> tuple[str, list[Field]]:
    lines: list[Field] = []
    total = 0
    for name in rng.sample(THINGS, rng.randint(1, 4)):
        cents = rng.randint(50, 4000)
        total += cents
        lines.append((name.capitalize(), f"{cents / 100:.2f}", f"How much does the {name} cost?"))
    lines.append(("Total", f"{total / 100:.2f}", "What is the total?"))
    lines.append(("Date", f"{rng.randint(1, 28)} {rng.choice(MONTHS)}", "Which date is given?"))
    return f"Receipt of {rng.choice(BRANDS)} {rng.choice(('Market', 'Store', 'Foods'))}", lines


def _appointment(rng: random.Random) -> tuple[str, list[Field]]:
    person = f"{rng.choice(NAMES)} {rng.choice(SURNAMES)}"
    return rng.choice(("Appointment", "Invitation", "Calendar entry", "Conference badge")), [
        ("Name", person, "Whose name is given?"),
        ("Day", rng.choice(DAYS), "On which day is it?"),
        ("Time", f"{rng.randint(8, 21)}:{rng.choice(('00', '15', '30', '45'))}",
         "At what time does it begin?"),
        ("Place", f"Room {rng.randint(1, 400)}", "In which room is it?"),
        ("City", rng.choice(CITIES), "In which city does it take place?"),
    ]  # fmt: skip


def _departure(rng: random.Random) -> tuple[str, list[Field]]:
    lines: list[Field] = []
    for city in rng.sample(CITIES, rng.randint(2, 4)):
        gate = f"{rng.choice('ABCDE')}{rng.randint(1, 40)}"
        hour = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
        lines.append(rng.choice((
            (city, hour, f"When is the departure to {city}?"),
            (city, f"gate {gate}", f"Which gate is for {city}?"),
            (city, rng.choice(("delayed", "on time", "cancelled", "boarding")),
             f"What is the status of the departure to {city}?"),
        )))  # fmt: skip
    return "Departures", lines


def _product(rng: random.Random) -> tuple[str, list[Field]]:
    thing = rng.choice(THINGS)
    return f"{rng.choice(BRANDS)} {thing}", [
        ("Material", rng.choice(MATERIALS), f"Of which material is the {thing}?"),
        ("Colour", rng.choice(COLOURS), f"In which colour does the {thing} come?"),
        ("Weight", f"{rng.randint(1, 90) / 10} kg", f"What does the {thing} weigh?"),
        ("Height", f"{rng.randint(5, 220)} cm", f"How tall is the {thing}?"),
        ("Price", f"{rng.randint(3, 900)} euros", f"What is the price of the {thing}?"),
        ("Warranty", f"{rng.randint(1, 10)} years", "How long is the warranty?"),
        ("Made in", rng.choice(CITIES), f"Where was the {thing} made?"),
    ]  # fmt: skip


def _settings(rng: random.Random) -> tuple[str, list[Field]]:
    return rng.choice(("Settings", "A settings screen", "Control panel")), [
        ("Volume", f"{rng.randint(0, 100)}%", "What is the volume set to?"),
        ("Language", rng.choice(("German", "French", "Spanish", "Polish", "Thai")),
         "Which language is selected?"),
        ("Bluetooth", rng.choice(("on", "off")), "Is Bluetooth on or off?"),
        ("Battery", f"{rng.randint(1, 100)}%", "How full is the battery?"),
        ("Storage used", f"{rng.randint(1, 255)} GB", "How much storage is used?"),
        ("Brightness", rng.choice(("low", "medium", "high")), "How is the brightness set?"),
    ]  # fmt: skip


RECORDS: tuple[Callable[[random.Random], tuple[str, list[Field]]], ...] = (
    _receipt, _appointment, _departure, _product, _settings,
)  # fmt: skip


def _tell_field(rng: random.Random, name: str, value: str) -> str:
    return pick(rng, ("The {n} is given as {v}.", "{n}: {v}.", "Under {n} it says {v}.",
                      "It lists {v} as the {n}.", "{n} is {v}, as printed."),
                n=name.lower() if rng.random() < 0.5 else name, v=value)  # fmt: skip


def sample_record(rng: random.Random) -> Passage:
    """Return a receipt, an invitation, a board of departures, a product or a settings page."""
    passage = Passage()
    title, fields = rng.choice(RECORDS)(rng)
    fields = rng.sample(fields, rng.randint(min(2, len(fields)), len(fields)))
    passage.say(title if rng.random() < 0.6 else f"The image shows this: {title}.")
    prose = title != "Departures" and rng.random() < 0.4
    if prose:
        passage.text = passage.text.rstrip(".") + "."
    middle = rng.choice((": ", " ", " - ", "  ", " | "))
    for name, value, question in fields:
        fact = passage.fact()
        if prose:
            passage.say(mark(fact, _tell_field(rng, name, value)))
        else:
            passage.text += "\n" + mark(fact, f"{name}{middle}{value}")
        wrong = tuple(v for n, v, _ in fields if n != name)[:3]
        passage.asks.append(Ask(question, value, _field_focus(question, name), (fact,), wrong,
                                "field"))  # fmt: skip
    missing = rng.choice(("What is the telephone number?", "Who signed it?",
                          "Which e-mail address is given?", "What is the discount?",
                          "How many pages does it have?"))  # fmt: skip
    passage.asks.append(Ask(missing, UNKNOWN, kind="not said"))
    return passage


def _field_focus(question: str, name: str) -> str:
    return f"the {name.lower()}" if f" {name.lower()}" in question.lower() else ""
