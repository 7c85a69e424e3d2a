"""The plain world of shapes alone: its scenes and their renderer.

A scene is one to three flat shapes on a plain background, at most one in each ninth of the
frame. Everything is a function of a seeded ``random.Random``: the same seed draws the same
pixels. ``plain_grammar`` writes the captions.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 30),
    "green": (30, 150, 50),
    "cyan": (40, 205, 215),
    "blue": (30, 70, 215),
    "purple": (125, 40, 165),
    "pink": (250, 130, 185),
    "brown": (115, 65, 25),
    "black": (15, 15, 18),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "grey": (165, 165, 165),
    "beige": (238, 220, 185),
    "lavender": (205, 190, 240),
    "mint": (190, 235, 205),
    "charcoal": (70, 72, 78),
}
# Largest extent as a share of the padded frame's side; sizes differ by factors of 1.4.
SIZES: dict[str, float] = {"small": 0.155, "medium": 0.22, "large": 0.31}
SIZE_JITTER = 0.06
# Colour-shape pairs that no training scene has: each shape once, each colour at most once.
UNSEEN_PAIRS = frozenset(
    {
        ("red", "heart"),
        ("blue", "circle"),
        ("green", "star"),
        ("yellow", "square"),
        ("purple", "triangle"),
        ("orange", "cross"),
        ("pink", "ring"),
        ("black", "crescent"),
    }
)
ALL_PAIRS = tuple((c, s) for c in COLOURS for s in SHAPES)
SEEN_PAIRS = tuple(p for p in ALL_PAIRS if p not in UNSEEN_PAIRS)

PAD_FILL = (127, 127, 127)
CENTRE_JITTER = 0.075  # share of the canvas; a ninth's border is 0.167 from its centre
MIN_CONTRAST = 80.0  # minimum RGB distance between object and background
OVERSAMPLE = 3


@dataclass(frozen=True)
class Thing:
    """One object. ``cx, cy`` are shares of the canvas, ``extent`` of its longer side."""

    shape: str
    colour: str
    size: str
    cell: int  # ninth of the frame in reading order, 0..8
    cx: float
    cy: float
    extent: float
    rgb: tuple[int, int, int]
    angle: float  # radians


@dataclass(frozen=True)
class Scene:
    """A canvas, its background, and its objects in reading order."""

    width: int
    height: int
    background: str
    background_rgb: tuple[int, int, int]
    things: tuple[Thing, ...]


def jitter(rng: random.Random, rgb: tuple[int, int, int], by: int = 10) -> tuple[int, int, int]:
    """Return a colour close to `rgb`: each channel changes by at most `by`."""
    r, g, b = (min(255, max(0, v + rng.randint(-by, by))) for v in rgb)
    return (r, g, b)


def _contrasts(colour: str, background: str) -> bool:
    return math.dist(COLOURS[colour], BACKGROUNDS[background]) >= MIN_CONTRAST


def _sample_thing(
    rng: random.Random, cell: int, pair: tuple[str, str], canvas: tuple[int, int]
) -> Thing:
    size = rng.choice(tuple(SIZES))
    extent = SIZES[size] * rng.uniform(1 - SIZE_JITTER, 1 + SIZE_JITTER)
    long_side = max(canvas)
    centre = []
    for index, side in ((cell % 3, canvas[0]), (cell // 3, canvas[1])):
        position = (index + 0.5) / 3 + rng.uniform(-CENTRE_JITTER, CENTRE_JITTER)
        margin = (extent / 2) * long_side / side + 0.01  # keeps the whole object in the picture
        centre.append(min(1 - margin, max(margin, position)))
    colour, shape = pair
    return Thing(
        shape=shape,
        colour=colour,
        size=size,
        cell=cell,
        cx=centre[0],
        cy=centre[1],
        extent=extent,
        rgb=jitter(rng, COLOURS[colour]),
        angle=math.radians(rng.uniform(-10, 10)),
    )


def _overlap(a: Thing, b: Thing, canvas: tuple[int, int]) -> bool:
    long_side = max(canvas)
    dx = abs(a.cx - b.cx) * canvas[0] / long_side
    dy = abs(a.cy - b.cy) * canvas[1] / long_side
    return max(dx, dy) < (a.extent + b.extent) / 2 + 0.015


def sample_scene(rng: random.Random, count: int | None = None, unseen: bool = False) -> Scene:
    """Draw a scene: ``count`` objects (1 to 3, else random).

    With ``unseen`` one object has a pair of ``UNSEEN_PAIRS``, otherwise none has. No two objects
    of a scene share both colour and shape, so a caption can name each.
    """
    count = count or rng.choice((1, 2, 2, 3, 3))
    long_side = rng.randint(160, 320)
    short_side = long_side if rng.random() < 0.7 else round(long_side * rng.uniform(0.8, 1.0))
    canvas = (long_side, short_side) if rng.random() < 0.5 else (short_side, long_side)
    background = rng.choice(tuple(BACKGROUNDS))
    seen_pairs = [p for p in SEEN_PAIRS if _contrasts(p[0], background)]
    while True:
        pairs = rng.sample(seen_pairs, count)
        if unseen:
            hidden = sorted(p for p in UNSEEN_PAIRS if _contrasts(p[0], background))
            pairs[rng.randrange(count)] = rng.choice(hidden)
        cells = sorted(rng.sample(range(9), count))
        things = [_sample_thing(rng, c, p, canvas) for c, p in zip(cells, pairs, strict=True)]
        clash = any(_overlap(a, b, canvas) for i, a in enumerate(things) for b in things[i + 1 :])
        if not clash:
            break
    rgb = jitter(rng, BACKGROUNDS[background])
    return Scene(canvas[0], canvas[1], background, rgb, tuple(things))


# --- drawing -----------------------------------------------------------------------------


def _outline(shape: str) -> list[tuple[float, float]]:
    """Return the corners of a shape in the square [-1, 1]², y down."""
    turn = 2 * math.pi
    if shape == "square":
        return [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]
    if shape == "triangle":
        return [(0.0, -0.95), (0.98, 0.8), (-0.98, 0.8)]
    if shape == "star":
        radii = (1.0, 0.42)
        spokes = ((radii[i % 2], turn * i / 10 - turn / 4) for i in range(10))
        return [(r * math.cos(a), r * math.sin(a) + 0.05) for r, a in spokes]
    if shape == "cross":
        w = 0.32
        return [
            (-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w),
            (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w),
        ]  # fmt: skip
    if shape == "heart":
        corners = []
        for i in range(36):
            a = turn * i / 36
            y = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
            corners.append((math.sin(a) ** 3, -(y + 2.5) / 15.5))
        return corners
    raise ValueError(f"shape {shape!r} has no outline")


_OUTLINES = {s: _outline(s) for s in ("square", "triangle", "star", "cross", "heart")}


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: int) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _thing_to_mask(thing: Thing, pixels: int) -> Image.Image:
    """Return the object's 8-bit coverage in its own box of ``pixels`` × ``pixels``."""
    side = pixels * OVERSAMPLE
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    half = side / 2
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    if thing.shape in _OUTLINES:
        corners = [
            (half + half * (x * cos - y * sin), half + half * (x * sin + y * cos))
            for x, y in _OUTLINES[thing.shape]
        ]
        draw.polygon(corners, fill=255)
    else:
        _disc(draw, half, half, half - 1, 255)
        if thing.shape == "ring":
            _disc(draw, half, half, half * 0.55, 0)
        elif thing.shape == "crescent":
            _disc(draw, half + half * 0.52 * cos, half + half * 0.52 * sin, half * 0.82, 0)
    return mask.reduce(OVERSAMPLE)


def scene_to_image(scene: Scene) -> Image.Image:
    """Return the picture as a user would pass it: RGB, ``scene.width`` × ``scene.height``."""
    image = Image.new("RGB", (scene.width, scene.height), scene.background_rgb)
    long_side = max(scene.width, scene.height)
    for thing in scene.things:
        pixels = max(4, round(thing.extent * long_side))
        left = round(thing.cx * scene.width - pixels / 2)
        top = round(thing.cy * scene.height - pixels / 2)
        image.paste(thing.rgb, (left, top), _thing_to_mask(thing, pixels))
    return image
