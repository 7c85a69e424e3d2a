"""SIGTERM and SIGHUP end every command as Ctrl-C does; nobody is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import bundles
from tests.helpers.eval_files import lettered, write_rows
from tests.machine.test_cancel import WATCHED

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
SOON = 3.0

# `home.name` never returns by itself; the command is inside it when the signal comes
HANGING = WATCHED.replace(
    "    return original(*a, **k)", "    import time\n    time.sleep(60)"
)  # fmt: skip
assert HANGING != WATCHED


def start(
    home: str,
    name: str,
    *arguments: str | Path,
    program: str = HANGING,
    prefix: tuple[str, ...] = (),
    ignored: tuple[signal.Signals, ...] = (),
) -> subprocess.Popen[str]:
    """Start a command and return once it is inside `home.name`."""
    reading, writing = os.pipe()
    shell = "".join(f"trap '' {number.name[3:]}; " for number in ignored)
    process = subprocess.Popen(
        ["bash", "-c", f'{shell}exec "$0" "$@"', *prefix, sys.executable, "-c", program,
         str(writing), home, name, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[writing],
        text=True,
    )  # fmt: skip
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        entered = pipe.read(1)
    assert entered, process.communicate()
    time.sleep(0.2)
    return process


def end(process: subprocess.Popen[str], number: signal.Signals, pid: int = 0) -> str:
    """Send a signal; the process must end soon, as an interrupted one. Return its stderr."""
    os.kill(pid or process.pid, number)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < SOON
    assert (process.returncode, out) == (130, ""), err
    for trace in ("Traceback", "Exception ignored", "KeyboardInterrupt"):
        assert trace not in err
    return err


# where a command is when the signal comes: the function's module and name, the command line
COMMANDS = [
    ("edgeprism.perceive.captioner", "Captioner.start", "caption PHOTO --model BUNDLE"),
    ("edgeprism.reason.local", "Reasoner.complete",
     "ask PHOTO what? --captioner BUNDLE --reasoner LM --chat-format chatml"),
    ("edgeprism.perceive.captioner", "Captioner.start",
     "chat PHOTO --captioner BUNDLE --reasoner LM --chat-format chatml"),
    ("edgeprism.cli.chat", "_lines",
     "chat PHOTO --captioner BUNDLE --reasoner LM --chat-format chatml"),
    ("edgeprism.install.doctor", "probe", "doctor"),
    ("edgeprism.install.pull", "pull", "pull smollm2-135m"),
    ("edgeprism.install.inventory", "list_models", "models list"),
    ("edgeprism.store.caption_store", "CaptionStore.info", "cache info"),
]  # fmt: skip
# one place answers all signals: each comes to one command, and to several of the others in turn
SIGNALS = [(number, *COMMANDS[0]) for number in STOPPING]
SIGNALS += [(STOPPING[i % len(STOPPING)], *row) for i, row in enumerate(COMMANDS) if i]


@pytest.mark.parametrize(
    ("number", "home", "name", "command"),
    SIGNALS,
    ids=lambda value: value.split()[0] if isinstance(value, str) else value.name,
)
def test_every_command(
    number: signal.Signals,
    home: str,
    name: str,
    command: str,
    photo: Path,
    scripted_bundle: Path,
    scripted_gguf: Path,
) -> None:
    places = {"PHOTO": photo, "BUNDLE": scripted_bundle, "LM": scripted_gguf}
    end(start(home, name, *(places.get(word, word) for word in command.split())), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_chat_that_waits_for_a_question(
    number: signal.Signals, photo: Path, scripted_bundle: Path, scripted_gguf: Path
) -> None:
    process = start(
        "edgeprism.cli.chat", "_lines", "chat", photo, "--captioner", scripted_bundle,
        "--reasoner", scripted_gguf, "--chat-format", "chatml", program=WATCHED,
    )  # fmt: skip
    end(process, number)


def left_behind(pid: int) -> list[int]:
    """Processes of the session or the children of `pid` that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(status[1]) == pid and b"edgeprism" in command and status[0] != "Z":
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_conversion_and_its_child(number: signal.Signals, tmp_path: Path) -> None:
    folders = [folder for name in ("captioner", "llm", "vision")
               for folder in (f"--{name}", tmp_path)]  # fmt: skip
    process = start(
        "edgeprism.convert.supervise", "_follow", "convert", "prismcaptioner", *folders,
        tmp_path / "out",
    )  # fmt: skip
    children = left_behind(process.pid)
    assert children, "a child converts"
    end(process, number)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_evaluation(
    number: signal.Signals, tmp_path: Path, scripted_bundle: Path, scripted_gguf: Path
) -> None:
    data = write_rows(tmp_path / "questions.tsv", [lettered(1)])
    process = start(
        "edgeprism.perceive.captioner", "Captioner.start", "eval", "--data", data, "--captioner",
        scripted_bundle, "--reasoner", scripted_gguf, "--out",
        tmp_path / "report",
    )  # fmt: skip
    end(process, number)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_decoders_end_too(
    number: signal.Signals, photo: Path, scripted_bundle: Path, tmp_path: Path
) -> None:
    """Also those that are inside a picture when their parent has to be ended."""
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(3):
        shutil.copy(photo, folder / f"{index}.png")
    process = start(
        "edgeprism.folder.batch", "Batch._collect", "caption", folder, "--model", scripted_bundle
    )
    deadline = time.monotonic() + 10
    while not (children := left_behind(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children, "a decoder runs"
    for child in children:
        os.kill(child, signal.SIGSTOP)  # it reads no more, not even the end of its input
    os.kill(process.pid, number)  # the first only finishes what is in flight
    time.sleep(0.5)
    os.kill(process.pid, number)
    process.communicate(timeout=30)
    assert process.returncode == 130
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a decoder outlives its parent"
        time.sleep(0.05)


def test_process_1_of_a_container(photo: Path, scripted_bundle: Path) -> None:
    """The kernel drops signals to process 1 for which it has no handler."""
    namespace = ("unshare", "--pid", "--fork", "--kill-child")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no process namespaces here")
    process = start(
        "edgeprism.perceive.captioner", "Captioner.start", "caption", photo, "--model",
        scripted_bundle, prefix=namespace,
    )  # fmt: skip
    (first,) = [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if (folder / "stat").exists()
        and (folder / "stat").read_text().rpartition(")")[2].split()[1] == str(process.pid)
    ]
    end(process, signal.SIGTERM, pid=first)


def test_sigterm_that_the_parent_ignored(photo: Path, scripted_bundle: Path) -> None:
    process = start(
        "edgeprism.perceive.captioner", "Captioner.start", "caption", photo, "--model",
        scripted_bundle, ignored=(signal.SIGTERM,),
    )  # fmt: skip
    end(process, signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_nohup_and_background_jobs_go_on(
    number: signal.Signals, photo: Path, scripted_bundle: Path
) -> None:
    """nohup ignores SIGHUP, a script's shell ignores SIGINT for a job in the background."""
    program = HANGING.replace("time.sleep(60)", "time.sleep(1.5)\n    return original(*a, **k)")
    process = start(
        "edgeprism.perceive.captioner", "Captioner.start", "caption", photo, "--model",
        scripted_bundle, ignored=(number,), program=program,
    )  # fmt: skip
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, bundles.SAID_TEXT + "\n"), err


# ---- while a library is imported

# the signal arrives while the named module is being imported
IMPORTING = """
import builtins, os, signal, sys
target, number, *arguments = sys.argv[1:]
original = builtins.__import__
struck = []

def importing(name, *rest, **more):
    if name.split(".")[0] == target and not struck:
        struck.append(1)
        os.kill(os.getpid(), int(number))
        for _ in range(1000):  # bytecode between which Python looks for signals
            pass
    try:
        return original(name, *rest, **more)
    except KeyboardInterrupt as error:
        raise ImportError(f"{name} cannot be imported") from error

builtins.__import__ = importing
from edgeprism.cli.main import main
main(arguments)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["numpy", "PIL", "onnxruntime", "llama_cpp", "sqlite3"])
def test_during_an_import(
    module: str, number: signal.Signals, photo: Path, scripted_bundle: Path, tmp_path: Path
) -> None:
    """An import that is broken off raises ImportError, which says nothing of the interrupt."""
    arguments = ["caption", str(photo), "--model", str(scripted_bundle)]
    if module == "sqlite3":
        arguments = ["cache", "info"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, module, str(int(number)), *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    for words in ("Traceback", "cannot be loaded", "pip install", "error:"):
        assert words not in done.stderr


@pytest.mark.parametrize("library", ["onnxruntime", "llama_cpp"])
def test_an_interrupt_waits_for_the_import_of_an_engine(library: str) -> None:
    """In a program that embeds EdgePrism, whose handlers stay its own."""
    load = {
        "onnxruntime": "from edgeprism.machine.onnx_runtime import import_onnxruntime as load",
        "llama_cpp": "from edgeprism.language.llama import import_llama as load",
    }[library]
    code = f"""
import os, signal, sys, threading
{load}
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {library!r} and not struck:
            struck.append(1)
            os.kill(os.getpid(), signal.SIGINT)
struck = []
sys.meta_path.insert(0, Finder())
before = signal.getsignal(signal.SIGINT)
try:
    load()
except KeyboardInterrupt:
    print({library!r} in sys.modules, signal.getsignal(signal.SIGINT) is before, struck)
load()
print("loaded")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "True True [1]\nloaded\n", done.stderr


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("gap", [0.0, 0.02, 0.2])
def test_several_signals_leave_nothing_behind(
    count: int, gap: float, scripted_bundle: Path, tmp_path: Path
) -> None:
    """A second Ctrl-C may come anywhere: while a sidecar is written, or while one is removed."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(150):
        Image.new("RGB", (30, 20), (i, 2 * i % 256, 90)).save(folder / f"{i}.png")
    before = {path.name for path in folder.iterdir()}
    command = ["caption", str(folder), "--txt", "--jsonl", "--output", str(tmp_path / "o.jsonl"),
               "--model", str(scripted_bundle)]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprism", *command], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(list(folder.glob("*.txt"))) < 5:
        time.sleep(0.01)
    for _ in range(count):
        process.send_signal(signal.SIGINT)
        time.sleep(gap)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130), err  # 0: everything was done before
    left = {path.name for path in folder.iterdir()} - before
    assert [name for name in left if not name.endswith(".txt")] == []
    assert not list(tmp_path.glob(".*"))
