"""Whatever clients do, the next honest request is answered within a second."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprism.serve.options import Limits
from tests.helpers.serving import Reply, Running, as_base64, serving

PROMPT_S = 1.0
# The machine of the tests has other work too; what is not prompt takes minutes.
SLACK = float(os.environ.get("EDGEPRISM_TEST_SLACK", "3"))


@pytest.fixture(scope="module")
def hurried(scenes: list[bytes]) -> Iterator[Running]:
    """A server with short time limits, and few connections."""
    limits = Limits(
        head_seconds=0.6, body_seconds=1.2, write_seconds=0.6, connections=100,
        body_bytes=1_000_000, bodies_bytes=4_000_000,
    )  # fmt: skip
    with serving(limits, keep_alive_s=float("inf")) as running:
        honest(running, scenes)
        yield running


def honest(server: Running, scenes: list[bytes]) -> float:
    """Ask for a caption; return the seconds until it came."""
    start = time.monotonic()
    reply = server.post("/v1/captions", {"images": [as_base64(scenes[0])]})
    assert reply.status == 200
    assert reply.data["captions"][0]["caption"]
    return time.monotonic() - start


@contextlib.contextmanager
def open_to(server: Running, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server.raw()) for _ in range(count)]


def read_all(connection: socket.socket) -> bytes:
    """What the server sends until it ends a connection."""
    connection.settimeout(10)
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def is_closed(connection: socket.socket) -> bool:
    """Wait for the server to end a connection."""
    connection.settimeout(10)
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def test_slow_heads_and_idle_connections_end(hurried: Running, scenes: list[bytes]) -> None:
    with open_to(hurried, 60) as connections:
        for number, connection in enumerate(connections):
            if number % 3:
                connection.sendall(b"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        assert honest(hurried, scenes) < PROMPT_S * SLACK
        for _ in range(3):  # a byte now and then does not prolong it
            time.sleep(0.25)
            for connection in connections[1::3]:
                with contextlib.suppress(OSError):
                    connection.sendall(b"a")
        assert all(map(is_closed, connections))


def test_five_hundred_idle_connections_keep_nobody_out(
    hurried: Running, scenes: list[bytes]
) -> None:
    with open_to(hurried, 500):
        assert honest(hurried, scenes) < PROMPT_S * SLACK
        assert len(hurried.server.server_state.connections) <= 100


def test_half_bodies_end(hurried: Running, scenes: list[bytes]) -> None:
    head = (b"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{")  # fmt: skip
    chunked = head.replace(b"Content-Length: 100000", b"Transfer-Encoding: chunked")
    with open_to(hurried, 40) as connections:
        for number, connection in enumerate(connections):
            connection.sendall(head if number % 2 else chunked[:-1] + b"5\r\n{")
        assert honest(hurried, scenes) < PROMPT_S * SLACK
        answer = b""
        connections[1].settimeout(10)
        while part := connections[1].recv(65536):
            answer += part
        assert answer.startswith(b"HTTP/1.1 408")
        assert all(map(is_closed, connections))


def test_half_bodies_give_way_where_memory_is_short(hurried: Running, scenes: list[bytes]) -> None:
    head = (b"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 900000\r\n\r\n{")  # fmt: skip
    with open_to(hurried, 40) as connections:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(head + b" " * 200_000)
        assert honest(hurried, scenes) < PROMPT_S * SLACK
        assert all(map(is_closed, connections))
    assert any("429 too_many_bytes" in line for line in hurried.log)


def test_chunks_without_end_are_refused(hurried: Running, scenes: list[bytes]) -> None:
    """Fast ones at the limit of the size, slow ones at that of the time."""
    head = (b"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")  # fmt: skip
    answers: dict[int, bytes] = {}

    def read(place: int, connection: socket.socket) -> None:
        answers[place] = read_all(connection)

    def flood(place: int, chunk: bytes, pause: float) -> None:
        with hurried.raw() as connection:
            connection.sendall(head)
            reader = threading.Thread(target=read, args=(place, connection))
            reader.start()
            with contextlib.suppress(OSError):  # until the server has had enough
                while reader.is_alive():
                    connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    time.sleep(pause)
            reader.join()

    floods = [
        threading.Thread(target=flood, args=(0, b" " * 100_000, 0.0)),
        threading.Thread(target=flood, args=(1, b" ", 0.1)),
    ]
    for thread in floods:
        thread.start()
    assert honest(hurried, scenes) < PROMPT_S * SLACK
    for thread in floods:
        thread.join(30)
    # a client that goes on sending may not get to read it
    assert any("413 body_too_large" in line for line in hurried.log)
    assert answers[1].startswith(b"HTTP/1.1 408")
    assert honest(hurried, scenes) < PROMPT_S * SLACK


def test_a_flood_of_headers_is_refused(hurried: Running, scenes: list[bytes]) -> None:
    with open_to(hurried, 4) as connections:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
                for number in range(20_000):
                    connection.sendall(b"X-%d: %s\r\n" % (number, b"a" * 100))
            assert is_closed(connection)
        assert honest(hurried, scenes) < PROMPT_S * SLACK


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\0" * 5000,
                                     b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                                     b"POST /v1/ask HTTP/1.1\r\nHost: localhost\r\n"
                                     b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
                                     b"POST /v1/ask HTTP/1.1\r\nHost: localhost\r\n"
                                     b"Content-Length: -1\r\n\r\n",
                                     b"POST /v1/ask HTTP/1.1\r\nHost: localhost\r\n"
                                     b"Content-Type: application/json\r\n"
                                     b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"])  # fmt: skip
def test_garbage_ends_the_connection(hurried: Running, scenes: list[bytes], garbage: bytes) -> None:
    with hurried.raw() as connection:
        connection.sendall(garbage)
        answer = read_all(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"content-type: application/json" in head.lower()
    assert json.loads(body)["error"]["code"] == "invalid_http"
    assert honest(hurried, scenes) < PROMPT_S * SLACK


def png(width: int, height: int) -> bytes:
    """A PNG of one colour that unpacks to very much."""
    packer = zlib.compressobj(9)
    row = b"\0" + bytes(width // 8 + 1)
    data = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def test_costly_pictures_hold_nobody_up(hurried: Running, scenes: list[bytes]) -> None:
    """They have a worker process of their own."""
    bomb = as_base64(png(6000, 5000))
    threads = [
        threading.Thread(target=hurried.post, args=("/v1/captions", {"images": [bomb]}))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    seconds = [honest(hurried, scenes) for _ in range(3)]
    for thread in threads:
        thread.join()
    assert max(seconds) < PROMPT_S * SLACK


def decoders() -> list[int]:
    """The worker processes of this process's servers."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            if b"picture.workers" in words and int(parent) == os.getpid():
                found.append(int(entry.name))
    return found


def has_ended(pid: int) -> bool:
    """Whether a killed process is gone, or waits as a zombie for its parent to notice."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_picture_that_kills_its_decoder_costs_one_picture(
    hurried: Running, scenes: list[bytes]
) -> None:
    replies: list[Reply] = []
    bomb = {"images": [as_base64(png(9000, 9000))]}
    thread = threading.Thread(target=lambda: replies.append(hurried.post("/v1/captions", bomb)))
    thread.start()
    deadline = time.monotonic() + 20
    while not replies and time.monotonic() < deadline:
        time.sleep(0.3)
        for pid in (killed := decoders()):
            os.kill(pid, signal.SIGKILL)
        while not all(map(has_ended, killed)):
            time.sleep(0.01)
        assert honest(hurried, scenes) < PROMPT_S * SLACK
    thread.join()
    error = replies[0].data["captions"][0]["error"]
    assert error["code"] == "unreadable_picture"
    assert "broke its decoder" in error["message"]
    assert honest(hurried, scenes) < PROMPT_S * SLACK


def request_bytes(scenes: list[bytes], count: int, *, stream: bool) -> bytes:
    body = (
        b'{"images":["' + b'","'.join(as_base64(data).encode() for data in scenes[:1] * count)
        + b'"],"stream":' + (b"true" if stream else b"false") + b"}"
    )  # fmt: skip
    return (
        b"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_vanish_free_their_places(
    hurried: Running, scenes: list[bytes], stream: bool
) -> None:
    with open_to(hurried, 8) as connections:
        for connection in connections:
            connection.sendall(request_bytes(scenes, 16, stream=stream))
        deadline = time.monotonic() + 10
        while hurried.taken() < 40 and time.monotonic() < deadline:
            time.sleep(0.01)
    start = time.monotonic()
    while hurried.taken() and time.monotonic() - start < 10:
        time.sleep(0.02)
    assert time.monotonic() - start < PROMPT_S * SLACK
    assert honest(hurried, scenes) < PROMPT_S * SLACK


def test_a_reader_that_reads_nothing_holds_up_nobody(hurried: Running, scenes: list[bytes]) -> None:
    with open_to(hurried, 3) as connections:
        for connection in connections[:2]:
            connection.sendall(request_bytes(scenes, 8, stream=True))
        with contextlib.suppress(OSError):
            connections[2].sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400)
        assert honest(hurried, scenes) < 2 * SLACK  # behind the captions that were asked for before
        time.sleep(1.2)  # twice what a client may take to read on
        assert is_closed(connections[2])
        assert hurried.taken() == 0
