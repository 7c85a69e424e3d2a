"""Hand-made scenes for the tests of nano's recipe."""

from __future__ import annotations

from edgeprism.models.nano.recipe.world.scene import Item, Scene


def item(name: str, cell: int, kind: str = "thing", colour: str = "", value: int = 0) -> Item:
    size = "" if kind in ("text", "bar", "row") else "large"
    centre = ((cell % 3 + 0.5) / 3, (cell // 3 + 0.5) / 3)
    return Item(kind, name, colour, size, cell, *centre, 0.3, 0.3, 0, (9, 9, 9), 0.0, value)


def scene(*items: Item, kind: str = "mixed") -> Scene:
    return Scene(kind, 150, 150, "white", ((250, 250, 250),), items, 1, False)
