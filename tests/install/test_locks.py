"""Facts that several processes remember at once, and the lock that keeps them all."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeprism.files import locks
from edgeprism.files.locks import locked
from edgeprism.files.remembered import Remembered

_WRITER = """
import sys
from edgeprism.files.remembered import Remembered
for number in range(40):
    Remembered("facts.json").remember(f"{sys.argv[1]}{number}", number)
"""


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path))
    return tmp_path


def test_facts_of_several_processes_are_all_kept(data_folder: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    kept = Remembered("facts.json").read()
    assert kept == {f"{name}{number}": number for name in "abc" for number in range(40)}
    assert [path.name for path in data_folder.iterdir()] == ["facts.json"]


def test_a_lock_that_is_held_too_long_stops_nobody(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_WAIT", 0.1)
    start = time.monotonic()
    with locked(data_folder / "facts.json"):
        Remembered("facts.json").remember("key", 1)
    assert 0.1 <= time.monotonic() - start < 5
    assert Remembered("facts.json").read() == {"key": 1}


@pytest.mark.parametrize("path", ["missing/facts.json", "a\0b/facts.json"])
def test_a_folder_that_cannot_be_locked_stops_nobody(tmp_path: Path, path: str) -> None:
    with locked(tmp_path / path):
        reached = True
    assert reached


def test_a_file_system_without_locks_stops_nobody(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    Remembered("facts.json").remember("key", 1)
    assert Remembered("facts.json").read() == {"key": 1}


def test_an_error_in_the_block_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "x"):
        raise KeyError
    start = time.monotonic()
    with locked(tmp_path / "x"):
        pass
    assert time.monotonic() - start < 1
