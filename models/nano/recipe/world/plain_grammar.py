"""Captions of plain scenes: write them, read their claims, score them.

``scene_to_caption`` writes the true caption; ``caption_to_facts`` reads any caption, even a wrong
one; ``score_caption`` compares a caption with its scene.

    Two objects on a grey background: a large red circle at the top left and a small blue star
    in the centre. The red circle is above and to the left of the blue star.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from edgeprism.models.nano.recipe.world.plain_scene import (
    COLOURS,
    SHAPES,
    SIZES,
    UNSEEN_PAIRS,
    Scene,
    Thing,
)

PLACES = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the centre",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)
COUNTS = ("One object", "Two objects", "Three objects")


def cells_to_relation(cell: int, other: int) -> str:
    """Return the relation of an object in ``cell`` to one in ``other`` (ninths, 0 to 8)."""
    rows = cell // 3 - other // 3
    columns = cell % 3 - other % 3
    parts = []
    if rows:
        parts.append("above" if rows < 0 else "below")
    if columns:
        parts.append("to the left of" if columns < 0 else "to the right of")
    return " and ".join(parts)


def _related(things: tuple[Thing, ...]) -> tuple[Thing, Thing] | None:
    """Return the last sentence's pair: of two objects first to second, of three last to second."""
    if len(things) < 2:
        return None
    return (things[0], things[1]) if len(things) == 2 else (things[2], things[1])


def scene_to_caption(scene: Scene) -> str:
    """Return the true caption: all objects in reading order, then one relation."""
    items = [f"a {t.size} {t.colour} {t.shape} {PLACES[t.cell]}" for t in scene.things]
    listed = items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
    text = f"{COUNTS[len(items) - 1]} on a {scene.background} background: {listed}."
    pair = _related(scene.things)
    if pair is not None:
        a, b = pair
        relation = cells_to_relation(a.cell, b.cell)
        text += f" The {a.colour} {a.shape} is {relation} the {b.colour} {b.shape}."
    return text


# --- reading a caption back --------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One object in a caption; ``cell`` is None if the caption's place is not readable."""

    size: str
    colour: str
    shape: str
    cell: int | None


@dataclass(frozen=True)
class Facts:
    """All claims of a caption; None for missing ones."""

    count: int | None
    background: str | None
    claims: tuple[Claim, ...]
    relation: tuple[str, str, str, str, str] | None  # colour, shape, relation, colour, shape


def either(words: Iterable[str]) -> str:
    """Return a pattern of any word, longest first: else "at the top" hides "at the top left"."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_KIND = rf"({either(COLOURS)}) ({either(SHAPES)})"
_CLAIM = re.compile(rf"\ba ({either(SIZES)}) {_KIND}(?: ({either(PLACES)}))?")
_HEAD = re.compile(rf"^({either(COUNTS)})\b(?: on an? (\w+) background)?")
_RELATION = re.compile(
    rf"The {_KIND} is ((?:above|below)(?: and to the (?:left|right) of)?|to the (?:left|right) of)"
    rf" the {_KIND}"
)


def caption_to_facts(caption: str) -> Facts:
    """Read a caption's claims; only the grammar's own wordings are understood."""
    head = _HEAD.match(caption)
    claims = tuple(
        Claim(size, colour, shape, PLACES.index(place) if place else None)
        for size, colour, shape, place in _CLAIM.findall(caption)
    )
    relation = _RELATION.search(caption)
    groups = relation.groups() if relation else None
    return Facts(
        count=COUNTS.index(head[1]) + 1 if head else None,
        background=head[2] if head else None,
        claims=claims,
        relation=(groups[0], groups[1], groups[2], groups[3], groups[4]) if groups else None,
    )


# --- scoring -----------------------------------------------------------------------------


@dataclass(frozen=True)
class ObjectScore:
    """The score of one true object. Size and place count only if the caption names it."""

    unseen_pair: bool
    named: bool  # one claim has its shape and its colour
    size: bool
    place: bool


@dataclass(frozen=True)
class CaptionScore:
    """The score of one caption."""

    objects: tuple[ObjectScore, ...]
    invented: int  # claims whose shape and colour no object of the scene has
    count: bool
    background: bool
    relation: bool | None  # None when the scene has one object and so no relation
    flawless: bool  # the caption equals the true one, word for word


def score_caption(scene: Scene, caption: str) -> CaptionScore:
    """Score a caption.

    An object is right if a claim has both its shape and its colour. A relation is right if it
    is true, for any pair of the scene's objects.
    """
    facts = caption_to_facts(caption)
    open_claims = list(facts.claims)
    objects = []
    for thing in scene.things:
        claim = next(
            (c for c in open_claims if (c.colour, c.shape) == (thing.colour, thing.shape)), None
        )
        if claim is not None:
            open_claims.remove(claim)
        objects.append(
            ObjectScore(
                unseen_pair=(thing.colour, thing.shape) in UNSEEN_PAIRS,
                named=claim is not None,
                size=claim is not None and claim.size == thing.size,
                place=claim is not None and claim.cell == thing.cell,
            )
        )
    relation = None
    if len(scene.things) > 1:
        relation = _relation_holds(scene, facts)
    return CaptionScore(
        objects=tuple(objects),
        invented=len(open_claims),
        count=facts.count == len(scene.things),
        background=facts.background == scene.background,
        relation=relation,
        flawless=caption.strip() == scene_to_caption(scene),
    )


def _relation_holds(scene: Scene, facts: Facts) -> bool:
    if facts.relation is None:
        return False
    colour, shape, relation, other_colour, other_shape = facts.relation
    cells = {(t.colour, t.shape): t.cell for t in scene.things}
    a, b = cells.get((colour, shape)), cells.get((other_colour, other_shape))
    return a is not None and b is not None and a != b and cells_to_relation(a, b) == relation


def scores_to_table(scores: list[CaptionScore], scenes: list[Scene]) -> dict[str, float]:
    """Return the shares over many captions, by row of the printed table."""
    objects = [o for s in scores for o in s.objects]
    named = [o for o in objects if o.named]

    def share(hits: list[bool]) -> float:
        return sum(hits) / len(hits) if hits else float("nan")

    table = {
        "objects right (shape and colour)": share([o.named for o in objects]),
        "objects right, unseen pairs": share([o.named for o in objects if o.unseen_pair]),
    }
    for n in (1, 2, 3):
        hits = [
            o.named
            for s, c in zip(scores, scenes, strict=True)
            if len(c.things) == n
            for o in s.objects
        ]
        table[f"objects right, scenes of {n}"] = share(hits)
    table |= {
        "invented objects per caption": sum(s.invented for s in scores) / max(1, len(scores)),
        "size right, of objects named": share([o.size for o in named]),
        "place right, of objects named": share([o.place for o in named]),
        "relation right": share([s.relation for s in scores if s.relation is not None]),
        "number of objects right": share([s.count for s in scores]),
        "background right": share([s.background for s in scores]),
        "captions without any mistake": share([s.flawless for s in scores]),
    }
    return table
