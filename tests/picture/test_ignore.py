"""Rules of what to pass over: as git reads them in `.gitignore`."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgeprism.errors import UsageError
from edgeprism.picture.ignore import Rules

PIECES = ["a", "b", "c", "A", "*", "?", "/", "[ab]", "[!a]", "[^b]", "[a-c]", "[]a]", "[b-a]",
          "[[:alpha:]]", "[[:upper:]0]", "\\*", "\\a", "#", " ", "-", ".", "[", "]",
          "[a"]  # fmt: skip


def excluded(lines: Sequence[str], path: str) -> bool:
    """Whether rules in the top folder pass over a file, or a folder that it is in."""
    rules = Rules().within("", lines)
    parts = path.split("/")
    folders = ("/".join(parts[:n]) for n in range(1, len(parts)))
    return any(rules.excludes(folder, True) for folder in folders) or rules.excludes(path, False)


@pytest.mark.parametrize(
    ("lines", "out", "kept"),
    [
        (["*.png"], ["a.png", "x/y/b.png"], ["a.jpg", "png", "a.PNG"]),
        (["/drafts"], ["drafts", "drafts/a.jpg"], ["x/drafts", "drafts2"]),
        (["private/"], ["private/a", "x/private/b/c"], ["private", "x/private"]),
        (["2019/**/scans"], ["2019/scans", "2019/a/b/scans/x"], ["2020/scans", "x/2019/scans"]),
        (["**/cache"], ["cache", "a/b/cache"], ["caches"]),
        (["tmp/**"], ["tmp/a", "tmp/b/c"], ["tmp", "x/tmp/a"]),
        (["*", "!*.jpg"], ["a.png"], ["a.jpg"]),
        (["!keep.png", "*.png"], ["keep.png"], []),
        (["a/", "!a/b"], ["a/b"], []),
        (["# comment", "\\#1", "\\!x", "", "  "], ["#1", "!x"], ["# comment", "1", "x", " "]),
        (["end   ", "kept\\ "], ["end", "kept "], ["end ", "kept"]),
        (["IMG_[0-4]?.jpg"], ["IMG_12.jpg"], ["IMG_62.jpg", "IMG_1.jpg"]),
        (["photos \\[2024\\]"], ["photos [2024]/a.jpg"], ["photos 2/a.jpg"]),
        (["[", "x\\"], [], ["[", "x\\", "x"]),
        (["été"], ["été/a.jpg", "e\u0301te\u0301/a.jpg"], ["ete"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_rules(lines: list[str], out: list[str], kept: list[str]) -> None:
    assert [path for path in out if not excluded(lines, path)] == []
    assert [path for path in kept if excluded(lines, path)] == []


def test_an_inner_ignore_file_takes_back_what_an_outer_one_passes_over() -> None:
    rules = Rules().within("in", ["*.png"]).within("in/keep", ["!*.png"])
    assert not rules.excludes("in/keep/a.png", False)
    assert Rules().within("in", ["*.png"]).excludes("in/keep/a.png", False)
    given = Rules.of_search(["a.png"], "in").within("in/keep", ["!*.png"])
    assert given.excludes("in/keep/a.png", False), "the command line goes first"


def test_a_pattern_of_the_command_line_that_means_nothing_is_refused() -> None:
    for pattern in ("", "/", "!", "  "):
        with pytest.raises(UsageError, match="can match nothing"):
            Rules.of_search([pattern], "in")


@pytest.mark.parametrize(
    "pattern",
    ["*a" * 40 + "b", "**/a/" * 40 + "b", "*" * 60 + "b", "**/*a*/" * 30 + "b", "?*" * 50 + "b"],
    ids=lambda pattern: pattern[:6],
)
def test_no_pattern_of_a_stranger_takes_long(pattern: str) -> None:
    rules = Rules().within("", [pattern])
    start = time.process_time()
    for path in ("a" * 250, "a/" * 2000 + "c", "aca/" * 1000 + "c"):
        assert not rules.excludes(path, False)
    assert time.process_time() - start < 5


@pytest.mark.skipif(shutil.which("git") is None, reason="git is what the rules are compared with")
@pytest.mark.parametrize("seed", range(4))
def test_random_rules_mean_what_git_makes_of_them(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    names = ["a", "b", "A", "ab", "*", "-", ".b", "]", "#", "a b", "c.", "\\"]
    paths = sorted(
        {"/".join(rng.choice(names) for _ in range(rng.randint(1, 3))) for _ in range(150)}
    )
    for _ in range(40):
        lines = [_random_rule(rng) for _ in range(rng.randint(1, 3))]
        (tmp_path / ".gitignore").write_text("\n".join(lines) + "\n")
        told = subprocess.run(
            ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "-z", "--stdin", "-v", "-n"],
            input="\0".join(paths) + "\0", capture_output=True, text=True, check=False,
        )  # fmt: skip
        fields = told.stdout.split("\0")
        git = {
            path: bool(rule) and not rule.startswith("!")
            for rule, path in zip(fields[2::4], fields[3::4], strict=False)
        }
        assert {path: excluded(lines, path) for path in paths} == git, lines


def _random_rule(rng: random.Random) -> str:
    rule = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 5)))
    rule = rng.choice(["", "", "", "**/", "/"]) + rule + rng.choice(["", "", "", "/**", "/"])
    # git reads `**` beside a letter in ways that depend on where its memory lies
    return rng.choice(["", "", "!"]) + rule.replace("a**", "a*").replace("***", "**")
