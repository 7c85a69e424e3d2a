"""A running server for tests, and a client that speaks HTTP through Python's own library."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeprism.serve.options import Limits, ServeOptions
from edgeprism.serve.run import Server, make_server, open_socket, run_server

_PATIENCE_S = 60.0


@dataclass
class Reply:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The word of an error."""
        return str(self.data["error"]["code"])

    def events(self) -> list[tuple[str, Any]]:
        """Server-sent events as (name, data)."""
        found = []
        for block in self.body.decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines())
            if "data" in lines:
                data = lines["data"]
                parsed = json.loads(data) if data.startswith(("{", "[{")) else data
                found.append((lines.get("event", ""), parsed))
        return found


@dataclass
class Running:
    """A server that runs in a thread."""

    host: str
    port: int
    server: Server
    log: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"

    def request(
        self, method: str, path: str, body: bytes | None = None,
        headers: Mapping[str, str] | None = None, *, timeout: float = _PATIENCE_S,
    ) -> Reply:  # fmt: skip
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        sent = {"Content-Type": "application/json", **headers}
        return self.request("POST", path, json.dumps(body).encode(), sent)

    def raw(self) -> socket.socket:
        """A connection on which nothing was sent."""
        return socket.create_connection((self.host, self.port), timeout=_PATIENCE_S)

    def taken(self) -> int:
        """How many places of the queue are taken."""
        lines = self.get("/metrics").body.decode().splitlines()
        values = [line.split()[1] for line in lines if line.startswith("edgeprism_places_taken ")]
        return int(values[0])


@contextlib.contextmanager
def serving(limits: Limits | None = None, **options: Any) -> Iterator[Running]:
    """Run a server on a free port inside the block."""
    log: list[str] = []
    made = ServeOptions(port=0, limits=limits or Limits(), on_log=log.append, **options)
    with open_socket(made) as listener:
        host, port = listener.getsockname()[:2]
        server = make_server(made)
        thread = threading.Thread(target=run_server, args=(server, listener), daemon=True)
        thread.start()
        try:
            yield Running(host, port, server, log)
        finally:
            server.stop()
            thread.join(_PATIENCE_S)
            assert not thread.is_alive(), "the server does not end"


def as_data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def as_form(fields: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """A multipart form and its headers; the files' field is `images`."""
    boundary = "a-boundary-of-the-tests"
    parts = []
    for name, value in fields.items():
        parts.append(f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode())
    for name, data in files.items():
        head = f'Content-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + data)
    body = b"".join(f"--{boundary}\r\n".encode() + part + b"\r\n" for part in parts)
    body += f"--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
