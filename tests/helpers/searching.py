"""Folders of empty files, and what a search for pictures finds in them."""

from __future__ import annotations

from pathlib import Path

from edgeprism.picture.find import find_pictures


def make(root: Path, *names: str) -> None:
    """Make empty files below `root`, with their folders."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def find(*arguments: object, **options: object) -> list[str]:
    """Return the paths of the pictures that a search finds, in its order."""
    return [str(p.path) for p in find_pictures(arguments, **options)]  # type: ignore[arg-type]
