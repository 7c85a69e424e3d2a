"""Measure what nano says of what is not there: ``python -m …measure.absent ASSETS``.

Captions held-out scenes with a focus on something that the scene lacks and counts the captions that
deny exactly that, as "There is no apple." or "There are no apples." does. The converse: captions
with a focus on something in the picture that deny anything. Half of the focuses have the form that
a reasoner's focus has (`edgeprism/reason/focus.py`), half a wording that training never had. The
absent things include nouns that training never had, and words without meaning.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgeprism.evaluation.statistics import bootstrap_interval
from edgeprism.models.nano.recipe.measure.captions import Describe, bundle_to_describe
from edgeprism.models.nano.recipe.measure.scoring import carries
from edgeprism.models.nano.recipe.world.absent import (
    ABSENT_KINDS,
    HELD_OUT_STRANGERS,
    MEASURED_NOUNS,
    SPOKEN_KINDS,
    ask_absent,
    ask_class,
    ask_spoken,
)
from edgeprism.models.nano.recipe.world.draw import Assets, scene_to_image
from edgeprism.models.nano.recipe.world.grammar import ASK, Query, list_then
from edgeprism.models.nano.recipe.world.scene import SHAPES, Sampling, Scene
from edgeprism.models.nano.recipe.world.sheets import sample_scene
from edgeprism.models.nano.recipe.world.things import HELD_OUT_STYLE, THINGS, to_plural

# As the runtime's shape of a focus makes them; of each kind, training has only the first.
SHAPED: dict[str, tuple[str, ...]] = {
    "colour": ("the colour of the {a}", "colours of the {a}"),
    "count": ("the number of {p}", "the amount of {p}"),
    "relation": (
        "the position of the {a} relative to the {b}", "where the {a} relative to the {b}",
    ),
    "presence": ("whether there is {o}",),
    "chart": ("the value of {v}", "value of {v}"),
    "place": ("the position of the {a}", "where the {a}"),
}  # fmt: skip
REASONERS, HELD_OUT = "a reasoner's wording", "a wording that training never had"
_DENIAL = re.compile(r"There (?:is|are) (no [^.]+)\.")
_KNOWN = {*THINGS, *SHAPES, *map(to_plural, (*THINGS, *SHAPES))}


@dataclass(frozen=True)
class Case:
    """One focus on one scene, and the rows of the table that it counts for."""

    scene: Scene
    query: Query
    focus: str
    rows: tuple[str, ...]


def caption_to_denied(caption: str) -> list[str]:
    """Return the names that a caption denies: "There is no cat and no dog." → ["cat", "dog"]."""
    parts = (part for text in _DENIAL.findall(caption) for part in text.split(" and "))
    return [part.removeprefix("no ") for part in parts]


def _same(name: str, other: str) -> bool:
    return name == other or to_plural(name) == other or name == to_plural(other)


def denies(query: Query, caption: str) -> bool:
    """Return whether a caption denies all that the query's sentence denies, and nothing else."""
    expected, denied = caption_to_denied(query.sentence), caption_to_denied(caption)
    return all(any(_same(d, e) for d in denied) for e in expected) and all(
        any(_same(d, e) for e in expected) for d in denied
    )


def asserts(case: Case, caption: str) -> bool:
    """Return whether a caption says that something is there which the query's sentence denies."""
    claims, truth = (
        _DENIAL.sub("", text)
        for text in (caption, list_then(case.scene, case.query.sentence))
    )  # fmt: skip
    return any(
        re.search(rf"\b{form}\b", claims) is not None and re.search(rf"\b{form}\b", truth) is None
        for name in caption_to_denied(case.query.sentence)
        for form in _name_to_forms(name, case.query.kind)
    )


def _name_to_forms(name: str, kind: str) -> tuple[str, ...]:
    """Return patterns of a name in a claim; of a bar or row: its letter with a value."""
    if kind == "chart":
        return (rf"{name[-1]} (?:is|with) \d+",)
    return re.escape(name), re.escape(to_plural(name))


def _name_row(name: str) -> str:
    """Return the row of an absent thing's name."""
    if name in _KNOWN:
        return "a thing or shape that it knows"
    if name.split()[-1] in _KNOWN:
        return "a known shape in another colour"
    if re.fullmatch("(bar|row) [A-Z]", name):
        return "a bar or row"
    held_out = {*HELD_OUT_STRANGERS, *map(to_plural, HELD_OUT_STRANGERS)}
    return "a noun that training never had" if name in held_out else "a word without meaning"


Ask = Callable[[Scene, random.Random], Query | None]


def _ask_held_out(
    name: str, ask: Ask, how: Sampling, seed: int, count: int
) -> Iterator[tuple[Scene, Query, dict[str, str]]]:
    """Yield ``count`` scenes, each with a query about it and its focuses by the row of wording."""
    number = found = 0
    while found < count:
        rng = random.Random(f"nano-wide/absent/{seed}/{name}/{number}")
        number += 1
        scene = sample_scene(rng, how)
        query = ask(scene, rng)
        if query is not None:
            found += 1
            shaped = rng.choice(SHAPED[query.kind]).format(**query.names)
            yield scene, query, {REASONERS: shaped, HELD_OUT: query.focuses[-1]}


def absent_cases(seed: int, count: int) -> list[Case]:
    """Return cases of ``count`` scenes for each kind of question.

    A third as many have pictures in the style that training never had.
    """
    cases = []
    for kind in ABSENT_KINDS:
        ask = partial(ask_absent, kind, nouns=MEASURED_NOUNS)
        for scene, query, focuses in _ask_held_out(kind, ask, Sampling(unseen=True), seed, count):
            names = dict.fromkeys(map(_name_row, caption_to_denied(query.sentence)))
            cases += [
                Case(scene, query, f, (kind, row, *names, "all")) for row, f in focuses.items()
            ]
    new_style = Sampling(True, (HELD_OUT_STYLE,), mixed=1.0)
    for kind in SPOKEN_KINDS:
        ask = partial(ask_absent, kind, nouns=MEASURED_NOUNS)
        for scene, query, focuses in _ask_held_out(
            f"{kind} in a new style", ask, new_style, seed, count // 3
        ):
            cases += [Case(scene, query, f, ("pictures in a new style",)) for f in focuses.values()]
    return cases


def present_cases(seed: int, count: int) -> list[Case]:
    """Return cases of ``count`` scenes for each way to ask for what is there."""

    def there(ask: Ask, scene: Scene, rng: random.Random) -> Query | None:
        query = ask(scene, rng)
        return None if query is None or query.answer == "no" else query

    ways: dict[str, Ask] = {
        **{kind: ask for kind, ask in ASK.items() if kind in SHAPED},
        **{f"{kind}, in another name": partial(ask_spoken, kind) for kind in SPOKEN_KINDS},
    }
    ways["a class (animals)"] = ask_class
    return [
        Case(scene, query, focus, (row, "all"))
        for row, ask in ways.items()
        for scene, query, focuses in _ask_held_out(
            f"present {row}", partial(there, ask), Sampling(unseen=True), seed, count
        )
        for focus in focuses.values()
    ]


def measure(describe: Describe, cases: list[Case], assets: Assets) -> list[str]:
    """Return the caption of each case."""
    return [describe(scene_to_image(case.scene, assets), case.focus) for case in cases]


Row = dict[str, float | tuple[float, float]]


def to_rows(cases: list[Case], columns: dict[str, list[bool]], seed: int) -> dict[str, Row]:
    """Return {row: number of cases, and each column's share; the first has an interval}."""
    table: dict[str, Row] = {}
    for row in dict.fromkeys(row for case in cases for row in case.rows):
        chosen = [i for i, case in enumerate(cases) if row in case.rows]
        table[row] = {"cases": len(chosen)}
        for number, (column, hits) in enumerate(columns.items()):
            some = [float(hits[i]) for i in chosen]
            table[row][column] = sum(some) / len(some)
            if number == 0:
                table[row]["interval"] = bootstrap_interval(some, seed=seed)
    return table


def evaluate(
    describe: Describe, assets: Assets, count: int, seed: int
) -> dict[str, dict[str, Row]]:
    """Return both tables."""
    absent, present = absent_cases(seed, count), present_cases(seed, count // 2)
    texts = measure(describe, absent, assets)
    wrong = [asserts(c, t) for c, t in zip(absent, texts, strict=True)]
    right = [
        denies(c.query, t) and not w for c, t, w in zip(absent, texts, wrong, strict=True)
    ]  # fmt: skip
    tables = {
        "absent": to_rows(absent, {"said to be absent": right, "said to be there": wrong}, seed)
    }
    texts = measure(describe, present, assets)
    columns = {
        "denied": [bool(caption_to_denied(t)) for t in texts],
        "the fact is in the caption": [
            carries(c.query, c.scene, t) for c, t in zip(present, texts, strict=True)
        ],
    }
    return tables | {"present": to_rows(present, columns, seed)}


def print_table(title: str, table: dict[str, Row]) -> None:
    """Print one line per row: cases, share and interval of the first column, the second's share."""
    columns = [c for c in next(iter(table.values())) if c not in ("cases", "interval")]
    print(f"{title:<36}{'cases':>6}{columns[0]:>20}{'95 % interval':>18}{columns[1]:>28}")
    for row, figures in table.items():
        low, high = figures["interval"]  # type: ignore[misc]
        between = f"{100 * low:.1f} to {100 * high:.1f}"
        shares = [figures[c] for c in columns]
        print(f"{row:<36}{figures['cases']:>6}{shares[0]:>20.1%}{between:>18}{shares[1]:>28.1%}")


def main(arguments: list[str] | None = None) -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("assets", type=Path, help="folder that the assets command has filled")
    parser.add_argument("--bundle", default="nano", help="name or folder of the bundle")
    parser.add_argument("--scenes", type=int, default=60, help="for each kind of question")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out scenes")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    if options.scenes < 3:
        parser.error("--scenes: at least 3")
    began = time.perf_counter()
    describe = bundle_to_describe(options.bundle)
    tables = evaluate(describe, Assets(options.assets), options.scenes, options.seed)
    print(f"{options.scenes} scenes for each kind, seed {options.seed},"
          f" {time.perf_counter() - began:.0f} s")  # fmt: skip
    print_table("focus on what is not there", tables["absent"])
    print_table("focus on what is there", tables["present"])
    if options.json is not None:
        options.json.write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
