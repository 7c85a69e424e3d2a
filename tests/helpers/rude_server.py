"""An HTTP server that misbehaves on demand: raw bytes, silence, a slow drip."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

HANG, DRIP, NOTHING = "hang", "drip", "nothing"
DRIP_HEADER = "drip header"
_DRIPS = {
    DRIP: b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    DRIP_HEADER: b"HTTP/1.1 200 OK\r\nX: ",
}


def http(body: Any, status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    """Return a whole response; `length` is its Content-Length, true or not."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = len(data) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {size}", *headers, "", ""]
    return "\r\n".join(lines).encode() + data


def chunked(*chunks: tuple[bytes, bytes], headers: str = "") -> bytes:
    """Return a chunked response; each chunk is (the size as it is written, the data)."""
    head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{headers}\r\n".encode()
    return head + b"".join(size + b"\r\n" + data + b"\r\n" for size, data in chunks)


def reply(choice: Any = None, *, prompt_tokens: Any = None, **fields: Any) -> bytes:
    """Return a chat completion with any choice, usage and other fields."""
    usage = {} if prompt_tokens is None else {"usage": {"prompt_tokens": prompt_tokens}}
    return http({"choices": [] if choice is None else [choice], **usage, **fields})


def said(text: Any, finish_reason: str = "stop", **message: Any) -> bytes:
    """Return a chat completion."""
    choice = {"message": {"content": text, **message}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    return http({"choices": [choice], "usage": usage})


class RudeServer:
    """Treats each connection with the next of `behaviours`, and repeats the last one."""

    def __init__(self, *behaviours: bytes | str) -> None:
        self.behaviours = list(behaviours)
        self.requests: list[bytes] = []  # whole requests, with headers
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(request.partition(b"\r\n\r\n")[2]) for request in self.requests]

    def close(self) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes up accept
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        self.requests.append(_request(connection))
        behaviour = self.behaviours[min(len(self.requests), len(self.behaviours)) - 1]
        if behaviour == HANG:
            connection.recv(1)  # returns when the client closes the connection
        elif isinstance(behaviour, str) and behaviour in _DRIPS:
            connection.sendall(_DRIPS[behaviour])
            while not self._stop.wait(0.02):
                connection.sendall(b" ")
        elif isinstance(behaviour, bytes):
            connection.sendall(behaviour)


Serve = Callable[..., RudeServer]


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or b"\r\n\r\n"
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    wanted = int(lengths[0].split(b":")[1]) if lengths else 0
    while len(body) < wanted:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body
