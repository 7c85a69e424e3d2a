"""README's tree is complete: every room is named, and no room that is not there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.pages import ROOT, blocks, prose

README = ROOT / "README.md"
TOP = ("edgeprism", "convert", "models", "benchmarks", "tests", "docs")
_NOT_ROOMS = re.compile(r"\..*|__pycache__|.*\.egg-info|site|build|dist|node_modules")


def rooms(folder: Path) -> set[str]:
    """Folders below `folder` that hold files, as paths from the root of the repository."""
    found: set[str] = set()
    for inner in folder.iterdir():
        if inner.is_dir() and not _NOT_ROOMS.fullmatch(inner.name):
            below = rooms(inner)
            if below or any(f.is_file() for f in inner.iterdir()):
                found |= {inner.relative_to(ROOT).as_posix(), *below}
    return found


def drawn(tree: str) -> set[str]:
    """The folders that a tree names: two blanks of indent a level, several on a line allowed."""
    found: set[str] = set()
    trail: list[str] = []
    for line in tree.splitlines():
        names = re.match(r"(?P<indent> *)(?P<names>(?:[\w-]+/ ?)+)", line)
        assert names, f"this line of the tree names no folder: {line!r}"
        depth = len(names["indent"]) // 2
        for name in names["names"].split():
            trail = [*trail[:depth], name.rstrip("/")]
            found.add("/".join(trail))
    return found


def test_readmes_tree_is_complete() -> None:
    (tree,) = [block.code for block in blocks(README) if block.language == "tree"]
    there = {room for room in rooms(ROOT) if room.split("/")[0] in TOP} | set(TOP)
    # folders of data, named with the room that they belong to
    there -= {room for room in there if room.startswith(("models/nano/bundle/", "docs/assets"))}
    assert drawn(tree) == there


def test_every_top_level_folder_is_drawn() -> None:
    assert {room.split("/")[0] for room in rooms(ROOT)} == set(TOP)


def test_a_room_that_is_missing_is_seen() -> None:
    assert drawn("a/   x\n  b/ c/\n    d/  y\ne/") == {"a", "a/b", "a/c", "a/c/d", "e"}


def test_readme_is_about_nine_hundred_words() -> None:
    text = "\n".join(line for line in prose(README).splitlines() if not line.startswith("|"))
    assert 600 <= len(text.split()) <= 1100


def test_ci_runs_readmes_test_command() -> None:
    """What it installs and what it runs."""
    commands = [
        block.code for block in blocks(README) if block.language == "sh" and "pytest" in block.code
    ]
    assert len(commands) == 1
    install = re.search(r'pip install (-c constraints.txt -e "[^"]+")', commands[0])
    run = re.search(r"python (-m pytest)$", commands[0].strip())
    assert install
    assert run
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert install[1] in ci
    assert run[1] in ci
    assert "mkdocs build --strict" in ci.replace('"$venv/bin/mkdocs"', "mkdocs")
