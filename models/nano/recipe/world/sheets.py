"""Sample scenes without ninths: bar charts, small tables, and pictures of nothing."""

from __future__ import annotations

import random

from edgeprism.models.nano.recipe.world import plain_scene
from edgeprism.models.nano.recipe.world.plain_scene import jitter
from edgeprism.models.nano.recipe.world.scene import (
    BACKGROUNDS,
    COLOURS,
    LETTERS,
    MOST_ITEMS,
    TOP_VALUE,
    Item,
    Sampling,
    Scene,
    contrasts,
    plain_to_scene,
    sample_canvas,
    sample_mixed,
    to_cell,
)


def sample_scene(rng: random.Random, how: Sampling) -> Scene:
    """Sample any scene of the world, in the shares of ``how``; the rest show nothing."""
    kind = rng.random()
    if kind < how.mixed:
        return sample_mixed(rng, how)
    if kind < how.mixed + how.plain:
        return plain_to_scene(plain_scene.sample_scene(rng, unseen=how.unseen), rng)
    if kind < how.mixed + how.plain + how.chart:
        return sample_chart(rng, how)
    if kind < how.mixed + how.plain + how.chart + how.table:
        return sample_table(rng, how)
    return sample_nothing(rng)


def _labels(rng: random.Random, count: int) -> list[str]:
    letters = LETTERS[:count] if rng.random() < 0.4 else rng.sample(LETTERS, count)
    return list(letters)


def sample_chart(rng: random.Random, how: Sampling) -> Scene:
    """Sample a chart of two to five bars with values 1 to ``TOP_VALUE``, the axis box's height."""
    canvas = sample_canvas(rng)
    name = rng.choice(tuple(BACKGROUNDS))
    paint = (jitter(rng, BACKGROUNDS[name]),)
    count = rng.randint(2, MOST_ITEMS)
    wide, high = canvas[0] / max(canvas), canvas[1] / max(canvas)
    usable = [c for c in COLOURS if contrasts(COLOURS[c], paint)]
    colours = rng.sample(usable, count) if rng.random() < 0.6 else [rng.choice(usable)] * count
    left, right = rng.uniform(0.06, 0.1), rng.uniform(0.9, 0.95)
    step = (right - left) / count
    font = rng.randrange(how.fonts)
    items = []
    for i, (letter, colour) in enumerate(zip(_labels(rng, count), colours, strict=True)):
        value = rng.randint(1, TOP_VALUE)
        h = 0.72 * high * value / TOP_VALUE
        w = step * wide * 0.6
        cx, cy = left + step * (i + 0.5), 0.8 - 0.72 * value / TOP_VALUE / 2
        rgb = jitter(rng, COLOURS[colour])
        items.append(
            Item("bar", letter, colour, "", to_cell(cx, cy), cx, cy, w, h, font, rgb, 0.0, value)
        )
    return Scene(
        "chart", *canvas, name, paint, tuple(items), rng.getrandbits(32), rng.random() < 0.4
    )


def sample_table(rng: random.Random, how: Sampling) -> Scene:
    """Sample a table of two to five rows: a letter and a number of at most two digits."""
    canvas = sample_canvas(rng)
    name = rng.choice(tuple(BACKGROUNDS))
    paint = (jitter(rng, BACKGROUNDS[name]),)
    count = rng.randint(2, MOST_ITEMS)
    high = canvas[1] / max(canvas)
    wide = canvas[0] / max(canvas)
    ink = (245, 245, 245) if sum(paint[0]) < 380 else jitter(rng, (20, 20, 25), 15)
    top, step = 0.06, 0.88 / count
    font = rng.randrange(how.fonts)
    items = []
    for i, letter in enumerate(_labels(rng, count)):
        cy = top + step * (i + 0.5)
        value = rng.randint(1, 99)
        items.append(
            Item(
                "row",
                letter,
                "",
                "",
                to_cell(0.5, cy),
                0.5,
                cy,
                0.86 * wide,
                step * high,
                font,
                ink,
                0.0,
                value,
            )
        )
    return Scene(
        "table", *canvas, name, paint, tuple(items), rng.getrandbits(32), rng.random() < 0.4
    )


NOTHINGS = ("blank", "gradient", "noise", "texture", "photo", "photo") + ("photograph",) * 3


def sample_nothing(rng: random.Random, kind: str | None = None) -> Scene:
    """Sample a blank, noise, or a busy picture like a photograph: nothing that nano can name."""
    colours = tuple(tuple(rng.randrange(256) for _ in range(3)) for _ in range(2))
    paint = (
        (colours[0][0], colours[0][1], colours[0][2]),
        (colours[1][0], colours[1][1], colours[1][2]),
    )
    kind = kind or rng.choice(NOTHINGS)
    return Scene(
        "nothing", *sample_canvas(rng), kind, paint, (), rng.getrandbits(32), rng.random() < 0.5
    )
