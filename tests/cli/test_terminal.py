"""No name commands the terminal, begins a line of its own, or is read as markup."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprism.cli.main import run
from edgeprism.errors import EdgePrismError
from edgeprism.files.safe_text import json_text, printable, printable_line
from tests.helpers import bundles

HOSTILE = {
    "title": "a\x1b]0;PWNED\x07",
    "c1": "a\x9b31mb\x9d0;PWNED\x9c",
    "bidi": "a\u202egnp\u202c\u2066b\u2069",
    "line": "a\nerror: fake",
    "hint": "a\n  hint: fake",
    "return": "a\rerror: fake",
    "separators": "a\u2028error: fake\u2029b\x85c",
    "markup": "x[/b][red]",
    "bytes": "a\udce9\udcff",
    "blanks": " \tlead and trail ",
    "dash": "-a --b",
    "long": "é" * 125,
}
NAMES = [f"{name}.png" for name in HOSTILE.values()]
NAMED = 3  # pictures that failed are named at the end, no more than this
RAW = ("\x1b]0;", "\x07", "\x9b", "\x9d", "\x85", "\u202e", "\u2066", "\u2028", "\u2029",
       "\nerror: fake", "\n  hint: fake", "\rerror: fake")  # fmt: skip


def on_terminal(*arguments: object, cwd: Path | None = None) -> tuple[int, str]:
    """Run a command line on a terminal of its own; return its exit code and all that it printed."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprism", *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, cwd=cwd,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal)
    data = b""
    with contextlib.suppress(OSError):  # Linux says EIO when the last writer has left
        while chunk := os.read(controller, 65536):
            data += chunk
    os.close(controller)
    return process.wait(), data.decode("utf-8").replace("\r\n", "\n")


def piped(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a command line with pipes in place of the terminal."""
    command = [sys.executable, "-m", "edgeprism", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, cwd=cwd, check=False)


def assert_harmless(output: str) -> None:
    """Fail if a hostile name reached the output raw."""
    assert [raw for raw in RAW if raw in output] == []
    assert "Traceback" not in output


def put(photo: Path, path: Path, folder: Path) -> Path:
    """Copy `photo` to `path`, and return `folder`; a name with a slash makes a folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(photo, path)
    return folder


@pytest.fixture(params=[*HOSTILE.values()], ids=[*HOSTILE])
def name(request: pytest.FixtureRequest) -> str:
    """A picture's name that any Linux file system takes."""
    return f"{request.param}.png"


@pytest.fixture
def folder(photo: Path, tmp_path: Path) -> Path:
    """A folder that holds a picture of each such name, for commands that are worth a process."""
    for name in NAMES:
        put(photo, tmp_path / "in" / name, tmp_path / "in")
    return tmp_path / "in"


def test_a_pictures_name_on_a_terminal(
    scripted_bundle: Path, photo: Path, tmp_path: Path, name: str
) -> None:
    folder = put(photo, tmp_path / "in" / name, tmp_path / "in")
    code, output = on_terminal("caption", "--model", scripted_bundle, "--", name, cwd=folder)
    assert (code, bundles.SAID_TEXT in output) == (0, True)
    assert_harmless(output)


@pytest.mark.parametrize("first", range(0, len(NAMES), NAMED))
def test_names_in_a_folder_on_a_terminal(
    scripted_bundle: Path, photo: Path, tmp_path: Path, first: int
) -> None:
    for name in NAMES[first : first + NAMED]:
        folder = put(photo, tmp_path / "in" / name, tmp_path / "in")
        (folder / name).with_name(f"bad {Path(name).name}"[-60:]).write_bytes(b"nope")
    for options in (["--txt"], ["--csv"], []):
        code, output = on_terminal("caption", "--model", scripted_bundle, folder, *options)
        assert code == 3
        assert "more\n" not in output  # the last line names every picture that failed
        assert_harmless(output)


def test_names_in_a_log(scripted_bundle: Path, folder: Path) -> None:
    for _ in range(2):
        done = piped("caption", "--model", scripted_bundle, folder, "--xmp")
        assert done.returncode == 0, done.stderr
        assert_harmless(done.stderr.decode("utf-8"))


def test_an_error_is_a_line_whatever_the_name(
    scripted_bundle: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"nope")
    monkeypatch.chdir(tmp_path)
    assert run(["caption", "--model", str(scripted_bundle), "--", name]) == 1
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 2, "an error is a line, and its hint another"
    assert_harmless(said)


def test_json_holds_the_names_and_harms_nothing(
    scripted_bundle: Path, folder: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    caption = ["caption", "--model", str(scripted_bundle), str(folder)]
    paths = {os.fsencode(os.path.join(folder, name)) for name in NAMES}
    for option in ("--json", "--jsonl"):
        assert run([*caption, option]) == 0
        printed = capfdbinary.readouterr().out.decode("utf-8")
        assert_harmless(printed)
        lines = printed.splitlines()
        records = json.loads(printed) if option == "--json" else map(json.loads, lines)
        assert {os.fsencode(record["image"]) for record in records} == paths
    for name in NAMES:
        (folder / name).write_bytes(b"nope")
    errors = tmp_path / "errors.jsonl"
    run([*caption, "--errors", str(errors)])
    lines = errors.read_bytes().decode("utf-8").splitlines()
    assert {os.fsencode(json.loads(line)["image"]) for line in lines} == paths


def test_one_record_holds_the_name(
    scripted_bundle: Path, photo: Path, tmp_path: Path, name: str,
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes],
) -> None:  # fmt: skip
    monkeypatch.chdir(put(photo, tmp_path / "in" / name, tmp_path / "in"))
    assert run(["caption", "--model", str(scripted_bundle), "--json", "--", name]) == 0
    assert json.loads(capfdbinary.readouterr().out.decode("utf-8"))["image"] == name


def test_a_table_holds_the_names(scripted_bundle: Path, folder: Path) -> None:
    done = piped("caption", "--model", scripted_bundle, folder, "--csv")
    rows = csv.DictReader(io.StringIO(done.stdout.decode("utf-8"), newline=""))
    escaped = {name.encode("utf-8", "backslashreplace").decode() for name in NAMES}
    assert {row["image"] for row in rows} == {f"{folder}/{name}" for name in escaped}


def test_a_models_words_on_a_terminal(tmp_path: Path, photo: Path) -> None:
    folder = bundles.write_bundle(tmp_path / "model", script=bundles.SAID)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["name"], manifest["notice"] = HOSTILE["title"], f"{HOSTILE['c1']} {HOSTILE['line']}"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    code, output = on_terminal("caption", "--model", folder, photo)
    assert (code, r"\x1b]0;PWNED\x07" in output) == (0, True)
    assert_harmless(output)
    manifest[HOSTILE["title"]], manifest[HOSTILE["hint"]] = 1, 2
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for command in (["caption", "--model", folder, photo], ["models", "show", folder]):
        code, output = on_terminal(*command)
        assert code == 4
        assert_harmless(output)


def test_the_default_models_name_in_a_diagnosis(tmp_path: Path) -> None:
    folder = bundles.write_bundle(tmp_path / "model", script=bundles.SAID)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["name"] = "".join(HOSTILE.values()).replace(HOSTILE["bytes"], "")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    command = [sys.executable, "-m", "edgeprism", "doctor"]
    environment = {**os.environ, "EDGEPRISM_MODEL": str(folder)}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert b"PWNED" in done.stdout
    assert_harmless(done.stdout.decode("utf-8"))


@pytest.mark.parametrize(
    "arguments", [["{}"], ["caption", "--{}"], ["caption", "a", "--device", "{}"]]
)
def test_what_click_refuses(
    arguments: list[str], name: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run([argument.format(name) for argument in arguments]) == 2
    said = capfdbinary.readouterr().err.decode("utf-8")
    assert said
    assert_harmless(said)


def test_escapes() -> None:
    assert printable("a\r\n\tb\x1b\u202e\udce9") == "a\n\tb\\x1b\\u202e\\udce9"
    assert printable_line("a\r\n\tb\x85\u2066") == "a\\x0d\\n\\tb\\x85\\u2066"
    assert printable("né 日本 👨‍👩‍👧 \u200c\u00ad") == "né 日本 👨‍👩‍👧 \u200c\u00ad"
    value = {"\x9b": ["\u202e", "\udce9", "é\n"], "n": 1.5}
    assert json.loads(json_text(value)) == value
    assert json_text(value, indent=1).encode("utf-8").isascii() is False


def test_an_errors_details_stand_on_lines_of_their_own() -> None:
    error = EdgePrismError("three faults:", "Mend them.", ["one", "two\nthree"])
    assert error.message == "three faults:\n  one\n  two\nthree\n"
    assert str(error) == "three faults:\n  one\n  two\nthree\n Mend them."
