"""Texts of people outlive linked, moved, renamed and copied folders, and other data folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeprism.cli.main import run

Captured = pytest.CaptureFixture[str]
SCENE = Path(__file__).parents[2] / "models" / "nano" / "examples" / "scene1.png"
OMA = b"Oma 1987\n"
OTHER = ["--focus", "the text"]  # another caption


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EDGEPRISM_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "album"
    folder.mkdir()
    shutil.copy(SCENE, folder / "a.png")
    return folder


def caption(folder: str | Path, *options: str) -> None:
    assert run(["caption", str(folder), "--txt", "--yes", *options]) == 0


def undo(folder: str | Path, *options: str) -> None:
    assert run(["sidecars", "undo", str(folder), *options]) == 0


def linked(album: Path) -> Path:
    (album.parent / "link").symlink_to(album)
    return album.parent / "link"


def moved(album: Path) -> Path:
    return album.rename(album.parent / "moved")


def copied(album: Path) -> Path:
    return shutil.copytree(album, album.parent / "copied")


def new_home(album: Path) -> Path:
    os.environ["EDGEPRISM_HOME"] = str(album.parent / "new-home")
    return album


def emptied_home(album: Path) -> Path:
    shutil.rmtree(os.environ["EDGEPRISM_HOME"])
    return album


WAYS = (linked, moved, copied, new_home, emptied_home)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first_by_it", [False, True])
def test_a_continued_text_outlives_every_way_to_it(
    album: Path, way: Callable[[Path], Path], first_by_it: bool
) -> None:
    text = album / "a.txt"
    text.write_bytes(OMA)
    if first_by_it and way is linked:
        linked(album)
        caption("link", "--append")
        other = album
    else:
        caption(album, "--append")
        other = way(album)
    once = (other / "a.txt").read_bytes()
    assert once.startswith(OMA)
    assert len(once) > len(OMA)
    caption(other, "--append")
    assert (other / "a.txt").read_bytes() == once
    caption(other, *OTHER)
    assert (other / "a.txt").read_bytes() == once, "a person's text is left alone"
    undo(other)
    known = way in (linked, moved)
    assert (other / "a.txt").read_bytes() == (OMA if known else once)


def test_a_mirror_that_is_moved_keeps_its_texts(album: Path) -> None:
    (album.parent / "out").mkdir()
    (album.parent / "out" / "a.txt").write_bytes(OMA)
    caption("album", "--out-dir", "out", "--append")
    Path("out").rename("mirror")
    caption("album", "--out-dir", "mirror", "--append")
    caption("album", "--out-dir", "mirror", *OTHER)
    assert Path("mirror/a.txt").read_bytes().startswith(OMA)
    undo("album", "--out-dir", "mirror")
    assert Path("mirror/a.txt").read_bytes() == OMA


@pytest.mark.parametrize("start", [b"", OMA, "Größe\r\n".encode("latin-1")])
@pytest.mark.parametrize("option", ["--append", "--overwrite", None])
def test_a_text_that_says_the_same_stays_somebodys(
    album: Path, start: bytes, option: str | None, capfd: Captured
) -> None:
    caption(album)
    said = (album / "a.txt").read_bytes()
    undo(album)
    assert not (album / "a.txt").exists()
    mine = start + (said.replace(b"\n", b"\r\n") if b"\r" in start else said)
    (album / "a.txt").write_bytes(mine)
    caption(album, *([option] if option else []))
    if option != "--overwrite" or not start:
        assert (album / "a.txt").read_bytes() == mine
    undo(album)
    assert (album / "a.txt").read_bytes() == mine
    if option != "--overwrite":
        caption(album, *OTHER)
        assert (album / "a.txt").read_bytes() == mine


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("other", [[], OTHER])
def test_the_oldest_text_comes_back_after_several_overwrites(
    album: Path, back: bool, other: list[str]
) -> None:
    (album / "a.txt").write_bytes(OMA)
    caption(album, "--overwrite")
    there = moved(album)
    caption(there, "--overwrite", *other)
    assert (there / "a.txt").read_bytes() != OMA
    if back:
        there = there.rename(album)
    undo(there)
    assert (there / "a.txt").read_bytes() == OMA


def rename_files(album: Path) -> Path:
    (album / "a.png").rename(album / "b.png")
    (album / "a.txt").rename(album / "b.txt")
    return album


@pytest.mark.parametrize("way", [linked, moved, rename_files])
def test_edgeprisms_own_text_is_known_where_it_was_moved(
    album: Path, way: Callable[[Path], Path]
) -> None:
    caption(album)
    there = way(album)
    text = next(there.glob("*.txt"))
    once = text.read_bytes()
    caption(there, *OTHER)
    assert text.read_bytes() != once
    undo(there)
    assert not text.exists()


def test_a_new_album_at_the_old_place_does_not_hide_the_moved_one(album: Path) -> None:
    (album / "a.txt").write_bytes(OMA)
    caption(album, "--overwrite")
    there = moved(album)
    album.mkdir()
    shutil.copy(SCENE, album / "a.png")
    (album / "a.txt").write_bytes(b"Opa 1991\n")
    caption(album, "--overwrite", *OTHER)
    undo(there)
    undo(album)
    assert (there / "a.txt").read_bytes() == OMA
    assert (album / "a.txt").read_bytes() == b"Opa 1991\n"


def test_equal_captions_bring_back_each_its_own_text(album: Path, capfd: Captured) -> None:
    for name in ("b", "c"):
        shutil.copy(SCENE, album / f"{name}.png")
    (album / "a.txt").write_bytes(OMA)
    (album / "b.txt").write_bytes(b"Opa 1991\n")
    caption(album, "--overwrite")
    there = moved(album)
    undo(there)
    assert (there / "a.txt").read_bytes() == OMA
    assert (there / "b.txt").read_bytes() == b"Opa 1991\n"
    assert not (there / "c.txt").exists()


def test_a_former_text_is_never_guessed(album: Path, capfd: Captured) -> None:
    shutil.copy(SCENE, album / "b.png")
    (album / "a.txt").write_bytes(OMA)
    (album / "b.txt").write_bytes(b"Opa 1991\n")
    caption(album, "--overwrite")
    for old, new in (("a", "x"), ("b", "y")):
        for suffix in (".png", ".txt"):
            (album / f"{old}{suffix}").rename(album / f"{new}{suffix}")
    before = {path.name: path.read_bytes() for path in album.iterdir()}
    assert run(["sidecars", "undo", "album"]) == 1
    assert "several former texts" in capfd.readouterr().err
    assert {path.name: path.read_bytes() for path in album.iterdir()} == before


def test_the_copy_is_somebodys_while_the_first_file_stands(album: Path) -> None:
    caption(album)
    there = copied(album)
    undo(there)
    assert (there / "a.txt").exists()
    undo(album)
    assert not (album / "a.txt").exists()


@pytest.mark.parametrize("home", ["new-home", "home"])
def test_undo_says_that_nothing_is_known(
    album: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    caption(album)
    shutil.rmtree(album.parent / "home")
    monkeypatch.setenv("EDGEPRISM_HOME", str(album.parent / home))
    capfd.readouterr()
    undo(album)
    err = capfd.readouterr().err
    assert "knows of no .txt" in err
    assert str(album.parent / home) in err
    assert (album / "a.txt").exists()


# ---- what undo says


def test_a_dry_run_says_would(album: Path, capfd: Captured) -> None:
    for name in ("b", "c"):
        shutil.copy(SCENE, album / f"{name}.png")
    (album / "a.txt").write_bytes(OMA)
    (album / "b.xmp").write_text(RATED)
    assert run(["caption", "album", "--txt", "--xmp", "--overwrite", "--yes"]) == 0
    capfd.readouterr()
    before = sorted(album.iterdir())
    undo("album", "--dry-run")
    out = capfd.readouterr().out
    assert sorted(album.iterdir()) == before
    undo("album")
    done = capfd.readouterr().out
    for what, name in (("restored", "a.txt"), ("removed", "b.txt"), ("taken out", "b.xmp")):
        planned = next(line for line in out.splitlines() if name in line)
        line = next(line for line in done.splitlines() if name in line)
        assert planned.endswith(f"would be {what}")
        assert line.endswith(what)
        assert "would be" not in line
    assert (album / "b.xmp").read_text() == RATED


RATED = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-synt'
    'ax-ns#"><rdf:Description xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/></rdf:RDF>'
    "</x:xmpmeta>"
)


@pytest.mark.parametrize("to", ["head", "full"])
def test_a_lost_output_does_not_stop_the_work(album: Path, to: str) -> None:
    # So long that the lines fill more than any buffer between the two programs.
    names = [f"{number:03}-{'long' * 50}" for number in range(60)]
    for name in names:
        os.link(album / "a.png", album / f"{name}.png")
        (album / f"{name}.txt").write_bytes(OMA)
    caption(album, "--overwrite")
    command = [sys.executable, "-m", "edgeprism", "sidecars", "undo", str(album)]
    if to == "head":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 1
    assert "60 former texts brought back" in done.stderr
    assert ("Standard output cannot be written" in done.stderr) == (to == "full")
    assert all((album / f"{name}.txt").read_bytes() == OMA for name in names)


def test_a_name_stays_on_one_line(album: Path, capfd: Captured) -> None:
    (album / "a.png").rename(album / "a\n/etc\x1b[2J.png".replace("/", "_"))
    caption(album)
    capfd.readouterr()
    undo(album)
    out = capfd.readouterr().out
    assert out.count("\n") == 1
    assert r"a\n_etc\x1b[2J.txt: removed" in out


def test_broken_sidecars_of_others_are_no_failure(album: Path, capfd: Captured) -> None:
    for name in "bcde":
        shutil.copy(SCENE, album / f"{name}.png")
    (album / "a.xmp").write_text("<x:xmpmeta")
    (album / "b.xmp").symlink_to("a.xmp")
    (album / "c.xmp").mkdir()
    (album / "d.xmp").write_bytes(RATED.encode("utf-16-le"))
    undo(album)
    assert "4 sidecars of others left alone, 0 failed" in capfd.readouterr().err
    assert run(["caption", "album/e.png", "--xmp", "--yes"]) == 0
    text = (album / "e.xmp").read_text("utf-8")
    (album / "e.xmp").write_text(text[: text.rindex("</x:")], "utf-8")
    assert run(["sidecars", "undo", "album"]) == 3
    assert "e.xmp" in capfd.readouterr().err
