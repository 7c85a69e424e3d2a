"""Captioning and asking open no network socket: counted over every system call of the process.

`silence.py` puts a filter into the kernel that ends the process at the first such call, from
whatever language or thread it comes. So "ended well" means "not one". The controls show that the
filter does end what opens a socket.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.bundles import SAID_TEXT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
KILLED = 128 + signal.SIGSYS


def silently(*command: str | Path, close_fds: bool = True) -> subprocess.CompletedProcess[str]:
    silence = Path(__file__).parent / "helpers" / "silence.py"
    return subprocess.run(
        [sys.executable, str(silence), "--", *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        close_fds=close_fds,
    )


def edgeprism(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return silently(sys.executable, "-m", "edgeprism", *arguments)


# ---- the counter counts

FROM_PYTHON = "import socket; socket.socket({family}, socket.SOCK_DGRAM)"
FROM_C = "import ctypes; ctypes.CDLL(None).socket(2, 2, 0)"
FROM_A_THREAD = (
    "import ctypes, threading; "
    "t = threading.Thread(target=lambda: ctypes.CDLL(None).socket(2, 1, 0)); t.start(); t.join()"
)
FROM_A_CHILD = (
    f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {FROM_C!r}]) and 7)"
)
BY_NUMBER = (
    "import ctypes, platform; "
    "number = {'x86_64': 41, 'aarch64': 198}[platform.machine()]; "
    "ctypes.CDLL(None).syscall(number, 10, 1, 0)"
)
BY_NAME_LOOKUP = "import socket; socket.getaddrinfo('example.org', 80)"
IO_URING = "import ctypes; ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(200))"


@pytest.mark.parametrize(
    "code",
    [
        FROM_PYTHON.format(family="socket.AF_INET"),
        FROM_PYTHON.format(family="socket.AF_INET6"),
        "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
        FROM_C,
        FROM_A_THREAD,
        BY_NUMBER,
        BY_NAME_LOOKUP,
        IO_URING,
    ],
    ids=["python", "python-v6", "netlink", "c", "thread", "by-number", "name-lookup", "io-uring"],
)
def test_what_opens_a_socket_is_killed(code: str) -> None:
    done = silently(sys.executable, "-c", code + "; print('survived')")
    assert (done.returncode, done.stdout) == (KILLED, "")
    assert "tried to open a network socket" in done.stderr


def test_what_a_child_opens_is_seen_too() -> None:
    assert silently(sys.executable, "-c", FROM_A_CHILD).returncode == 7


def test_what_opens_none_runs_as_usual() -> None:
    code = "import socket; socket.socketpair(); socket.socket(socket.AF_UNIX); print('survived')"
    done = silently(sys.executable, "-c", code)
    assert (done.returncode, done.stdout) == (0, "survived\n")
    assert "no network socket was opened" in done.stderr
    assert silently(sys.executable, "-c", "raise SystemExit(3)").returncode == 3


def test_no_socket_is_handed_down() -> None:
    """One that was open before would need no call to be made."""
    import socket

    with socket.socket() as open_before:
        os.set_inheritable(open_before.fileno(), True)
        code = f"import os; os.fstat({open_before.fileno()})"
        done = silently(sys.executable, "-c", code, close_fds=False)
    assert done.returncode == 1
    assert "Bad file descriptor" in done.stderr


# ---- EdgePrism is silent


def test_caption(scripted_bundle: Path, photo: Path) -> None:
    done = edgeprism("caption", photo, "--model", scripted_bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["caption"] == SAID_TEXT


def test_caption_of_several(scripted_bundle: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "other.png").write_bytes(photo.read_bytes() + b"\0")
    done = edgeprism("caption", tmp_path, "--model", scripted_bundle, "--jsonl")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["caption"] for line in done.stdout.splitlines()] == [SAID_TEXT] * 2


def test_ask(scripted_bundle: Path, photo: Path) -> None:
    done = edgeprism("ask", photo, "What is there?", "--captioner", scripted_bundle, "--reasoner",
                     scripted_bundle / "lm.gguf")  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{SAID_TEXT}\n"), done.stderr


def test_errors_are_told_in_silence_too(scripted_bundle: Path, tmp_path: Path) -> None:
    done = edgeprism("caption", "https://example.org/cat.jpg", "--model", scripted_bundle)
    assert done.returncode == 1
    done = edgeprism("caption", tmp_path / "gone.jpg", "--model", "not-installed")
    assert done.returncode == 4
