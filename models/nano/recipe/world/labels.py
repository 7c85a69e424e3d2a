"""The labels of a picture's patches, which the renderer knows and the tower learns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeprism.models.nano.recipe.world.draw import GRID, TABLE_COLUMNS
from edgeprism.models.nano.recipe.world.scene import (
    CHARS,
    COLOURS,
    MOST_LETTERS,
    NAMES,
    PAINTED,
    SHAPES,
    SIZES,
    TOP_VALUE,
    Item,
    Scene,
    scene_to_groups,
)

IDENTITIES = (*NAMES, *SHAPES, "text", "bar", "row")
MOST_RANKS = 9  # crowded training scenes have more items than a caption lists
END = len(CHARS)  # the class after a word's last letter
KINDS = ("mixed", "chart", "table", "nothing")
# name → number of classes; -1 means "no such label", which is not learnt; rank 0: "background"
PATCH_LABELS = {
    "identity": len(IDENTITIES),
    "colour": len(COLOURS),
    "size": len(SIZES),
    "cell": 9,
    "rank": MOST_RANKS + 1,
    "count": MOST_RANKS,
    "char": len(CHARS),
    **{f"letter{i}": END + 1 for i in range(MOST_LETTERS)},
    "value": TOP_VALUE + 1,
}
SCENE_LABELS = {"background": len(PAINTED), "groups": MOST_RANKS + 1, "kind": len(KINDS)}
WEIGHTS = {
    "identity": 3.0,
    "background": 0.25,
    "groups": 0.25,
    "kind": 0.25,
    "size": 0.5,
    "cell": 0.5,
    "value": 0.7,
    **{f"letter{i}": 0.8 for i in range(MOST_LETTERS)},
}
_COLUMN = {name: i for i, name in enumerate(PATCH_LABELS)}
_IDENTITY = {name: i for i, name in enumerate(IDENTITIES)}
_COLOUR, _SIZE = ({n: i for i, n in enumerate(c)} for c in (COLOURS, SIZES))
_LOW, _HIGH = np.arange(GRID) / GRID, np.arange(1, GRID + 1) / GRID
_SPELT = ("text", "bar", "row")
Labels = NDArray[np.int16]


def _to_square(scene: Scene, cx: float, cy: float) -> tuple[float, float]:
    """Convert shares of the canvas to shares of the padded square."""
    side = scene.long_side
    return 0.5 + (cx - 0.5) * scene.width / side, 0.5 + (cy - 0.5) * scene.height / side


def _cover(x: float, y: float, w: float, h: float) -> NDArray[np.float64]:
    """Return the share of each patch that a box in the padded square covers, [GRID, GRID]."""
    across = np.minimum(_HIGH, x + w / 2) - np.maximum(_LOW, x - w / 2)
    down = np.minimum(_HIGH, y + h / 2) - np.maximum(_LOW, y - h / 2)
    share: NDArray[np.float64] = (
        np.clip(down * GRID, 0, 1)[:, None] * np.clip(across * GRID, 0, 1)[None, :]
    )
    return share


def _letter(text: str, index: int) -> int:
    return CHARS.index(text[index]) if index < len(text) else END


def _print(labels: Labels, text: str, x: float, y: float, w: float, h: float) -> None:
    """Label each patch with the letter that covers most of it."""
    step = w / len(text)
    best = np.full((GRID, GRID), 0.15)
    for i, letter in enumerate(text):
        cover = _cover(x + (i + 0.5) * step - w / 2, y, step, h)
        more = cover >= best
        best[more] = cover[more]
        labels[more, _COLUMN["char"]] = CHARS.index(letter)


def _label_item(labels: Labels, scene: Scene, item: Item, rank: int, count: int) -> None:
    x, y = _to_square(scene, item.cx, item.cy)
    cover = _cover(x, y, item.w, item.h)
    covered = cover >= min(0.25, 0.8 * cover.max())  # a thin item still gets its best patches
    name = item.name if item.kind in ("thing", "shape") else item.kind
    values = {
        "identity": _IDENTITY[name], "rank": rank + 1, "count": count - 1, "cell": item.cell,
        "colour": _COLOUR.get(item.colour, -1), "size": _SIZE.get(item.size, -1),
    }  # fmt: skip
    if item.kind in _SPELT:
        text = item.name + (str(item.value) if item.kind == "row" else "")
        values |= {f"letter{i}": _letter(text, i) for i in range(MOST_LETTERS)}
    if item.kind == "bar":
        values["value"] = item.value
    labels[covered] = [
        values.get(label, -1) for label in PATCH_LABELS
    ]  # every patch gets all of the item's labels
    if item.kind == "text":
        _print(labels, item.name, x, y, item.w, item.h)
    elif item.kind == "bar":
        high = 0.11 * scene.height / scene.long_side
        _print(labels, item.name, *_to_square(scene, item.cx, 0.9), high, high)
    elif item.kind == "row":
        high = min(item.h * 0.6, 0.14)
        for text, column in zip((item.name, str(item.value)), TABLE_COLUMNS, strict=True):
            centre = _to_square(scene, column, item.cy)
            _print(labels, text, *centre, high * 0.75 * len(text), high)


def scene_to_patch_labels(scene: Scene) -> Labels:
    """Return class indices [GRID², labels] in the order of ``PATCH_LABELS``."""
    labels = np.full((GRID, GRID, len(PATCH_LABELS)), -1, np.int16)
    labels[..., _COLUMN["rank"]] = 0
    for rank, group in enumerate(scene_to_groups(scene)):
        for item in group.items:
            _label_item(labels, scene, item, rank, len(group.items))
    return labels.reshape(GRID * GRID, -1)


def scene_to_scene_labels(scene: Scene) -> tuple[int, int, int]:
    """Return background (-1 if it has no word), number of groups, and kind."""
    background = (
        PAINTED.index(scene.background) if scene.background in PAINTED and scene.items else -1
    )
    return background, len(scene_to_groups(scene)), KINDS.index(scene.kind)
