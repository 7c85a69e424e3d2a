"""A stand-in for a model hub on loopback: what huggingface_hub requests, and hub failures."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
import time
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

    `cards` has model cards as JSON by repository. `sizes` and `digests` replace what the hub says
    of files, `lengths` what a download's headers say. Repositories that were `renamed` ({old: new})
    and downloads with `redirects` answer with a redirect, the latter to another host name. `branch`
    is the only one. `listing` replaces every listing, `info` entries of it, and `headers` those of
    every file's answer; a download of a file in `surplus` has so many bytes more than its HEAD
    says. With `endless` bytes, listings and refusals repeat these after what they have to say, with
    a `pause` in seconds before each, until the client leaves; `sent` counts them. The first
    requests are answered with the HTTP statuses in `refusals`, with `retry_after` if it is set; a
    status of 0 drops the connection.
    """

    repositories: dict[str, dict[str, bytes]]
    budgets: dict[str, list[int]] = field(default_factory=dict)
    stalls: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)
    damaged: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    garbled: set[str] = field(default_factory=set)
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    listing: bytes = b""
    endless: bytes = b""
    pause: float = 0.0
    info: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    surplus: dict[str, int] = field(default_factory=dict)
    redirects: bool = False
    branch: str = "main"
    refusals: list[int] = field(default_factory=list)
    retry_after: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    sent: int = 0
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
        if self.hub.refusals and self._refused(self.hub.refusals.pop(0)):
            return
        for old, new in self.hub.renamed.items():
            if path.startswith((f"/{old}/", f"/api/models/{old}/")):
                self._redirect(path.replace(old, new, 1))
                return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._answer_info(*match.groups())
        elif re.fullmatch(r"/api/models/([^/]+/[^/]+)/refs", path):
            ref = {"name": self.hub.branch, "ref": f"refs/heads/{self.hub.branch}",
                   "targetCommit": "0" * 40}  # fmt: skip
            self._send_json({"branches": [ref], "converts": [], "tags": []})
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
        if revision not in (self.hub.branch, commit_of(files)):
            self._refuse(404, "RevisionNotFound")
            return None
        return files

    def _answer_info(self, repo: str, revision: str) -> None:
        files = self._files_of(repo, revision)
        if files is None:
            return
        siblings = []
        for name, data in files.items():
            size = self.hub.sizes.get(name, len(data))
            sibling: dict[str, Any] = {
                "rfilename": name, "size": size, "blobId": _git_blob(data),
            }  # fmt: skip
            if len(data) >= _LFS_FROM:
                digest = self.hub.digests.get(name, hashlib.sha256(data).hexdigest())
                sibling["lfs"] = {"sha256": digest, "size": size, "pointerSize": 134}
            siblings.append(sibling)
        card = self.hub.cards.get(repo)
        info = {"id": repo, "sha": commit_of(files), "siblings": siblings, "cardData": card}
        info |= self.hub.info
        if self.hub.listing:
            self._send_body(self.hub.listing)
        else:
            self._send_json({"siblings": [3]} if repo in self.hub.garbled else info)

    def _send_json(self, data: object) -> None:
        self._send_body(json.dumps(data).encode())

    def _send_body(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        if not self.hub.endless:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self._send_endlessly()

    def _send_endlessly(self) -> None:
        with contextlib.suppress(OSError):  # the client has had enough
            while self.hub.endless:
                time.sleep(self.hub.pause)
                self.wfile.write(self.hub.endless)
                self.hub.sent += len(self.hub.endless)

    def _answer_file(self, repo: str, revision: str, name: str) -> None:
        files = self._files_of(repo, revision)
        if files is None:
            return
        if name not in files or name in self.hub.lost:
            self._refuse(404, "EntryNotFound", self.hub.headers)
            return
        host, port = self.headers["Host"].split(":")
        if self.hub.redirects and host == "127.0.0.1":
            self._redirect(f"http://localhost:{port}{self.path}", files[name])
            return
        data = files[name]
        etag = hashlib.sha256(data).hexdigest() if len(data) >= _LFS_FROM else _git_blob(data)
        if name in self.hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        headers = {
            "ETag": f'"{etag}"', "X-Repo-Commit": commit_of(files), "Accept-Ranges": "bytes",
            "Content-Length": str(self.hub.lengths.get(name, len(data) - start)),
        }  # fmt: skip
        if self.command == "GET" and name in self.hub.surplus:
            data += bytes(self.hub.surplus[name])
            del headers["Content-Length"]
        for header, value in (headers | self.hub.headers).items():
            self.send_header(header, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self._send(name, data[start:])

    def _send(self, name: str, data: bytes) -> None:
        budgets = self.hub.budgets.get(name)
        if not budgets:
            with contextlib.suppress(ConnectionError):  # the client may have had enough
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

    def _redirect(self, location: str, data: bytes | None = None) -> None:
        """Send the client elsewhere; of a file the hub itself says what it is, as on a real hub."""
        self.send_response(307 if data is None else 302)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        if data is not None:
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(data)))
            repo = urlsplit(self.path).path.partition("/resolve/")[0].strip("/")
            self.send_header("X-Repo-Commit", commit_of(self.hub.repositories[repo]))
        self.end_headers()

    def _refused(self, status: int) -> bool:
        if status == 200:
            return False
        if not status:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return True
        self.send_response(status)
        if self.hub.retry_after:
            self.send_header("Retry-After", self.hub.retry_after)
        self._end_refusal()
        return True

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        self._end_refusal()

    def _end_refusal(self) -> None:
        if not self.hub.endless:
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.command == "GET":
            self._send_endlessly()


def _git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
