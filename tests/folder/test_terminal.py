"""On a terminal the progress bar, captions, errors and the summary stand one below the other."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.bundles import SAID_TEXT
from tests.helpers.terminal import Screen, run_in_terminal

N_PICTURES = 40


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Forty pictures, with three broken ones of two kinds among them."""
    folder = tmp_path / "album"
    folder.mkdir()
    for i in range(N_PICTURES):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{i:02}.png")
    for name in ("p05-bad.jpg", "p15-bad.jpg"):
        (folder / name).write_text("no picture")
    (folder / "p25-empty.jpg").touch()
    return folder


def caption(album: Path, model: Path, *options: str, width: int = 120) -> tuple[list[str], str]:
    command = [sys.executable, "-m", "edgeprism", "caption", album.name, "--model", str(model),
               "--threads", "1", *options]  # fmt: skip
    shown = run_in_terminal(command, cwd=album.parent, width=width)
    assert shown.code == 3
    return shown.lines, shown.raw


def test_captions_errors_and_summary_are_whole_and_nothing_is_there_twice(
    album: Path, scripted_bundle: Path
) -> None:
    lines, raw = caption(album, scripted_bundle)
    assert "━" in raw, "there was a bar"
    assert "━" not in "".join(lines), "it is gone"
    captions = [f"album/p{i:02}.png: {SAID_TEXT}" for i in range(N_PICTURES)]
    assert [line for line in lines if line in captions] == captions
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == [
        "error: album/p05-bad.jpg: not a picture that can be read.",
        "error: album/p25-empty.jpg: the file is empty.",
    ]
    assert max(Counter(lines).values()) == 1, "no line is there twice"
    assert "" not in lines
    (total,) = (n for n, line in enumerate(lines) if line.startswith("43 pictures: "))
    assert lines[total].startswith("43 pictures: 40 captioned, 0 known already, 3 failed; ")
    assert lines[total + 1 :] == [
        "  2 failed: not a picture that can be read: album/p05-bad.jpg, album/p15-bad.jpg",
        "  1 failed: the file is empty: album/p25-empty.jpg",
    ]


def test_a_bar_alone_over_sidecars(album: Path, scripted_bundle: Path) -> None:
    lines, raw = caption(album, scripted_bundle, "--txt")
    assert "━" in raw
    assert "━" not in "".join(lines)
    assert not [line for line in lines if SAID_TEXT in line]
    assert sum("pictures: 40 captioned" in line for line in lines) == 1
    assert max(Counter(lines).values()) == 1


def test_lines_longer_than_the_terminal(album: Path, scripted_bundle: Path) -> None:
    lines, _ = caption(album, scripted_bundle, width=30)
    text = "".join(line.ljust(30) for line in lines)
    for i in range(N_PICTURES):
        assert text.count(f"album/p{i:02}.png: {SAID_TEXT}") == 1


def test_quiet_shows_captions_and_errors_alone(album: Path, scripted_bundle: Path) -> None:
    lines, raw = caption(album, scripted_bundle, "-q")
    assert "━" not in raw
    shown = [line for line in lines if not line.startswith(("error: ", "  hint: "))]
    assert shown == [f"album/p{i:02}.png: {SAID_TEXT}" for i in range(N_PICTURES)]


def test_the_screen_of_these_tests_sees_what_is_overwritten() -> None:
    screen = Screen(10, 3)
    screen.feed("one\r\ntwo\r\x1b[Kthree\r\nfour\x1b[1A\rX\x1b[1B\r\n0123456789ab")
    assert screen.lines == ["one", "Xhree", "four", "0123456789", "ab"]
