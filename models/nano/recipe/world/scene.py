"""Scenes: items and their places, before anything is drawn.

A scene is up to five items (named things, plain shapes, a printed word) each in its own ninth of
the frame, or a bar chart, or a small table, or nothing that has a name. Everything is a function
of a seeded ``random.Random``.
"""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import dataclass, replace

from edgeprism.models.nano.recipe.world import plain_scene
from edgeprism.models.nano.recipe.world.plain_scene import jitter
from edgeprism.models.nano.recipe.world.things import STYLES, THINGS, TRAINING_STYLES

COLOURS: dict[str, tuple[int, int, int]] = {
    **plain_scene.COLOURS,
    "white": (248, 248, 248),
    "grey": (140, 140, 142),
}
SHAPES = (*plain_scene.SHAPES, "diamond", "hexagon", "arrow", "oval")
SIZES = plain_scene.SIZES
THING_SIZES = {"small": 0.18, "medium": 0.24, "large": 0.32}  # things need more pixels than shapes
BACKGROUNDS = plain_scene.BACKGROUNDS
PAINTED = (*BACKGROUNDS, "gradient", "patterned")  # all words for a background
NAMES = tuple(THINGS)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHARS = LETTERS + "0123456789"
MOST_LETTERS = 4
MOST_ITEMS = 5
TOP_VALUE = 10  # the upper end of a bar chart's axis
STYLE_NAMES = tuple(STYLES)

UNSEEN_PAIRS = plain_scene.UNSEEN_PAIRS | {
    ("white", "diamond"), ("grey", "hexagon"), ("cyan", "arrow"), ("brown", "oval"),
}  # fmt: skip
_WORDS = """
STOP GO EXIT OPEN SALE HELP FREE TAXI BUS CAFE BANK SHOP MENU PUSH PULL HOT COLD ICE TEA
YES NO UP DOWN LEFT WEST EAST NEW OLD CAT DOG SUN MOON STAR FISH BIRD TREE LAMP ROAD CITY
PARK ZOO HOME DOOR KEY BOX CAR MAP SKY SEA RED BLUE GOLD LOVE GOOD LUCK FUN PLAY GAME
WIN TOP BIG TINY FAST SLOW JUNE JULY MAY SOUP MILK CAKE EGG HAM JAM PIE NUT FIG ROSE LILY
WOLF BEAR DEER FROG DUCK LION OWL BEE ANT HAT COAT SHOE SOCK RING BELL DRUM SONG BAND
"""
WORDS = tuple(_WORDS.split())


def is_held_out(word: str) -> bool:
    """Return whether a printed word or a pairing is in the tenth that training never has."""
    return zlib.crc32(word.encode()) % 10 == 0


@dataclass(frozen=True)
class Item:
    """One item. ``cx, cy`` are shares of the canvas, ``w, h`` of its longer side."""

    kind: str  # thing, shape, text, bar, row
    name: str  # of a thing or shape, the printed text, or a bar's or row's letter
    colour: str  # of shapes and bars, else ""
    size: str  # of things and shapes, else ""
    cell: int  # ninth of the frame in reading order
    cx: float
    cy: float
    w: float
    h: float
    look: int  # index of a thing's style or of a text's font
    rgb: tuple[int, int, int]
    angle: float  # degrees
    value: int = 0  # of a bar or a row


@dataclass(frozen=True)
class Scene:
    """A canvas, its background, its items in reading order, and the picture's defects."""

    kind: str  # mixed, chart, table, nothing
    width: int
    height: int
    background: str
    paint: tuple[tuple[int, int, int], ...]  # one colour, or a gradient's two
    items: tuple[Item, ...]
    seed: int  # of textures and blemishes
    blemished: bool
    plain: plain_scene.Scene | None = None  # a scene of the plain world, which `plain_scene` draws

    @property
    def long_side(self) -> int:
        """The longer side in pixels."""
        return max(self.width, self.height)


@dataclass(frozen=True)
class Group:
    """Items of one name (and colour), which a caption counts together."""

    items: tuple[Item, ...]

    @property
    def first(self) -> Item:
        """The item that comes first in reading order."""
        return self.items[0]


def scene_to_groups(scene: Scene) -> tuple[Group, ...]:
    """Group equal items, in reading order of the first of each group."""
    groups: dict[tuple[str, str, str], list[Item]] = {}
    for item in scene.items:
        groups.setdefault((item.kind, item.name, item.colour), []).append(item)
    return tuple(Group(tuple(items)) for items in groups.values())


@dataclass(frozen=True)
class Sampling:
    """The mixture of scenes. ``unseen`` includes what training never has."""

    unseen: bool = False
    styles: tuple[str, ...] = TRAINING_STYLES
    crowded: float = 0.0  # share of mixed scenes with six to nine items
    mixed: float = 0.62
    plain: float = 0.1
    chart: float = 0.1
    table: float = 0.08
    texts: float = 0.45  # share of mixed scenes with a printed word
    prints: int = 1  # maximum number of words in one scene
    listed: float = 0.3  # share of printed words that come from a list; others are random
    tinted: float = 0.0  # share of shapes in a colour that need not have a name
    fonts: int = 9


def plain_to_scene(plain: plain_scene.Scene, rng: random.Random) -> Scene:
    """Convert a scene of the plain world."""
    items = tuple(
        Item("shape", t.shape, t.colour, t.size, t.cell, t.cx, t.cy, t.extent, t.extent, 0, t.rgb,
             math.degrees(t.angle))
        for t in plain.things
    )  # fmt: skip
    paint = (plain.background_rgb,)
    seed = rng.getrandbits(32)
    return Scene(
        "mixed", plain.width, plain.height, plain.background, paint, items, seed, False, plain
    )


def sample_canvas(rng: random.Random) -> tuple[int, int]:
    """A picture's width and height."""
    long_side = rng.choice((144, 144, rng.randint(144, 300)))
    short = long_side if rng.random() < 0.55 else round(long_side * rng.uniform(0.62, 1.0))
    return (long_side, short) if rng.random() < 0.5 else (short, long_side)


def _paint(rng: random.Random) -> tuple[str, tuple[tuple[int, int, int], ...]]:
    """Return a background's word and colours: plain, a gradient, or a faint pattern."""
    names = tuple(BACKGROUNDS)
    kind = rng.random()
    one = jitter(rng, BACKGROUNDS[rng.choice(names)])
    if kind < 0.6:
        name = rng.choice(names)
        return name, (jitter(rng, BACKGROUNDS[name]),)
    if kind < 0.8:
        while True:
            two = jitter(rng, (rng.randint(90, 250), rng.randint(90, 250), rng.randint(90, 250)))
            if math.dist(one, two) > 70:
                return "gradient", (one, two)
    two = jitter(rng, one, 45)
    return "patterned", (one, two)


def contrasts(rgb: tuple[int, int, int], paint: tuple[tuple[int, int, int], ...]) -> bool:
    """Return whether a colour differs enough from every colour of the background."""
    return all(math.dist(rgb, other) >= plain_scene.MIN_CONTRAST for other in paint)


def _place(
    rng: random.Random, cell: int, w: float, h: float, canvas: tuple[int, int]
) -> tuple[float, float]:
    """Return a centre in the cell, moved so that the whole item is in the picture."""
    long_side = max(canvas)
    centre = []
    for index, side, extent in ((cell % 3, canvas[0], w), (cell // 3, canvas[1], h)):
        position = (index + 0.5) / 3 + rng.uniform(
            -plain_scene.CENTRE_JITTER, plain_scene.CENTRE_JITTER
        )
        margin = extent / 2 * long_side / side + 0.01
        centre.append(min(max(0.5, 1 - margin), max(min(0.5, margin), position)))
    return centre[0], centre[1]


def to_cell(cx: float, cy: float) -> int:
    """Return the cell of a three by three grid that contains a centre."""
    return min(2, int(cy * 3)) * 3 + min(2, int(cx * 3))


def _clash(a: Item, b: Item, canvas: tuple[int, int]) -> bool:
    long_side = max(canvas)
    dx = abs(a.cx - b.cx) * canvas[0] / long_side
    dy = abs(a.cy - b.cy) * canvas[1] / long_side
    return dx < (a.w + b.w) / 2 + 0.01 and dy < (a.h + b.h) / 2 + 0.01


def sample_text(rng: random.Random, unseen: bool, listed: float = 0.3) -> str:
    """Return a word of at most four letters or a number; in training never a held-out word."""
    while True:
        kind = rng.random()
        if kind < listed:
            text = rng.choice(WORDS)
        elif kind < 0.75:
            text = "".join(rng.choice(LETTERS) for _ in range(rng.choice((2, 3, 3, 4, 4, 4))))
        else:
            text = str(rng.randint(1, 10 ** rng.randint(1, MOST_LETTERS) - 1))
        if is_held_out(text) == unseen or (unseen and text.isdigit()):
            return text


def _text_item(rng: random.Random, how: Sampling, cell: int, canvas: tuple[int, int]) -> Item:
    text = sample_text(rng, how.unseen, how.listed)
    h = rng.uniform(0.12, 0.2)
    w = h * (0.35 + 0.62 * len(text))  # the renderer fits the text into this box
    limit = 0.9 * canvas[0] / max(canvas)
    if w > limit:
        w, h = limit, h * limit / w
    cx, cy = _place(rng, cell, w, h, canvas)
    rgb = jitter(rng, rng.choice(tuple(COLOURS.values())))
    return Item(
        "text", text, "", "", cell, cx, cy, w, h, rng.randrange(how.fonts), rgb, rng.uniform(-7, 7)
    )


def _identities(
    rng: random.Random, count: int, how: Sampling, paint: tuple[tuple[int, int, int], ...]
) -> list[tuple[str, str, str]]:
    """Return (kind, name, colour) of ``count`` items; some are equal."""
    shapes = rng.choice((0.0, 0.2, 0.2, 1.0))
    usable = [c for c in COLOURS if shapes and contrasts(COLOURS[c], paint)]
    pairs = [(c, s) for c in usable for s in SHAPES if (c, s) not in UNSEEN_PAIRS]
    several = rng.random() < 0.45
    chosen: list[tuple[str, str, str]] = []
    while len(chosen) < count:
        if pairs and rng.random() < shapes:
            colour, shape = rng.choice(pairs)
            one = ("shape", shape, colour)
        else:
            one = ("thing", rng.choice(NAMES), "")
        if one in chosen or (not how.unseen and _pair_held_out(one, chosen)):
            continue
        times = min(count - len(chosen), rng.choice((2, 2, 3, 4)) if several else 1)
        several = several and rng.random() < 0.3
        chosen += [one] * times
    hidden = sorted(p for p in UNSEEN_PAIRS if contrasts(COLOURS[p[0]], paint))
    shown = [i for i, one in enumerate(chosen) if one[0] == "shape"]
    if how.unseen and shown and hidden:
        colour, shape = rng.choice(hidden)
        chosen[rng.choice(shown)] = ("shape", shape, colour)
    rng.shuffle(chosen)
    return chosen


def tint(rng: random.Random, item: Item, paint: tuple[tuple[int, int, int], ...]) -> Item:
    """Give a shape a random colour with contrast, so that only its outline reveals its name.

    The colour is never closest to one that training never gives this shape.
    """
    while True:
        rgb = (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))
        nearest = min(COLOURS, key=lambda c: math.dist(COLOURS[c], rgb))
        if contrasts(rgb, paint) and (nearest, item.name) not in UNSEEN_PAIRS:
            return replace(item, colour="", rgb=rgb)


def to_pairing(name: str, other: str) -> str:
    """Return one key for two things in any order; "pair of scissors" counts as "scissors"."""
    return " ".join(sorted(n.rpartition(" of ")[2] for n in (name, other)))


def _pair_held_out(one: tuple[str, str, str], others: list[tuple[str, str, str]]) -> bool:
    """Return whether a pairing of two named things is in the tenth that is for tests."""
    return any(
        one[0] == other[0] == "thing" and is_held_out(to_pairing(one[1], other[1]))
        for other in others
    )


def _item(
    rng: random.Random, one: tuple[str, str, str], size: str, cell: int, style: str,
    canvas: tuple[int, int],
) -> Item:  # fmt: skip
    kind, name, colour = one
    extent = (THING_SIZES if kind == "thing" else SIZES)[size] * rng.uniform(
        1 - plain_scene.SIZE_JITTER, 1 + plain_scene.SIZE_JITTER
    )
    cx, cy = _place(rng, cell, extent, extent, canvas)
    look = STYLE_NAMES.index(style)
    rgb = jitter(rng, COLOURS[colour]) if colour else (0, 0, 0)
    return Item(
        kind, name, colour, size, cell, cx, cy, extent, extent, look, rgb, rng.uniform(-10, 10)
    )


def sample_mixed(rng: random.Random, how: Sampling, count: int | None = None) -> Scene:
    """Sample things, shapes and perhaps printed words, each in its own ninth."""
    crowded = count is None and rng.random() < how.crowded
    count = count or (
        rng.randint(6, 9) if crowded else rng.choice((1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 5))
    )
    canvas, (background, paint) = sample_canvas(rng), _paint(rng)
    mixed_styles = rng.random() < 0.3
    style = rng.choice(how.styles)
    tries = 0
    while True:
        tries += 1
        if tries % 8 == 0:
            count = max(1, count - 1)
        texts = int(rng.random() < how.texts and count > 1)
        if texts and how.prints > 1:
            texts = rng.randint(1, min(how.prints, count - 1))
        ones = _identities(rng, count - texts, how, paint)
        cells = rng.sample(range(9), len(ones) + texts)
        sizes = {one: rng.choice(tuple(SIZES)) for one in ones}
        items = [
            _item(
                rng,
                one,
                sizes[one],
                cell,
                rng.choice(how.styles) if mixed_styles else style,
                canvas,
            )
            for one, cell in zip(ones, cells, strict=False)
        ]
        if how.tinted:
            items = [
                tint(rng, i, paint) if i.kind == "shape" and rng.random() < how.tinted else i
                for i in items
            ]
        for cell in cells[len(ones) :]:
            print_ = _text_item(rng, how, cell, canvas)
            print_ = replace(print_, cell=to_cell(print_.cx, print_.cy))
            if not contrasts(print_.rgb, paint):
                dark = sum(map(sum, paint)) / len(paint) < 380
                print_ = replace(print_, rgb=(250, 250, 250) if dark else (15, 15, 18))
            items.append(print_)
        if len({i.cell for i in items}) == len(items) and not any(
            _clash(a, b, canvas) for i, a in enumerate(items) for b in items[i + 1 :]
        ):
            break
    ordered = tuple(sorted(items, key=lambda i: i.cell))
    return Scene(
        "mixed", *canvas, background, paint, ordered, rng.getrandbits(32), rng.random() < 0.5
    )
