"""`edgeprism serve` as a process: its address, its signals, a socket of systemd's, its refusals."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprism.cli.main import run
from tests.helpers.serving import Reply, as_base64

COMMAND = [sys.executable, "-m", "edgeprism", "serve"]


def started(*options: str, fds: tuple[int, ...] = ()) -> tuple[subprocess.Popen[str], int]:
    """A server and its port."""
    process = subprocess.Popen(
        [*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        pass_fds=fds,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("EdgePrism listens on http://127.0.0.1:"), process.stderr
    return process, int(line.rpartition(":")[2])


def health(port: int) -> object:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/healthz")
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer["status"]


def test_it_answers_and_ends_in_order() -> None:
    process, port = started("--port", "0")
    assert health(port) == "ok"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert "GET /healthz 200" in errors


def test_a_stream_is_finished_after_sigterm(scenes: list[bytes], texts: list[str]) -> None:
    process, port = started("--port", "0", "-q")
    body = json.dumps({"images": [as_base64(scenes[0])] * 6, "stream": True})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/captions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    stream = response.readline()
    process.send_signal(signal.SIGTERM)
    stream += response.read()
    connection.close()
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    reply = Reply(200, {}, stream)
    done = [data["caption"]["caption"] for name, data in reply.events() if name == "caption.done"]
    assert done == texts[:1] * 6
    assert reply.events()[-1] == ("done", {"model": "nano"})


def test_a_socket_that_is_open_already() -> None:
    """As systemd hands it over."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process, port = started("--fd", str(listener.fileno()), "-q", fds=(listener.fileno(),))
        assert port == listener.getsockname()[1]
        assert health(port) == "ok"
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


def test_usage_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("short\n")
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with socket.create_server(("127.0.0.1", 0)) as taken, udp:
        port = str(taken.getsockname()[1])
        for options, code, told in (
            (["--host", "0.0.0.0"], 2, "--api-key-file"),
            (["--api-key-file", str(key)], 2, "at least 16"),
            (["--api-key-file", str(tmp_path / "none")], 2, "cannot be read"),
            (["--model", "none-such"], 4, "none-such"),
            (["--reasoner", "smollm2-135n"], 4, "Did you mean smollm2-135m"),
            (["--reasoner", "http://192.0.2.1/v1"], 2, "add --allow-network"),
            (["--reasoner-model", "x", "--reasoner", "smollm2-135m"], 2, "names a server's model"),
            (["--keep-alive", "soon"], 2, "'soon' is no duration"),
            (["--allow-origin", "photos"], 2, "no origin"),
            (["--port", port], 1, "--port; 0 takes a free one"),
            (["--fd", "99"], 2, "File descriptor 99 is no socket"),
            (["--fd", str(udp.fileno())], 2, "does not listen"),
        ):
            assert run(["serve", *options]) == code, options
            assert told in capsys.readouterr().err


def test_a_missing_extra_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("edgeprism.serve.run")
    monkeypatch.delitem(sys.modules, "edgeprism.serve.run")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run(["serve", "--port", "0"]) == 2
    assert 'pip install "edgeprism[serve]"' in capsys.readouterr().err
