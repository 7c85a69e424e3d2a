"""A folder at the command line: exit codes, causes, kinds, estimates, limits, quiet."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprism.cli.main import run
from tests.helpers.bundles import SAID_TEXT

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def model(scripted_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRISM_MODEL", str(scripted_bundle))


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder `album` in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "album").mkdir()
    return tmp_path / "album"


def add(folder: Path, *names: str) -> None:
    for name in names:
        pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(
            0, 256, (12, 16, 3), dtype=np.uint8
        )
        Image.fromarray(pixels).save(folder / name)


def add_broken(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("no picture")


# ---- exit codes


def test_nothing_to_caption_is_exit_6(album: Path, capfd: Captured) -> None:
    for name in ("a.CR3", "b.nef", "c.NEF", "d.mov", "e.jxl"):
        (album / name).touch()
    for arguments in (["album"], ["album", "--dry-run"], ["album", "-q"], ["album", "--jsonl"]):
        assert run(["caption", *arguments]) == 6
        out, err = capfd.readouterr()
        assert "error: There is no picture to caption." in err
        assert SAID_TEXT not in out
        if "-q" not in arguments:
            assert "passed over: 3 RAW files (NEF 2, CR3 1); " in err
            assert "5 files in all, 5 passed over: 3 RAW files, 1 JPEG XL file, 1 video" in err
    (album / "list").write_text("\n")
    assert run(["caption", "--files-from", "album/list"]) == 6
    assert run(["caption", "album", "--limit", "3"]) == 6
    assert run(["caption", "album/a.CR3", "--exclude", "*.CR3"]) == 6


def test_each_end_has_its_exit_code(album: Path) -> None:
    add(album, "a.png", "b.png")
    assert run(["caption", "album"]) == 0
    assert run(["caption", "album"]) == 0, "known already"
    add_broken(album, "c.png")
    assert run(["caption", "album"]) == 3
    assert run(["caption", "album", "--exclude", "[ab].png"]) == 1, "every picture failed"
    assert run(["caption", "album/*.tiff"]) == 2


# ---- one line for one cause


def test_many_failures_of_one_cause_are_one_error_and_one_line(
    album: Path, capfd: Captured
) -> None:
    add(album, "a.png")
    add_broken(album, *(f"bad{n}.jpg" for n in range(30)))
    for n in range(5):
        add(album, f"cut{n}.png")
        data = (album / f"cut{n}.png").read_bytes()
        (album / f"cut{n}.png").write_bytes(data[: len(data) // 2 - n])
    (album / "empty.gif").touch()
    assert run(["caption", "album", "--errors", "errors.jsonl"]) == 3
    out, err = capfd.readouterr()
    assert out == f"album/a.png: {SAID_TEXT}\n"
    assert err.count("error: ") == 3
    assert err.count("hint: ") == 2, "two causes have the same cure"
    assert "37 pictures: 1 captioned, 0 known already, 36 failed; " in err
    assert [line for line in err.splitlines() if line.startswith("  3")] == [
        "  30 failed: not a picture that can be read: album/bad0.jpg, album/bad1.jpg, "
        "album/bad10.jpg and 27 more"
    ]
    assert re.search(r"^  5 failed: damaged picture: .*: album/cut0.png, ", err, re.M)
    assert "  1 failed: the file is empty: album/empty.gif" in err
    failures = [json.loads(line) for line in Path("errors.jsonl").read_text().splitlines()]
    assert len(failures) == 36, "the file has each"
    assert {failure["image"] for failure in failures} >= {f"album/bad{n}.jpg" for n in range(30)}


def test_sidecars_that_cannot_be_written_are_one_cause(album: Path, capfd: Captured) -> None:
    add(album, "a.png", "b.png", "c.png")
    for name in "abc":
        (album / f"{name}.txt").mkdir()
    assert run(["caption", "album", "--txt"]) != 0
    err = capfd.readouterr().err
    assert err.count("error: ") == 1
    assert "  3 failed: is a link or not a regular file: " in err


def test_single_failures_are_not_told_twice(album: Path, capfd: Captured) -> None:
    add(album, "a.png")
    add_broken(album, "b.png")
    (album / "c.png").touch()
    assert run(["caption", "album"]) == 3
    err = capfd.readouterr().err
    assert err.count("b.png") == err.count("c.png") == 1


def test_a_name_with_a_line_break_stays_on_its_line(album: Path, capfd: Captured) -> None:
    add_broken(album, "one\nline.png", "two\nlines.png")
    assert run(["caption", "album"]) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "2 failed: " in line]
    assert line.endswith(r"album/one\nline.png, album/two\nlines.png")


# ---- HEIC without the plug-in


@pytest.fixture
def without_heic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes, workers among them, do not find the plug-in."""
    place = tmp_path / "without"
    place.mkdir()
    (place / "sitecustomize.py").write_text("import sys; sys.modules['pillow_heif'] = None")
    monkeypatch.setenv("PYTHONPATH", str(place))


def test_heic_without_the_plugin_is_one_line_before_the_work_starts(
    album: Path, without_heic: None
) -> None:
    def caption(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgeprism", "caption", "album", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    add(album, "a.png")
    for n in range(120):
        (album / f"IMG_{n}.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * n)
    cure = f'{sys.executable} -m pip install "edgeprism[heic]"'
    estimate = caption("--dry-run")
    assert estimate.returncode == 0
    assert "121 pictures, 0 captioned already, 120 cannot be read, 1 to caption" in estimate.stdout
    told = f"120 HEIC pictures cannot be read: they need a plug-in. Install it: {cure}"
    assert estimate.stdout.splitlines()[0] == told
    done = caption("--errors", "errors.jsonl")
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert lines[0] == told
    assert lines[1].startswith("121 pictures: 1 captioned, 0 known already, 120 failed; ")
    assert lines[2].startswith("  120 failed: HEIC needs a plug-in: album/IMG_0.HEIC, ")
    assert len(lines) == 3
    failures = [json.loads(line) for line in Path("errors.jsonl").read_text().splitlines()]
    assert len(failures) == 120, "the file has each"
    quiet = caption("-q")
    assert quiet.stderr.splitlines() == [
        "error: album/IMG_0.HEIC: HEIC needs a plug-in.", f"  hint: Install it: {cure}"
    ]  # fmt: skip


# ---- what is passed over


def test_kinds_are_named_with_their_cure_before_the_work_starts(
    album: Path, capfd: Captured
) -> None:
    add(album, "a.png")
    for name in ("b.NEF", "c.jp2", "d.mp4", "e.pdf", "notes.txt", "a.xmp", "Thumbs.db"):
        (album / name).touch()
    assert run(["caption", "album", "--txt"]) == 0
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in lines[:4]] == [
        "passed over: 1 JPEG 2000 file (JP2)",
        "passed over: 1 RAW file (NEF)",
        "passed over: 1 document (PDF)",
        "passed over: 1 video (MP4)",
    ]
    assert lines[4].startswith("1 picture: 1 captioned, 0 known already, 0 failed; ")
    assert lines[5] == (
        "8 files in all, 7 passed over: 1 JPEG 2000 file, 1 RAW file, 1 document, 1 sidecar, "
        "1 text, 1 video, 1 system file"
    )
    assert run(["caption", "album", "--txt"]) == 0
    assert "2 sidecars" in capfd.readouterr().err, "its own is no other file"


def test_exclude_at_the_command_line(album: Path, capfd: Captured) -> None:
    add(album, "a.png", "b.png", "c.png")
    (album / "c.png").rename(album / "c.jpg")
    assert run(["caption", "album", "--exclude", "*.jpg", "--exclude", "b*"]) == 0
    out, err = capfd.readouterr()
    assert out == f"album/a.png: {SAID_TEXT}\n"
    assert "3 files in all, 2 passed over: 2 excluded files" in err
    assert run(["caption", "album", "--exclude", "/"]) == 2
    assert "--exclude" in capfd.readouterr().err


# ---- quiet


def test_without_a_terminal_there_is_a_summary_and_no_line_a_picture(
    album: Path, capfd: Captured
) -> None:
    add(album, "a.png", "b.png")
    assert run(["caption", "album", "--txt"]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("2 pictures: 2 captioned, 0 known already, 0 failed; ")


@pytest.mark.parametrize("flag", ["-q", "--quiet"])
def test_quiet_leaves_errors_alone(album: Path, capfd: Captured, flag: str) -> None:
    add(album, "a.png")
    (album / "b.nef").touch()
    assert run(["caption", "album", flag]) == 0
    assert capfd.readouterr() == (f"album/a.png: {SAID_TEXT}\n", "")
    add_broken(album, "c.png", "d.png")
    assert run(["caption", "album", flag]) == 3
    err = capfd.readouterr().err
    assert err.startswith("error: album/c.png: not a picture")
    assert "captioned" not in err


# ---- limits


def test_limit_counts_captions_not_failures(album: Path, capfd: Captured) -> None:
    add_broken(album, *(f"a{n}.png" for n in range(25)))
    add(album, *(f"b{n}.png" for n in range(10)))
    for _ in range(2):  # the second time, the captions are known
        assert run(["caption", "album", "--limit", "4", "-q"]) == 3
        lines = capfd.readouterr().out.splitlines()
        assert [line.partition(":")[0] for line in lines] == [f"album/b{n}.png" for n in range(4)]
    assert run(["caption", "album", "--limit", "4"]) == 3
    assert "29 pictures: 0 captioned, 4 known already, 25 failed" in capfd.readouterr().err
    assert run(["caption", "album", "--limit", "40", "-q"]) == 3
    assert len(capfd.readouterr().out.splitlines()) == 10


def test_limit_searches_no_further_than_it_needs(
    album: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(album, "a.png", "b.png")
    for name in ("c", "d", "e"):
        (album / name).mkdir()
        add(album / name, "x.png")
        (album / name / "y.mov").touch()
    assert run(["caption", "album", "--limit", "1"]) == 0
    err = capfd.readouterr().err
    assert "1 picture: 1 captioned" in err
    assert "video" not in err


# ---- estimates


def is_near(seconds: float, others: float) -> bool:
    """Whether both are of one size; the allowance is for what else the machine does."""
    return seconds < 4 * others + 1 and others < 4 * seconds + 2


def test_a_dry_run_measures_and_the_estimate_is_true(album: Path, capfd: Captured) -> None:
    add(album, *(f"{n}.png" for n in range(150)))
    before = sorted(album.parent.rglob("*"))
    assert run(["caption", "album", "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert "150 pictures, 0 captioned already, 150 to caption" in out
    assert "whose captions are not kept" in out
    assert sorted(album.parent.rglob("*")) == before
    told = re.search(r"about ([\d.]+) s at ([\d.]+) pictures a second, measured on (\d+)", out)
    assert told is not None, out
    start = time.perf_counter()
    assert run(["caption", "album", "-q"]) == 0
    took = time.perf_counter() - start
    assert is_near(float(told[1]), took)
    capfd.readouterr()
    assert run(["caption", "album", "--dry-run", "--instruction", "Anew."]) == 0
    out = capfd.readouterr().out
    again = re.search(r"about ([\d.]+) s at ([\d.]+) pictures a second, as in an earlier run", out)
    assert again is not None, out
    assert is_near(float(again[1]), took)


def test_a_dry_run_over_pictures_that_cannot_be_read(album: Path, capfd: Captured) -> None:
    add_broken(album, "a.png", "b.png")
    assert run(["caption", "album", "--dry-run"]) == 0
    assert "no estimate: none of the pictures tried could be read" in capfd.readouterr().out
    add(album, "c.png")
    assert run(["caption", "album", "--dry-run"]) == 0
    assert "measured on 1 picture, whose" in capfd.readouterr().out


def test_a_dry_run_of_what_is_known_measures_nothing(album: Path, capfd: Captured) -> None:
    add(album, "a.png", "b.png")
    assert run(["caption", "album", "-q"]) == 0
    capfd.readouterr()
    assert run(["caption", "album", "--dry-run"]) == 0
    assert capfd.readouterr().out == "2 pictures, 2 captioned already, 0 to caption\n"


# ---- runs that end early


def test_a_run_that_is_stopped_by_an_error_still_adds_up(album: Path, capfd: Captured) -> None:
    add(album, *(f"{n}.png" for n in range(60)))
    add_broken(album, "00.png")
    assert run(["caption", "album", "--on-error", "stop", "--batch", "1"]) in (1, 3)
    err = capfd.readouterr().err
    found = re.search(r"61 pictures: (\d+) captioned, 0 known already, 1 failed, (\d+) left; ", err)
    assert found is not None, err
    assert int(found[1]) + 1 + int(found[2]) == 61


def test_what_was_done_before_the_disk_was_full(
    album: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    add_broken(album, "0.png")
    add(album, "1.png", "2.png")
    monkeypatch.setattr("edgeprism.files.atomic._fsync", full)
    assert run(["caption", "album", "--txt"]) == 1
    err = capfd.readouterr().err
    assert err.count("error: ") == 2
    assert "3 pictures: 0 captioned, 0 known already, 1 failed, 2 left; " in err
