"""Paths that a program asks for lead into the named folders, and nowhere else."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from edgeprism.errors import UsageError
from edgeprism.serve.folders import Folders
from edgeprism.serve.options import ServeOptions
from edgeprism.serve.refusals import Refusal
from edgeprism.serve.service import Service
from edgeprism.serve.tools import Tools

LIMIT = 1000


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two folders that may be read, and what lies beside them."""
    for folder in ("one/sub", "two", "one-other", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("one/a.png", "one/sub/b.png", "two/c.png", "one-other/d.png", "outside/e.png"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "one" / "in.png").symlink_to(tmp_path / "two" / "c.png")
    (tmp_path / "one" / "out.png").symlink_to(tmp_path / "outside" / "e.png")
    (tmp_path / "one" / "nothing.png").symlink_to(tmp_path / "outside" / "none.png")
    (tmp_path / "one" / "away").symlink_to(tmp_path / "outside")
    (tmp_path / "two" / "loop").symlink_to(tmp_path / "two" / "loop")
    return tmp_path


@pytest.fixture
def folders(place: Path) -> Folders:
    (place / "link").symlink_to(place / "one")
    return Folders([str(place / "link"), str(place / "two")])


def test_pictures_inside_are_read(folders: Folders, place: Path) -> None:
    for path, holds in (
        ("a.png", "one/a.png"), ("./sub//b.png", "one/sub/b.png"), ("c.png", "two/c.png"),
        ("in.png", "two/c.png"), (f"{place}/one/sub/b.png", "one/sub/b.png"),
        (f"{place}/link/a.png", "one/a.png"), (f"{place}/two/c.png", "two/c.png"),
    ):  # fmt: skip
        assert folders.read(path, LIMIT) == holds.encode(), path


def test_nothing_outside_is_read_or_told_of(folders: Folders, place: Path) -> None:
    told = set()
    for path in (
        "../outside/e.png", "../outside/none.png", "sub/../../outside/e.png", "sub/../a.png", "..",
        "../one/a.png", "..\\outside\\e.png", "sub\\..\\..\\x", f"{place}/outside/e.png",
        f"{place}/outside/none.png", f"{place}/one-other/d.png", f"{place}/one/../outside/e.png",
        "/etc/passwd", "/", str(place), "out.png", "nothing.png", "away/e.png", "away/none.png",
        "away", f"{place}/one/away/e.png", f"{place}/link/away/e.png", "", "a.png\0", "\ud800",
    ):  # fmt: skip
        with pytest.raises(Refusal) as refused:
            folders.read(path, LIMIT)
        assert refused.value.code == "outside", path
        told.add(refused.value.summary.partition(": not in")[2])
    assert len(told) == 1  # whether the file is there or not


@pytest.mark.parametrize(
    ("path", "code"),
    [("none.png", "not_found"), ("%2e%2e/outside/e.png", "not_found"), ("a.png/x", "unreadable"),
     ("x" * 5000, "not_found"), ("file:///etc/passwd", "not_found"), ("sub", "not_a_picture"),
     (".", "not_a_picture"), ("~/a.png", "not_found"), ("pipe", "not_a_picture"),
     ("large.png", "too_large"), ("loop", "not_found")],
)  # fmt: skip
def test_what_is_no_picture_is_told(folders: Folders, place: Path, path: str, code: str) -> None:
    os.mkfifo(place / "two" / "pipe")
    (place / "two" / "large.png").write_bytes(b"x" * (LIMIT + 1))
    with pytest.raises(Refusal) as refused:
        folders.read(path, LIMIT)
    assert refused.value.code == code
    assert len(str(refused.value)) < 400


@pytest.mark.skipif(os.open not in os.supports_dir_fd, reason="no openat on this system")
@pytest.mark.parametrize("path", ["out.png", "away/e.png"])
def test_a_link_that_comes_after_the_look_is_not_followed(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """As where somebody puts a link in a file's place between the two steps."""
    monkeypatch.setattr("os.path.realpath", os.fspath)  # it saw no link
    with pytest.raises(Refusal) as refused:
        folders.read(path, LIMIT)
    assert refused.value.code == "unreadable"


def test_folders_must_be_there(place: Path) -> None:
    for path in (place / "none", place / "one" / "a.png"):
        with pytest.raises(UsageError, match="no such folder"):
            Folders([str(path)])


def test_a_question_without_a_reasoner_says_how_to_get_one(place: Path, folders: Folders) -> None:
    async def ask() -> None:
        tools = Tools(Service(ServeOptions(reasoner="none-such")), folders)
        arguments = {"paths": ["a.png"], "question": "What is it?"}
        await tools.call(tools.by_name["ask_picture"], arguments)

    with pytest.raises(Refusal, match="There is no reasoner 'none-such'") as refused:
        asyncio.run(ask())
    assert "edgeprism pull" in refused.value.hint


def test_nothing_is_read_of_a_file_over_the_limit(folders: Folders, place: Path) -> None:
    huge = place / "two" / "huge.png"
    with open(huge, "wb") as file:
        file.truncate(1 << 40)  # more than this machine could hold
    assert folders.size("huge.png") == 1 << 40
    with pytest.raises(Refusal, match="larger than"):
        folders.read("huge.png", 1 << 40 >> 1)
