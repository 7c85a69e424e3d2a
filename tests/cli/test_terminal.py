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
    path.parent.mkdir(parents=True)
    shutil.copy(photo, path)
    return folder


@pytest.fixture(params=[*HOSTILE.values()], ids=[*HOSTILE])
def name(request: pytest.FixtureRequest) -> str:
    """A picture's name that any Linux file system takes."""
    return f"{request.param}.png"


def test_a_pictures_name_on_a_terminal(
    scripted_bundle: Path, photo: Path, tmp_path: Path, name: str
) -> None:
    folder = put(photo, tmp_path / "in" / name, tmp_path / "in")
    code, output = on_terminal("caption", "--model", scripted_bundle, "--", name, cwd=folder)
    assert (code, bundles.SAID_TEXT in output) == (0, True)
    assert_harmless(output)
    (folder / name).with_name(f"bad {Path(name).name}"[-60:]).write_bytes(b"nope")
    for options in (["--txt"], ["--csv"], []):
        code, output = on_terminal("caption", "--model", scripted_bundle, folder, *options)
        assert code == 3
        assert_harmless(output)


def test_a_pictures_name_in_a_log(
    scripted_bundle: Path, photo: Path, tmp_path: Path, name: str
) -> None:
    folder = put(photo, tmp_path / "in" / name, tmp_path / "in")
    for _ in range(2):
        done = piped("caption", "--model", scripted_bundle, folder, "--xmp")
        assert done.returncode == 0, done.stderr
        assert_harmless(done.stderr.decode("utf-8"))
    (folder / name).write_bytes(b"nope")
    done = piped("caption", "--model", scripted_bundle, "--", name, cwd=folder)
    lines = done.stderr.decode("utf-8").splitlines()
    assert (done.returncode, len(lines)) == (1, 2), "an error is a line, and its hint another"


def test_json_holds_the_name_and_harms_nothing(
    scripted_bundle: Path, photo: Path, tmp_path: Path, name: str
) -> None:
    folder = put(photo, tmp_path / "in" / name, tmp_path / "in")
    path = os.path.join(folder, name)
    for options in (["--json"], ["--jsonl"]):
        done = piped("caption", "--model", scripted_bundle, folder, *options)
        record = json.loads(done.stdout.decode("utf-8"))
        record = record[0] if isinstance(record, list) else record
        assert os.fsencode(record["image"]) == os.fsencode(path)
        assert_harmless(done.stdout.decode("utf-8"))
    done = piped("caption", "--model", scripted_bundle, "--json", "--", name, cwd=folder)
    assert json.loads(done.stdout.decode("utf-8"))["image"] == name
    (folder / name).write_bytes(b"nope")
    errors = tmp_path / "errors.jsonl"
    piped("caption", "--model", scripted_bundle, folder, "--errors", errors)
    assert json.loads(errors.read_bytes().decode("utf-8"))["image"] == path


def test_a_table_holds_the_name(
    scripted_bundle: Path, photo: Path, tmp_path: Path, name: str
) -> None:
    folder = put(photo, tmp_path / "in" / name, tmp_path / "in")
    done = piped("caption", "--model", scripted_bundle, folder, "--csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode("utf-8"), newline="")))
    escaped = name.encode("utf-8", "backslashreplace").decode()
    assert [f"{folder}/{escaped}"] == [row["image"] for row in rows]


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
def test_what_click_refuses(arguments: list[str], name: str) -> None:
    done = piped(*(argument.format(name) for argument in arguments))
    assert done.returncode == 2
    assert_harmless(done.stderr.decode("utf-8"))


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
