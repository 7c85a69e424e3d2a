"""The caption store: finished captions, addressed by content. SQLite, one file, WAL.

A caption's key is a hash of the picture's sha256, the bundle's digest and everything else that
decides the words. So the store knows a moved or renamed picture, keeps one caption for the same
picture under two names, and keeps another caption for another instruction. It remembers each
file's sha256 by path, size and mtime, so that an unchanged file need not be read again.
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

# MIGRATIONS[:n] bring a new file to user_version n. Old files rely on every entry: only append.
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
    """The caption store cannot be used; captioning works without it."""


@dataclass(frozen=True)
class RequestKey:
    """Everything except the picture that decides the words of a caption."""

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
        """Return the key of this request's caption of one picture."""
        return hashlib.sha256(f"{image_sha256}:{self.id()}".encode()).hexdigest()


def default_path() -> Path:
    """Where the caption store lies unless another is named."""
    return data_dir() / "captions.sqlite3"


class CaptionStore:
    """One connection: use it from one thread. Several processes may open the same file."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`; raises StoreError if it is corrupt, locked or too new."""
        self.path = path
        self.host = socket.gethostname()
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            self._use_wal()
            # NORMAL loses nothing when a process is killed. After a power cut the last captions
            # may be missing, and the next run makes them again.
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
        """Return the record of a caption, as `Caption.to_dict` made it; None without one."""
        with self._explained():
            row = self._db.execute("SELECT record FROM captions WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, request: RequestKey, image_sha256: str, record: dict[str, Any]) -> None:
        """Store a record and end the claim on it, in one transaction."""
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

    # ---- digests of files

    def digest_of(self, path: Path, status: os.stat_result) -> str | None:
        """Return the remembered sha256 of a file; None if its size or mtime changed since."""
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

    # ---- digests of outputs

    def written_before(self, path: Path) -> str | None:
        """Return the sha256 of what EdgePrism last wrote to `path`; None if it never did."""
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
        """Claim `key` for this process; return False if it must not caption it.

        It must not while another running process holds the claim. Nor must it if the store has the
        caption: another process may have put it there, and ended its claim, after this process
        looked for the caption.
        """
        now = time.time()
        with self._explained(), self._transaction():
            if self._db.execute("SELECT 1 FROM captions WHERE key = ?", (key,)).fetchone():
                return False
            row = self._db.execute(
                "SELECT host, pid, until FROM claims WHERE key = ?", (key,)
            ).fetchone()
            if row and self._is_claimed(row[0], row[1], row[2], now):
                return False
            self._db.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)",
                (key, self.host, os.getpid(), now + CLAIM_SECONDS),
            )
        return True

    def release(self, key: str) -> None:
        """End a claim of this process, whose picture failed."""
        with self._explained():
            self._db.execute(
                "DELETE FROM claims WHERE key = ? AND host = ? AND pid = ?",
                (key, self.host, os.getpid()),
            )

    def _is_claimed(self, host: str, pid: int, until: float, now: float) -> bool:
        if until < now or (host == self.host and pid == os.getpid()):
            return False
        return host != self.host or is_running(pid)

    # ---- `edgeprism cache`

    def seconds_per_picture(self, bundle_digest: str) -> float | None:
        """Return the mean total time of a bundle's last 50 captions; None without any."""
        with self._explained():
            row = self._db.execute(
                "SELECT avg(total) FROM (SELECT json_extract(record, '$.timings_ms.total') AS total"
                " FROM captions WHERE json_extract(record, '$.model.digest') = ?"
                " ORDER BY created DESC LIMIT 50)",
                (bundle_digest,),
            ).fetchone()
        return row[0] / 1000 if row[0] is not None else None

    def info(self) -> dict[str, Any]:
        """Return row counts, the size on disk, and the number of captions by bundle."""
        with self._explained():
            counts = {
                table: self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
                for table in ("captions", "files", "requests", "claims")  # S608: constants only
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
        """Yield all records, oldest first."""
        with self._explained():
            for (text,) in self._db.execute("SELECT record FROM captions ORDER BY created, key"):
                yield json.loads(text)

    def clear(self) -> int:
        """Delete everything; return the number of deleted captions."""
        with self._explained():
            count = int(self._db.execute("SELECT count(*) FROM captions").fetchone()[0])
            with self._transaction():
                for table in ("captions", "files", "requests", "claims", "outputs"):
                    self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - constants only
            self._db.execute("VACUUM")
        return count

    def prune(self, *, keep_digests: set[str] | None = None) -> dict[str, int]:
        """Delete rows of missing files, expired claims, and captions of other bundles.

        Captions stay if `keep_digests` is None or holds their bundle's digest. Returns the numbers
        of deleted files and captions.
        """
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
                        f" NOT IN ({marks})",  # S608: question marks only
                        tuple(keep_digests),
                    ).rowcount
                self._db.execute(
                    "DELETE FROM requests WHERE id NOT IN (SELECT request FROM captions)"
                )
            self._db.execute("VACUUM")
        return {"files": len(gone), "captions": captions}

    # ---- internal

    def _files(self) -> list[Path]:
        parts = (self.path, *(self.path.with_name(self.path.name + s) for s in ("-wal", "-shm")))
        return [path for path in parts if path.exists()]

    def _use_wal(self) -> None:
        """Turn on write-ahead logging; for this statement SQLite does not wait for a lock."""
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
        with self._transaction():  # a second process waits here, then reads the new version
            version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            for script in MIGRATIONS[version:]:
                for statement in script.split(";"):  # executescript would commit first
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
                else "Move the file away to start with an empty store, or use `use_store=False`.",
            ) from error


def _text(path: Path) -> str:
    """Write a path as SQLite text, with bytes that are not UTF-8 escaped."""
    return os.fsencode(os.path.abspath(path)).decode("utf-8", errors="backslashreplace")
