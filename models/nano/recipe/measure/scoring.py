"""Score captions: read their claims from the words and compare them with the scene."""

from __future__ import annotations

import re
from collections import Counter

from edgeprism.models.nano.recipe.world.grammar import NUMBERS, Query, item_to_name
from edgeprism.models.nano.recipe.world.plain_grammar import cells_to_relation, either
from edgeprism.models.nano.recipe.world.scene import (
    COLOURS,
    SHAPES,
    SIZES,
    Group,
    Item,
    Scene,
    scene_to_groups,
)
from edgeprism.models.nano.recipe.world.things import THINGS, to_plural

_NAMES = {to_plural(n): n for n in (*THINGS, *SHAPES)} | {n: n for n in (*THINGS, *SHAPES)}
_NAMED = re.compile(rf"\b({either(_NAMES)})\b")
_GROUP = re.compile(
    rf"\b(an?|{'|'.join(NUMBERS)}) (?:(?:{either(SIZES)}) )?(?:({either(COLOURS)}) )?"
    rf"({either(_NAMES)})\b"
)
_PRINTED = re.compile(r'"([^"]*)"')
_VALUE = re.compile(r"\b([A-Z]) (?:is|with) (\d+)")
_RELATION = re.compile(
    r"The ([a-z ]+?) is "
    r"((?:above|below)(?: and to the (?:left|right) of)?|to the (?:left|right) of) the ([a-z ]+?)\."
)


def to_number(word: str) -> int:
    """Convert a number word to the number."""
    return 1 if word in ("a", "an") else NUMBERS.index(word)


def _groups(scene: Scene) -> list[Group]:
    return [g for g in scene_to_groups(scene) if g.first.kind in ("thing", "shape")]


def _singles_to_cells(scene: Scene) -> dict[str, int]:
    groups = scene_to_groups(scene)
    return {item_to_name(g.first): g.first.cell for g in groups if len(g.items) == 1}


def _relation_holds(scene: Scene, a: str, relation: str, b: str) -> bool:
    cells = _singles_to_cells(scene)
    return (
        a in cells and b in cells and a != b and cells_to_relation(cells[a], cells[b]) == relation
    )


def score_caption(scene: Scene, caption: str) -> dict[str, list[bool]]:
    """Return {row of the table: hits and misses of this caption}."""
    hits: dict[str, list[bool]] = {}
    if scene.kind == "nothing":
        return {"nothing known": ["nothing here that I know" in caption]}
    if scene.kind in ("chart", "table"):
        values = {letter: int(value) for letter, value in _VALUE.findall(caption)}
        tolerance = 1 if scene.kind == "chart" else 0
        row = "bar within one step" if scene.kind == "chart" else "table value exact"
        return {row: [abs(values.get(i.name, -99) - i.value) <= tolerance for i in scene.items]}
    plain = _PRINTED.sub("", caption).lower()
    groups = _groups(scene)
    named = {_NAMES[n] for n in _NAMED.findall(plain)}
    things = [g.first.name for g in groups if g.first.kind == "thing"]
    hits["named"] = [name in named for name in things]
    hits["named though absent"] = [name not in things for name in named if name in THINGS]
    claims: dict[tuple[str, str], int] = Counter()
    for number, colour, name in _GROUP.findall(plain):
        claims[_NAMES[name], colour] = max(claims[_NAMES[name], colour], to_number(number))
    shapes = [g for g in groups if g.first.kind == "shape"]
    hits["colour and shape"] = [(g.first.name, g.first.colour) in claims for g in shapes]
    hits["colour"] = [
        (g.first.name, g.first.colour) in claims for g in shapes if g.first.name in named
    ]
    counts = [(g, claims.get((g.first.name, g.first.colour))) for g in groups]
    hits["count"] = [count == len(g.items) for g, count in counts if count is not None]
    hits["count of several"] = [
        count == len(g.items) for g, count in counts if count is not None and len(g.items) > 1
    ]
    singles = [g for g in scene_to_groups(scene) if len(g.items) == 1]
    if len(singles) >= 2:
        match = _RELATION.search(caption)
        right = match is not None and _relation_holds(scene, *match.groups())
        hits["relation"] = [right]
        cells = _singles_to_cells(scene)
        both = match is not None and match[1] in cells and match[3] in cells
        hits["relation of items named"] = [right] if both else []
    texts = [i.name for i in scene.items if i.kind == "text"]
    printed = _PRINTED.findall(caption)
    hits["word exact"] = [text in printed for text in texts if not text.isdigit()]
    hits["number exact"] = [text in printed for text in texts if text.isdigit()]
    return hits


ROWS = ("named", "named though absent", "colour", "colour and shape", "count", "count of several",
        "relation", "relation of items named", "word exact", "number exact",
        "bar within one step", "table value exact", "nothing known")  # fmt: skip


def score_captions(scenes: list[Scene], captions: list[str]) -> dict[str, float]:
    """Return the shares over many captions by row, without rows that no scene tests."""
    hits: dict[str, list[bool]] = {row: [] for row in ROWS}
    for scene, caption in zip(scenes, captions, strict=True):
        for row, some in score_caption(scene, caption).items():
            hits[row] += some
    return {row: sum(some) / len(some) for row, some in hits.items() if some}


def _has_claim(item: Item, caption: str, count: int) -> bool:
    return any(
        to_number(number) == count and _NAMES[name] == item.name and colour in ("", item.colour)
        for number, colour, name in _GROUP.findall(_PRINTED.sub("", caption).lower())
    )


def carries(query: Query, scene: Scene, caption: str) -> bool:
    """Return whether the caption holds the fact that the query asks for, in any sentence."""
    if query.sentence in caption:
        return True
    body = _PRINTED.sub("", caption)
    if query.kind == "colour":
        shape = query.sentence.split()[1]
        return f"{query.answer} {shape}" in body
    if query.kind == "count" and query.answer != "no":
        groups = [g for g in _groups(scene) if f" {_group_name(g)}." in query.sentence]
        return any(_has_claim(g.first, caption, len(g.items)) for g in groups)
    if query.kind == "presence" and query.answer == "yes":
        names = {_NAMES[n] for n in _NAMED.findall(query.sentence)}
        return names <= {_NAMES[n] for n in _NAMED.findall(body)}
    if query.kind == "relation":
        match = _RELATION.search(query.sentence)
        return match is not None and any(
            {a, b} == {match[1], match[3]} and _relation_holds(scene, a, relation, b)
            for a, relation, b in _RELATION.findall(caption)
        )
    if query.kind == "text":
        texts = set(_PRINTED.findall(query.sentence))
        return bool(texts) and texts <= set(_PRINTED.findall(caption))
    if query.kind == "chart":
        return any(
            value == query.answer and letter in query.sentence
            for letter, value in _VALUE.findall(caption)
        )
    if query.kind == "place":
        name = query.sentence.removeprefix("The ").partition(" is ")[0]
        pattern = (
            rf"\b{name} +{query.answer}(?! (?:left|right))"  # "at the top" is not "at the top left"
        )
        return re.search(pattern, body) is not None
    return False


def _group_name(group: Group) -> str:
    item = group.first
    colour = f"{item.colour} " if item.colour else ""
    return colour + (to_plural(item.name) if len(group.items) > 1 else item.name)
