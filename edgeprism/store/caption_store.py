"""The caption store: what was captioned, addressed by content. SQLite, one file, WAL.

A caption's key is made of the picture's sha256, the bundle's digest and everything that decides
the words. So a moved or renamed picture is known, the same picture twice is one caption, and
another instruction is another caption. Path, size and mtime of a file seen before stand for its
sha256, so that nothing need be read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprism.errors import EdgePrismError
from edgeprism.files.atomic import is_running
from edgeprism.files.home import data_dir

APPLICATION_ID = 0x45505249  # "EPRI"
BUSY_SECONDS = 10.0
CLAIM_SECONDS = 600.0

# user_version n is reached by running MIGRATIONS[: n]; only ever append
MIGRATIONS = (
    """
    CREATE TABLE requests (id TEXT PRIMARY KEY, settings TEXT NOT NULL);
    CREATE TABLE captions (
        key TEXT PRIMARY KEY,
        image_sha256 TEXT NOT NULL,
        request TEXT NOT NULL REFERENCES requests(id),
        record TEXT NOT NULL,
        created REAL NOT NULL
    );
    CREATE INDEX captions_by_image ON captions (image_sha256);
    CREATE TABLE files (
        path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        sha256 TEXT NOT NULL
    );
    CREATE TABLE outputs (path TEXT PRIMARY KEY, sha256 TEXT NOT NULL);
    CREATE TABLE claims (
        key TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, until REAL NOT NULL
    );
    """,
)


class StoreError(EdgePrismError):
    """The caption store cannot be used; captioning can go on without it."""


@dataclass(frozen=True)
class RequestKey:
    """Everything beside the picture that decides the words of a caption."""

    bundle_digest: str
    vision_quant: str
    kv_type: str
    instruction: str
    max_tokens: int
    temperature: float
    seed: int
    reader: (
        int  # version of how pictures are read and resized (edgeprism.picture.read.READER_VERSION)
    )

    def settings(self) -> str:
        """Everything that decides a caption's words, as text."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    def id(self) -> str:
        """A digest of the settings."""
        return hashlib.sha256(self.settings().encode()).hexdigest()

    def key(self, image_sha256: str) -> str:
        """The caption's address."""
        return hashlib.sha256(f"{image_sha256}:{self.id()}".encode()).hexdigest()


def default_path() -> Path:
    """Where the caption store lies unless another is named."""
    return data_dir() / "captions.sqlite3"


class CaptionStore:
    """One connection: use it from one thread. Several processes may hold the same file."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`; raises StoreError when it is corrupt, locked or too new."""
        self.path = path
        self.host = socket.gethostname()
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            self._use_wal()
            # a killed process loses nothing; after a power cut the last captions are made again
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._migrate()

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def __enter__(self) -> CaptionStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- captions

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of a caption, as `Caption.to_dict` made it."""
        with self._explained():
            row = self._db.execute("SELECT record FROM captions WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, request: RequestKey, image_sha256: str, record: dict[str, Any]) -> None:
        """Keep a record and end the claim on it, in one transaction."""
        key = request.key(image_sha256)
        text = json.dumps(record, ensure_ascii=False)
        with self._explained(), self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO requests VALUES (?, ?)", (request.id(), request.settings())
            )
            self._db.execute(
                "INSERT OR REPLACE INTO captions VALUES (?, ?, ?, ?, ?)",
                (key, image_sha256, request.id(), text, time.time()),
            )
            self._db.execute("DELETE FROM claims WHERE key = ?", (key,))

    # ---- files seen before

    def digest_of(self, path: Path, status: os.stat_result) -> str | None:
        """sha256 of a file whose size and mtime are as when it was last read."""
        with self._explained():
            row = self._db.execute(
                "SELECT sha256 FROM files WHERE path = ? AND size = ? AND mtime_ns = ?",
                (_text(path), status.st_size, status.st_mtime_ns),
            ).fetchone()
        return row[0] if row else None

    def remember_file(self, path: Path, size: int, mtime_ns: int, sha256: str) -> None:
        """Remember a file's digest for as long as its size and time stay the same."""
        with self._explained():
            self._db.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
                (_text(path), size, mtime_ns, sha256),
            )

    # ---- outputs written before

    def written_before(self, path: Path) -> str | None:
        """sha256 of what EdgePrism last wrote to `path`, so that it may be written anew."""
        with self._explained():
            row = self._db.execute(
                "SELECT sha256 FROM outputs WHERE path = ?", (_text(path),)
            ).fetchone()
        return row[0] if row else None

    def remember_output(self, path: Path, sha256: str) -> None:
        """Remember what EdgePrism wrote to `path`."""
        with self._explained():
            self._db.execute("INSERT OR REPLACE INTO outputs VALUES (?, ?)", (_text(path), sha256))

    # ---- two processes on one folder

    def claim(self, key: str) -> bool:
        """Whether this process may caption `key`: nobody else is at it, or they are gone.

        Nor may it where the caption is there by now: whoever made it ended their claim in the
        same transaction, perhaps after this process had looked for the caption.
        """
        now = time.time()
        with self._explained(), self._transaction():
            if self._db.execute("SELECT 1 FROM captions WHERE key = ?", (key,)).fetchone():
                return False
            row = self._db.execute(
                "SELECT host, pid, until FROM claims WHERE key = ?", (key,)
            ).fetchone()
            if row and self._held(row[0], row[1], row[2], now):
                return False
            self._db.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)",
                (key, self.host, os.getpid(), now + CLAIM_SECONDS),
            )
        return True

    def release(self, key: str) -> None:
        """Give back a claim of this process (a failed picture)."""
        with self._explained():
            self._db.execute(
                "DELETE FROM claims WHERE key = ? AND host = ? AND pid = ?",
                (key, self.host, os.getpid()),
            )

    def _held(self, host: str, pid: int, until: float, now: float) -> bool:
        if until < now or (host == self.host and pid == os.getpid()):
            return False
        return host != self.host or is_running(pid)

    # ---- `edgeprism cache`

    def seconds_per_picture(self, bundle_digest: str) -> float | None:
        """Mean time of a bundle's last captions, each by itself; None without any."""
        with self._explained():
            row = self._db.execute(
                "SELECT avg(total) FROM (SELECT json_extract(record, '$.timings_ms.total') AS total"
                " FROM captions WHERE json_extract(record, '$.model.digest') = ?"
                " ORDER BY created DESC LIMIT 50)",
                (bundle_digest,),
            ).fetchone()
        return row[0] / 1000 if row[0] is not None else None

    def info(self) -> dict[str, Any]:
        """Counts, size on disk, and captions by bundle."""
        with self._explained():
            counts = {
                table: self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
                for table in ("captions", "files", "requests", "claims")  # S608: no other name
            }
            bundles = self._db.execute(
                "SELECT json_extract(record, '$.model.name'), json_extract(record,"
                " '$.model.digest'), count(*) FROM captions GROUP BY 1, 2 ORDER BY 3 DESC"
            ).fetchall()
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
        return {
            "path": str(self.path),
            "schema": version,
            "bytes": sum(p.stat().st_size for p in self._files()),
            **counts,
            "bundles": [{"name": n, "digest": d, "captions": c} for n, d, c in bundles],
        }

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, oldest first."""
        with self._explained():
            for (text,) in self._db.execute("SELECT record FROM captions ORDER BY created, key"):
                yield json.loads(text)

    def clear(self) -> int:
        """Forget everything; how many captions that were."""
        with self._explained():
            count = int(self._db.execute("SELECT count(*) FROM captions").fetchone()[0])
            with self._transaction():
                for table in ("captions", "files", "requests", "claims", "outputs"):
                    self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - these tables alone
            self._db.execute("VACUUM")
        return count

    def prune(self, *, keep_digests: set[str] | None = None) -> dict[str, int]:
        """Drop files that are gone, ended claims, and captions of bundles not in `keep_digests`."""
        with self._explained():
            paths = [row[0] for row in self._db.execute("SELECT path FROM files")]
            gone = [(path,) for path in paths if not os.path.lexists(path)]
            with self._transaction():
                self._db.executemany("DELETE FROM files WHERE path = ?", gone)
                self._db.execute("DELETE FROM claims WHERE until < ?", (time.time(),))
                captions = 0
                if keep_digests is not None:
                    marks = ", ".join("?" * len(keep_digests))
                    captions = self._db.execute(
                        "DELETE FROM captions WHERE json_extract(record, '$.model.digest')"  # noqa: S608
                        f" NOT IN ({marks})",  # S608: question marks alone
                        tuple(keep_digests),
                    ).rowcount
                self._db.execute(
                    "DELETE FROM requests WHERE id NOT IN (SELECT request FROM captions)"
                )
            self._db.execute("VACUUM")
        return {"files": len(gone), "captions": captions}

    # ---- inside

    def _files(self) -> list[Path]:
        parts = (self.path, *(self.path.with_name(self.path.name + s) for s in ("-wal", "-shm")))
        return [path for path in parts if path.exists()]

    def _use_wal(self) -> None:
        """Write-ahead logging; the one statement for which SQLite does not wait for others."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                if self._db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _migrate(self) -> None:
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.path}: the caption store has schema {version}, this EdgePrism knows "
                f"{len(MIGRATIONS)}.",
                "Use a newer EdgePrism, or `use_store=False`.",
            )
        if version == len(MIGRATIONS):
            return
        with self._transaction():  # a second process waits here and then finds it done
            version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            for script in MIGRATIONS[version:]:
                for statement in script.split(";"):  # executescript would commit in between
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            locked = "locked" in str(error)
            raise StoreError(
                f"{self.path}: the caption store is {'locked' if locked else 'unusable'}: {error}.",
                "Wait for the other process, or use `use_store=False`."
                if locked
                else "Move the file away to start anew, or use `use_store=False`.",
            ) from error


def _text(path: Path) -> str:
    """A path as SQLite text: bytes that are not UTF-8 are escaped, not lost."""
    return os.fsencode(os.path.abspath(path)).decode("utf-8", errors="backslashreplace")
