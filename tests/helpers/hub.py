"""A stand-in for a model hub on loopback: what huggingface_hub requests, and hub failures."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

_LFS_FROM = 1000  # bytes; smaller files have a git id instead of a sha256, as on a real hub


@dataclass
class StandInHub:
    """Context manager: serves `repositories` ({repo: {file: bytes}}) at `endpoint`.

    `budgets[file]` has the bytes that each successive download sends before the hub cuts the
    connection or, with `stalls`, sends nothing more (and sets `stalled`). `damaged` files have one
    changed byte. The hub lists `lost` files but does not find them, refuses `gated` repositories,
    and describes `garbled` ones in an unknown format. `requests` has the requests in order.
    """

    repositories: dict[str, dict[str, bytes]]
    budgets: dict[str, list[int]] = field(default_factory=dict)
    stalls: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)
    damaged: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    garbled: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    agents: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def __enter__(self) -> StandInHub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
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

    def downloads(self, name: str) -> list[str]:
        """Return the Range header ("" for none) of each download of a file."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(name)]

    def add_folder(self, repo: str, folder: Path) -> None:
        """Publish a folder of checkpoints."""
        self.repositories[repo] = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


def commit_of(files: dict[str, bytes]) -> str:
    """Return a repository's only revision, a function of its content as in git."""
    return hashlib.sha1(b"".join(n.encode() + d for n, d in sorted(files.items()))).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = (
        "HTTP/1.0"  # one connection per request, so that no client keeps a closed hub's connection
    )

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        self.hub.agents.append(self.headers.get("User-Agent", ""))
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._answer_info(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._answer_file(*match.groups())
        else:
            self._refuse(404, "RepoNotFound")

    def _files_of(self, repo: str, revision: str) -> dict[str, bytes] | None:
        files = self.hub.repositories.get(repo)
        if files is None:
            self._refuse(404, "RepoNotFound")
            return None
        if repo in self.hub.gated:
            self._refuse(403, "GatedRepo")
            return None
        if revision not in ("main", commit_of(files)):
            self._refuse(404, "RevisionNotFound")
            return None
        return files

    def _answer_info(self, repo: str, revision: str) -> None:
        files = self._files_of(repo, revision)
        if files is None:
            return
        siblings = []
        for name, data in files.items():
            sibling: dict[str, Any] = {
                "rfilename": name, "size": len(data), "blobId": _git_blob(data),
            }  # fmt: skip
            if len(data) >= _LFS_FROM:
                digest = hashlib.sha256(data).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(sibling)
        body = json.dumps({"id": repo, "sha": commit_of(files), "siblings": siblings}).encode()
        if repo in self.hub.garbled:
            body = b'{"siblings": [3]}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer_file(self, repo: str, revision: str, name: str) -> None:
        files = self._files_of(repo, revision)
        if files is None:
            return
        if name not in files or name in self.hub.lost:
            self._refuse(404, "EntryNotFound")
            return
        data = files[name]
        etag = hashlib.sha256(data).hexdigest() if len(data) >= _LFS_FROM else _git_blob(data)
        if name in self.hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit_of(files))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self._send(name, data[start:])

    def _send(self, name: str, data: bytes) -> None:
        budgets = self.hub.budgets.get(name)
        if not budgets:
            self.wfile.write(data)
            return
        self.wfile.write(data[: budgets.pop(0)])
        self.wfile.flush()
        if self.hub.stalls:
            self.hub.stalled.set()
            self.connection.settimeout(30)
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # returns when the client has gone
            return
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
