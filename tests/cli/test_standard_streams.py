"""Standard streams that are closed, full, gone or slow; other encodings; no home folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.helpers import bundles

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
COMMAND = [sys.executable, "-P", "-m", "edgeprism"]
FULL = pytest.param(
    ">/dev/full",
    "No space left on device",
    marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full"),
)
CLOSED = (">&-", "it is closed")


def shell(
    redirection: str,
    *arguments: str | Path,
    stdin: str = "",
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command line with its streams redirected by a shell."""
    return subprocess.run(
        ["bash", "-c", f'exec "$0" "$@" {redirection}', *COMMAND, *map(str, arguments)],
        capture_output=True, text=True, input=stdin, timeout=120, check=False,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip


@pytest.fixture
def many(photo: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(photo, folder / name)
    return folder


# ---- standard output


WRITING = [
    ("--help",), ("--version",), ("caption", "--help"), ("models", "list"),
    ("models", "list", "--json"), ("models", "show", "nano"), ("doctor",),
    ("cache", "info"), ("caption", "PHOTO"), ("caption", "PHOTO", "--json"),
    ("caption", "MANY"), ("caption", "MANY", "--jsonl", "--no-cache"),
    ("caption", "MANY", "--csv"), ("caption", "MANY", "--dry-run"),
]  # fmt: skip


# a disk that is full is told when the stream is flushed, which every third command shows
@pytest.mark.parametrize(
    ("arguments", "redirection", "why"),
    [
        *(pytest.param(line, *CLOSED, id=f"{' '.join(line)}, closed") for line in WRITING),
        *(
            pytest.param(line, *FULL.values, marks=FULL.marks, id=f"{' '.join(line)}, full")
            for line in WRITING[::3]
        ),
    ],
)
def test_lost_output_is_an_error(
    redirection: str,
    why: str,
    arguments: tuple[str, ...],
    photo: Path,
    many: Path,
    scripted_bundle: Path,
) -> None:
    """In every command: an exit code of success would say that the result is there."""
    places = {"PHOTO": str(photo), "MANY": str(many)}
    model = {"EDGEPRISM_MODEL": str(scripted_bundle)}
    done = shell(redirection, *(places.get(a, a) for a in arguments), environment=model)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: Standard output cannot be written: {why}."]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_a_lost_export(many: Path, scripted_bundle: Path) -> None:
    assert shell("", "caption", many, "--model", scripted_bundle).returncode == 0
    done = shell(">&-", "cache", "export")
    assert done.returncode == 1
    assert done.stderr.startswith("error: Standard output cannot be written")


def test_a_lost_answer_ends_a_chat(photo: Path, scripted_bundle: Path, scripted_gguf: Path) -> None:
    done = shell(
        ">&-", "chat", photo, "--captioner", scripted_bundle, "--reasoner", scripted_gguf,
        "--chat-format", "chatml", "--answer-tokens", "4", stdin="What is it?\nAnd then?\n",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1, done.stderr


def test_the_reader_of_a_pipe_leaves(many: Path, scripted_bundle: Path) -> None:
    """As with other tools nothing is said, but the exit code is no success."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, "caption", str(many), "--jsonl", "--model", str(scripted_bundle)],
        stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


def test_a_pipe_that_takes_no_more_for_now() -> None:
    """Another program may have made a shared terminal or pipe non-blocking: nothing is lost."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    size = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    code = (
        "from edgeprism.cli.standard_streams import standard_streams\n"
        "import click\n"
        "with standard_streams():\n"
        f"    click.echo('x' * {20 * size})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    time.sleep(0.5)  # the pipe fills up before anybody reads
    received = bytearray()

    def read() -> None:
        while part := os.read(reading, 4096):
            received.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    _, errors = process.communicate(timeout=60)
    reader.join()
    os.close(reading)
    assert (process.returncode, errors) == (0, "")
    assert len(received) == 20 * size + 1


def test_a_terminal_that_is_gone(photo: Path, scripted_bundle: Path) -> None:
    """Writing to it gives EIO."""
    leader, follower = os.openpty()
    os.close(leader)
    done = subprocess.run(
        [*COMMAND, "caption", str(photo), "--model", str(scripted_bundle)],
        stdout=follower, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip
    os.close(follower)
    assert done.returncode == 1
    assert os.strerror(errno.EIO) in done.stderr
    assert "Traceback" not in done.stderr


# ---- standard error and input


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&- <&-"])
def test_without_standard_error_the_work_is_done(
    redirection: str, photo: Path, many: Path, scripted_bundle: Path, tmp_path: Path
) -> None:
    one = shell(redirection, "caption", photo, "--model", scripted_bundle)
    assert (one.returncode, one.stdout) == (0, bundles.SAID_TEXT + "\n")
    output = tmp_path / "out.jsonl"
    options: list[str | Path] = ["--model", scripted_bundle, "--jsonl", "--output", output]
    assert shell(redirection, "caption", many, *options).returncode == 0
    assert len(output.read_text(encoding="utf-8").splitlines()) == 2


def test_without_any_stream_files_are_written(many: Path, scripted_bundle: Path) -> None:
    done = shell("<&- >&- 2>&-", "caption", many, "--txt", "--model", scripted_bundle)
    assert done.returncode == 0
    assert [path.name for path in sorted(many.glob("*.txt"))] == ["a.txt", "b.txt"]


def test_what_a_library_prints_gets_into_no_file(tmp_path: Path) -> None:
    """The next file that is opened would get the closed descriptor's number."""
    code = (
        "import os, sys\n"
        "from edgeprism.cli.standard_streams import standard_streams\n"
        "with standard_streams():\n"
        "    file = open(sys.argv[1], 'w')\n"
        "    print(file.fileno(), file=file)\n"
    )
    path = tmp_path / "file"
    subprocess.run(
        ["bash", "-c", 'exec "$0" "$@" <&- >&- 2>&-', sys.executable, "-c", code, str(path)],
        check=True,
    )
    assert int(path.read_text()) > 2


@pytest.mark.parametrize(
    "arguments",
    [("caption", "-"), ("caption", "--files-from", "-"), ("chat", "PHOTO")],
    ids=" ".join,
)
def test_a_closed_input_is_told(
    arguments: tuple[str, ...], photo: Path, scripted_bundle: Path, scripted_gguf: Path
) -> None:
    options: list[str | Path] = ["--model", scripted_bundle]
    if arguments[0] == "chat":
        options += ["--reasoner", scripted_gguf]
    done = shell("<&-", *(str(photo) if a == "PHOTO" else a for a in arguments), *options)
    assert done.returncode == 2
    assert "error: Standard input is closed." in done.stderr
    assert "Traceback" not in done.stderr


# ---- encodings

NAME = "Zürich 東京 😀.png"


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"LC_ALL": "", "LANG": ""},
        {"LC_ALL": "en_US.ISO-8859-1"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "no_SUCH"}, {"TERM": "dumb"}, {"TERM": ""}, {"NO_COLOR": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_any_locale(
    locale: dict[str, str], photo: Path, tmp_path: Path, scripted_bundle: Path
) -> None:
    """Text is UTF-8 whatever the locale; nothing fails for a character that it lacks."""
    (tmp_path / "named").mkdir()
    shutil.copy(photo, tmp_path / "named" / NAME)
    done = subprocess.run(
        [*COMMAND, "caption", "named", "--model", str(scripted_bundle)], cwd=tmp_path,
        env={**os.environ, **locale}, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert NAME in done.stdout.decode("utf-8")
    assert b"\x1b" not in done.stdout + done.stderr
    missing = subprocess.run(
        [*COMMAND, "caption", "Müll 東.png", "--model", str(scripted_bundle)], cwd=tmp_path,
        env={**os.environ, **locale}, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert missing.returncode == 1
    assert "Müll 東.png" in missing.stderr.decode("utf-8")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("latin-1", b"M\xfcll \\u6771.png"), ("cp1252", b"M\xfcll \\u6771.png"),
     ("utf-8", "Müll 東.png".encode()), (":replace", "Müll 東.png".encode())],
)  # fmt: skip
def test_pythonioencoding_is_respected(encoding: str, shown: bytes, tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "caption", "Müll 東.png"], cwd=tmp_path, capture_output=True, timeout=120,
        env={**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C.UTF-8"}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert shown in done.stderr


# ---- no home folder

HOMELESS = """
import json, os, pwd, sys
def unknown(_):
    raise KeyError("this user is in no list")
pwd.getpwuid = unknown
from edgeprism.cli.main import run
for arguments in json.loads(sys.argv[1]):
    code = run(arguments)
    print(end=f"\\0{code}\\0", flush=True)
    print(end="\\0", file=sys.stderr, flush=True)
"""


def homeless(
    *command_lines: tuple[str | Path, ...], **variables: str
) -> list[tuple[int, str, str]]:
    """Run command lines, one after another, for a user without HOME and an entry in passwd.

    Returns of each the exit code, and what it printed on standard output and error.
    """
    environment = {n: v for n, v in os.environ.items()
                   if n not in ("HOME", "EDGEPRISM_HOME") and not n.startswith("XDG_")}  # fmt: skip
    lines = json.dumps([[*map(str, line)] for line in command_lines])
    done = subprocess.run(
        [sys.executable, "-c", HOMELESS, lines], env={**environment, **variables},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed, errors = done.stdout.split("\0"), done.stderr.split("\0")
    assert len(printed) == 2 * len(command_lines) + 1
    return [
        (int(c), out, e) for out, c, e in zip(printed[::2], printed[1::2], errors, strict=False)
    ]


@pytest.mark.parametrize(
    "variables",
    [{}, {"XDG_DATA_HOME": ""}, {"XDG_DATA_HOME": "relative"}, {"HOME": ""},
     {"HOME": "relative"}, {"HOME": "/dev/null"}, {"HOME": "/proc/none"}],
    ids=str,
)  # fmt: skip
def test_without_a_home_folder(variables: dict[str, str], photo: Path, tmp_path: Path) -> None:
    """The built-in model needs none; what needs one says so in a line."""
    needing_none = [("--help",), ("models", "list"), ("doctor",), ("models", "show", "nano"),
                    ("caption", photo, "-q")]  # fmt: skip
    needing_one = [("cache", "info"), ("ask", photo, "What is it?")]
    outcomes = homeless(*needing_none, *needing_one, **variables)
    for code, printed, errors in outcomes[: len(needing_none)]:
        assert (code, bool(printed)) == (0, True), errors
    assert outcomes[len(needing_none) - 1][2] == ""
    for code, _, errors in outcomes[len(needing_none) :]:
        assert code in (1, 4)
        assert errors.count("error: ") == 1, errors
        assert "Traceback" not in errors
    assert not list(Path().glob("relative*"))


def test_xdg_data_home_is_used(tmp_path: Path) -> None:
    [(_, printed, _)] = homeless(("doctor",), XDG_DATA_HOME=str(tmp_path / "data"))
    assert str(tmp_path / "data" / "edgeprism") in printed
