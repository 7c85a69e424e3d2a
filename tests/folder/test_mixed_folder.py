"""A folder as people have them: nothing in it changes, and the summary can be checked by counting.

CI captions a small one. EDGEPRISM_MIXED_FILES=3000 sets the number of files by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.mixed_folder import Mixed, make_mixed_folder

N_FILES = int(os.environ.get("EDGEPRISM_MIXED_FILES", "300"))


@pytest.fixture
def mixed(tmp_path: Path) -> Mixed:
    return make_mixed_folder(tmp_path / "mixed", N_FILES)


def snapshot(root: Path) -> dict[str, tuple[int, int, str]]:
    """Mode, date and content of every entry, with links as they are."""
    entries = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder, name)
            status = path.lstat()
            content = ""
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            date = 0 if path.is_dir() and not path.is_symlink() else status.st_mtime_ns
            entries[str(path)] = (status.st_mode, date, content)
    return entries


def caption(mixed: Mixed, model: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeprism", "caption", str(mixed.root), "--model", str(model)]
    return subprocess.run(
        [*command, *map(str, options)], capture_output=True, text=True, check=False, timeout=1200
    )


def number_before(text: str, words: str) -> int:
    """The number that stands before `words`; 0 if they are not there."""
    found = re.search(rf"([\d,]+) {words}", text)
    return int(found[1].replace(",", "")) if found else 0


def test_a_person_can_check_the_summary_by_counting(
    mixed: Mixed, scripted_bundle: Path, tmp_path: Path
) -> None:
    before = snapshot(mixed.root)
    out, errors = tmp_path / "all.jsonl", tmp_path / "errors.jsonl"
    done = caption(mixed, scripted_bundle, "--jsonl", "--output", out, "--errors", errors)
    assert snapshot(mixed.root) == before, "nothing in the folder changes, nothing comes"
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""

    # 1. what was captioned
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == mixed.pictures - mixed.failures
    assert len({record["image"] for record in records}) == len(records)
    failures = [json.loads(line) for line in errors.read_text().splitlines()]
    assert len({failure["image"] for failure in failures}) == len(failures) == mixed.failures

    # 2. the summary's numbers are those of the folder
    summary = done.stderr[done.stderr.index(" pictures: ") - 8 :]
    counts = mixed.counts
    assert number_before(summary, "pictures: ") == mixed.pictures
    assert number_before(summary, "captioned") == counts["picture"]
    assert number_before(summary, "known already") == mixed.duplicates
    assert number_before(summary, "of the known have") == mixed.duplicates
    assert number_before(summary, "failed; ") == mixed.failures
    walked = sum(len(files) for _, _, files in os.walk(mixed.root))
    assert number_before(summary, "files in all") == mixed.files == walked == N_FILES
    passed = number_before(summary, "passed over")
    assert mixed.pictures + passed == walked

    # 3. its categories add up
    causes = re.findall(r"^  ([\d,]+) failed: ", summary, re.M)
    assert sum(int(number.replace(",", "")) for number in causes) == mixed.failures
    for kind in ("RAW file", "video", "JPEG XL file", "JPEG 2000 file", "document", "text",
                 "sound file", "archive", "sidecar", "system file", "hidden file",
                 "other file"):  # fmt: skip
        assert number_before(summary, f"{kind}s?\\b") == counts[kind], kind
    assert number_before(summary, "files? in [0-9,]+ folders? not searched") == counts["closed"]
    listed = summary[summary.index("passed over: ") :].partition("\n")[0]
    listed = re.sub(r"in [0-9,]+ folders? not searched \(.*\)|JPEG 2000", "", listed)
    assert sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]*\d) ", listed)) == passed

    # 4. nothing is said twice
    lines = done.stderr.splitlines()
    assert max(Counter(lines).values()) == 1


def test_texts_beside_the_pictures_are_all_that_comes(mixed: Mixed, scripted_bundle: Path) -> None:
    before = snapshot(mixed.root)
    done = caption(mixed, scripted_bundle, "--txt")
    assert done.returncode == 3, done.stderr
    after = snapshot(mixed.root)
    assert {path: after[path] for path in before} == before
    new = [path for path in after if path not in before]
    assert all(path.endswith(".txt") for path in new)
    assert len(new) == mixed.pictures - mixed.failures
    again = caption(mixed, scripted_bundle, "--txt")
    assert snapshot(mixed.root) == after
    sidecars = number_before(again.stderr.partition("passed over: ")[2], "sidecars")
    assert sidecars == mixed.counts["sidecar"] + len(new), "its own sidecars are told apart"
