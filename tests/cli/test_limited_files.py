"""Text files that people name are read within limits: devices, pipes and huge files are told."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeprism.cli.main import run
from edgeprism.convert.read.checkpoint import license_of, read_json
from edgeprism.errors import CheckpointError, UsageError
from edgeprism.evaluation.tsv import TsvFile
from edgeprism.files.home import data_dir
from edgeprism.files.remembered import Remembered
from tests.helpers.planted import SCRIPT

POSIX = pytest.mark.skipif(os.name == "nt", reason="pipes and devices with names")
SCHEMA = json.dumps({"type": "object", "properties": {"boat": {"type": "boolean"}},
                     "required": ["boat"], "additionalProperties": False})  # fmt: skip


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk


UNFIT: dict[str, Callable[[Path], object]] = {
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": _pipe,
    "a huge file": _huge,
}


@pytest.fixture(params=UNFIT)
def unfit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "unfit"
    UNFIT[request.param](path)
    return path


def edgeprism(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that a hang cannot outlive."""
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)


@POSIX
def test_a_schema_is_read_within_limits(unfit: Path, photo: Path) -> None:
    done = edgeprism("ask", photo, "What is it?", "--schema", unfit)
    assert done.returncode == 2
    assert str(unfit) in done.stderr


@POSIX
def test_a_table_of_questions_is_a_file(unfit: Path) -> None:
    with pytest.raises(UsageError) as caught:
        TsvFile(unfit)
    assert str(unfit) in caught.value.message


def test_a_schema_of_more_than_the_limit(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "large.json"
    path.write_text(SCHEMA + " " * (1 << 20), encoding="utf-8")
    assert run(["ask", str(photo), "What is it?", "--schema", str(path)]) == 2
    assert f"{path}: cannot be read: holds more than 1 MiB." in capsys.readouterr().err


@POSIX
def test_a_schema_may_come_from_a_program(
    tmp_path: Path, photo: Path, random_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    ready = os.open(pipe, os.O_RDWR)  # so that the writer below does not wait for the reader
    writer = threading.Thread(target=pipe.write_text, args=(SCHEMA,))
    writer.start()
    writer.join(10)
    closer = threading.Timer(0.5, os.close, (ready,))  # while the command reads
    closer.start()
    reasoner = str(random_bundle / "lm.gguf")
    assert run(["ask", str(photo), "Is there a boat?", "--schema", str(pipe),
                "--captioner", str(random_bundle), "--reasoner", reasoner,
                "--max-tokens", "4"]) in (0, 1)  # fmt: skip
    closer.join(10)
    assert "cannot be read" not in capsys.readouterr().err


@POSIX
def test_what_is_remembered_is_read_from_files_alone() -> None:
    data_dir().mkdir(parents=True, exist_ok=True)
    os.mkfifo(data_dir() / "facts.json")
    assert Remembered("facts.json").read() == {}


class _Endless(io.RawIOBase):
    """Standard input without an end, which says how much was read."""

    def __init__(self) -> None:
        self.n_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.n_read += len(buffer)
        return len(buffer)


def test_an_endless_picture_on_standard_input_fills_no_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    endless = _Endless()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(endless)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("edgeprism.picture.source.MAX_FILE_BYTES", 1 << 20)
    assert run(["caption", "-", "--csv"]) == 1
    assert endless.n_read < 3 << 20
    assert list(tmp_path.iterdir()) == []


@POSIX
def test_a_checkpoints_texts_are_read_within_limits(unfit: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unfit cannot be read"):
        read_json(unfit)
    if unfit.is_file():
        unfit.rename(tmp_path / "README.md")
        assert license_of(tmp_path) == "unknown"
