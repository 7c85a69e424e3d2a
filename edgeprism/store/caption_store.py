"""The caption store: finished captions, addressed by content, in one SQLite file.

A caption's key is a hash of the picture's sha256, the bundle's digest and everything else that
decides the words. So the store knows a moved or renamed picture, keeps one caption for the same
picture under two names, and keeps another caption for another instruction. It also knows a picture
by its tiles, which are all that a model sees of it: a rating that another program writes into the
file changes its sha256 and none of its tiles.

The store remembers each file's sha256 by path and stamp (size, times, inode), so that an unchanged
file need not be read again, where the file system keeps times of change.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from edgeprism.files.file_systems import keeps_change_times
from edgeprism.files.home import data_dir
from edgeprism.files.safe_text import counted
from edgeprism.files.stamps import FileStamp, status_to_stamp
from edgeprism.store.claims import LEASE_S, Holders
from edgeprism.store.database import (
    BUSY_SECONDS,
    Database,
    StoreError,
    UnwritableStoreError,
)
from edgeprism.store.merge import Merged, merge_into
from edgeprism.store.outputs import OutputTable
from edgeprism.store.paths import absolute, bytes_to_path, can_be, is_unchanged, path_to_bytes
from edgeprism.store.request_key import RequestKey
from edgeprism.store.schema import MIGRATIONS
from edgeprism.store.stored_record import text_to_record

Result = TypeVar("Result")
# of a record's model; NULL where the record is no JSON, at which json_extract alone would fail
_NAME, _DIGEST = (
    f"CASE WHEN json_valid(record) THEN json_extract(record, '$.model.{field}') END"
    for field in ("name", "digest")
)


def default_path() -> Path:
    """Where the caption store lies unless another is named."""
    return data_dir() / "captions.sqlite3"


class CaptionStore:
    """One connection: use it from one thread. Several processes may open the same file."""

    def __init__(
        self,
        path: Path,
        *,
        needed: bool = False,
        on_unwritable: Callable[[StoreError], object] | None = None,
        on_damaged: Callable[[StoreError], object] | None = None,
    ) -> None:
        """Open or create `path`.

        With `on_unwritable`, a store that cannot be written (full disk, no permission) is read
        where that is possible, what would be written is dropped, and `on_unwritable` is called
        with the error, each time. A record that is damaged counts as none, so its caption is made
        again and replaces it; `on_damaged` is called with an error that says so, each time.
        `needed` is as for `Database`.

        Raises StoreError if the store is damaged, locked or too new; without `on_unwritable`,
        UnwritableStoreError if it cannot be written.
        """
        self.path = path
        self._on_unwritable, self._on_damaged = on_unwritable, on_damaged
        self._holders = Holders(socket.gethostname())
        self.outputs = OutputTable(self._rows, self._write)
        self._database: Database | None
        try:
            self._database = Database(path, MIGRATIONS, BUSY_SECONDS, needed=needed)
        except UnwritableStoreError as error:
            if on_unwritable is None:
                raise
            on_unwritable(error)
            self._database = Database.open_to_read(path, MIGRATIONS, needed=needed)

    def close(self) -> None:
        """Close the database."""
        if self._database is not None:
            self._database.close()

    def __enter__(self) -> CaptionStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- captions

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the record of a caption, as `Caption.to_dict` made it; None without a whole one.

        The store calls `on_damaged` for one that is not whole.
        """
        row = self._row("SELECT CAST(record AS BLOB) FROM captions WHERE key = ?", (key,))
        return self._whole(row)

    def get_alike(self, request: RequestKey, tiles_sha256: str) -> dict[str, Any] | None:
        """Return the record of any picture with these tiles; None without a whole one."""
        rows = self._rows(
            "SELECT CAST(record AS BLOB) FROM captions WHERE request = ? AND tiles_sha256 = ?",
            (request.id(), tiles_sha256),
        )
        return next(filter(None, map(self._whole, rows)), None)

    def put(
        self,
        request: RequestKey,
        image_sha256: str,
        record: dict[str, Any],
        *,
        path: str | os.PathLike[str] | None = None,
        tiles_sha256: str | None = None,
    ) -> None:
        """Store a record and end the claim on it, in one transaction.

        The record's `image` becomes the absolute form of `path`, if that is given.
        """
        key = request.key(image_sha256)
        if path is not None:
            record = {**record, "image": absolute(path)}
        text = json.dumps(record)  # in ASCII, because SQLite's text holds no lone surrogates
        settings = request.settings().encode("utf-8", "backslashreplace").decode()
        values = (key, image_sha256, request.id(), text, time.time(), tiles_sha256)

        def write(database: Database) -> None:
            database.execute(
                "INSERT OR IGNORE INTO requests VALUES (?, ?)", (request.id(), settings)
            )
            database.execute("INSERT OR REPLACE INTO captions VALUES (?, ?, ?, ?, ?, ?)", values)
            database.execute("DELETE FROM claims WHERE key = ?", (key,))

        self._write(write, None)

    # ---- digests of files

    def digest_of(self, path: str | os.PathLike[str], status: os.stat_result) -> str | None:
        """Return the remembered sha256 of a file; None if it may have changed since.

        It may have where size, times or inode differ, and on every file system that keeps no
        times of change.
        """
        row = self._row(
            "SELECT sha256 FROM files WHERE path = ? AND stamp = ?",
            (path_to_bytes(path), status_to_stamp(status).text()),
        )
        if row is None or not keeps_change_times(Path(path), status.st_dev):
            return None
        return str(row[0])

    def remember_file(self, path: str | os.PathLike[str], stamp: FileStamp, sha256: str) -> None:
        """Remember where a content lies, and its digest for as long as the stamp stays the same.

        `stamp` is the one from before the file was read. If the file was changed just before, a
        later change might not show in it, so the file will be read again.
        """
        values = (path_to_bytes(path), stamp.text() if stamp.settled else "", sha256)
        if self._row("SELECT 1 FROM files WHERE path = ? AND stamp = ? AND sha256 = ?", values):
            return
        self._write(
            lambda database: database.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?)", values
            ),
            None,
        )

    # ---- two processes on one folder

    def claim(self, key: str) -> bool:
        """Claim `key` for this process; return False if it must not caption it.

        It must not while another running process holds the claim. Nor must it if the store has the
        caption, whole: another process may have put it there, and ended its claim, after this
        process looked for the caption. `renew` the claim while the work goes on.
        """

        def take(database: Database) -> bool:
            made = database.execute(
                "SELECT CAST(record AS BLOB) FROM captions WHERE key = ?", (key,)
            ).fetchone()
            if made and text_to_record(made[0]) is not None:
                return False
            row = database.execute(
                "SELECT host, pid, until FROM claims WHERE key = ?", (key,)
            ).fetchone()
            if row and self._holders.is_held(key, *row):
                return False
            database.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)",
                (key, self._holders.host, os.getpid(), time.time() + LEASE_S),
            )
            return True

        return self._write(take, otherwise=True)

    def renew(self) -> None:
        """Prolong every claim of this process."""
        self._write(
            lambda database: database.execute(
                "UPDATE claims SET until = ? WHERE host = ? AND pid = ?",
                (time.time() + LEASE_S, self._holders.host, os.getpid()),
            ),
            None,
        )

    def release(self, key: str) -> None:
        """End a claim of this process, whose picture failed."""
        self._write(
            lambda database: database.execute(
                "DELETE FROM claims WHERE key = ? AND host = ? AND pid = ?",
                (key, self._holders.host, os.getpid()),
            ),
            None,
        )

    # ---- `edgeprism cache`

    def info(self) -> dict[str, Any]:
        """Return row counts, the size on disk, and the number of captions by bundle."""
        database = self._opened()
        with database.explained():
            counts = {
                table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
                for table in ("captions", "files", "requests", "claims")  # S608: constants only
            }
            bundles = database.execute(
                f"SELECT {_NAME}, {_DIGEST}, count(*) FROM captions"  # noqa: S608
                f" WHERE typeof({_NAME}) = 'text' AND typeof({_DIGEST}) = 'text'"
                " GROUP BY 1, 2 ORDER BY 3 DESC"
            ).fetchall()
            version = database.execute("PRAGMA user_version").fetchone()[0]
            journal = database.journal()
        return {
            "path": str(self.path),
            "schema": version,
            "journal": journal,
            "bytes": sum(p.stat().st_size for p in self._files()),
            **counts,
            "bundles": [{"name": n, "digest": d, "captions": c} for n, d, c in bundles],
        }

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield all records as they were put, oldest first."""
        for _, record in self._records():
            yield record

    def located_records(self) -> Iterator[dict[str, Any]]:
        """Yield all records, oldest first, with the places of their pictures.

        `paths` lists the absolute paths of files that hold the picture, the one read last first;
        files that are gone or changed since are left out. `image` is the first of them, else the
        path under which the caption was made.
        """
        database = self._opened()
        for image_sha256, record in self._records():
            with database.explained():
                rows = database.execute(
                    "SELECT path, stamp FROM files WHERE sha256 = ? ORDER BY rowid DESC",
                    (image_sha256,),
                ).fetchall()
            places = [(bytes_to_path(path), stamp) for path, stamp in rows]
            paths = [path for path, stamp in places if is_unchanged(path, stamp)]
            last_known = [path for path, _ in places if can_be(path, record.get("image"))]
            image = next(iter(paths or last_known), record.get("image"))
            yield {**record, "image": image, "paths": paths}

    def clear(self) -> int:
        """Delete everything; return the number of deleted captions."""
        database = self._opened()
        with database.explained():
            count = int(database.execute("SELECT count(*) FROM captions").fetchone()[0])
            with database.transaction():
                for table in ("captions", "files", "requests", "claims", "outputs"):
                    database.execute(f"DELETE FROM {table}")  # noqa: S608 - constants only
            database.execute("VACUUM")
        return count

    def prune(
        self, *, keep_digests: set[str] | None = None, dry_run: bool = False
    ) -> dict[str, int]:
        """Delete rows of missing files, and captions of other bundles.

        Captions stay if `keep_digests` is None or holds their bundle's digest; of a damaged record
        no bundle is known. Returns the numbers
        of deleted files and captions; with `dry_run` deletes nothing.
        """
        database = self._opened()
        with database.explained():
            paths = [row[0] for row in database.execute("SELECT path FROM files")]
        gone = [(path,) for path in paths if not os.path.lexists(path)]
        keep = tuple(keep_digests or ())
        others = (
            f"FROM captions WHERE coalesce({_DIGEST}, '') NOT IN ({', '.join('?' * len(keep))})"
        )
        with database.explained():
            count = database.execute(f"SELECT count(*) {others}", keep).fetchone()[0]
            captions = 0 if keep_digests is None else int(count)  # S608: question marks only
            if dry_run:
                return {"files": len(gone), "captions": captions}
            with database.transaction():
                database.execute_many("DELETE FROM files WHERE path = ?", gone)
                if captions:
                    database.execute(f"DELETE {others}", keep)
                database.execute(
                    "DELETE FROM requests WHERE id NOT IN (SELECT request FROM captions)"
                )
            database.execute("VACUUM")
        return {"files": len(gone), "captions": captions}

    def drop_stale_claims(self, *, dry_run: bool = False) -> int:
        """Delete claims that no living process can hold, or count them; return their number."""
        database = self._opened()
        with database.explained(), database.transaction():
            rows = database.execute("SELECT key, host, pid, until FROM claims").fetchall()
            stale = [(key,) for key, *claim in rows if self._holders.is_stale(*claim)]
            database.execute_many("DELETE FROM claims WHERE key = ?", [] if dry_run else stale)
        return len(stale)

    def merge(self, path: Path) -> Merged:
        """Take over all that another store holds; see `store.merge`. Raises StoreError."""
        return merge_into(self._opened(), path)

    # ---- internal

    def _opened(self) -> Database:
        if self._database is None:
            raise StoreError(f"{self.path}: the caption store is unusable: it cannot be opened.")
        return self._database

    def _row(self, statement: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return next(iter(self._rows(statement, values)), None)

    def _rows(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if self._database is None:
            return []
        with self._database.explained():
            return self._database.execute(statement, values).fetchall()

    def _write(self, work: Callable[[Database], Result], otherwise: Result) -> Result:
        """Do `work` in a transaction; if the store cannot be written, maybe go on `otherwise`."""
        database = self._database
        if database is None or database.read_only:
            return otherwise
        try:
            with database.explained(), database.transaction():
                return work(database)
        except UnwritableStoreError as error:
            if self._on_unwritable is None:
                raise
            self._on_unwritable(error)
            return otherwise

    def _whole(self, row: tuple[Any, ...] | None) -> dict[str, Any] | None:
        """Return the record of a row, if there is one and it is whole."""
        record = text_to_record(row[0]) if row else None
        if row and record is None and self._on_damaged is not None:
            self._on_damaged(StoreError(f"{self.path}: the caption store holds a damaged record."))
        return record

    def _records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield all whole records; raises StoreError after them if there are others."""
        database, damaged = self._opened(), 0
        statement = "SELECT image_sha256, CAST(record AS BLOB) FROM captions ORDER BY created, key"
        with database.explained():
            for image_sha256, text in database.execute(statement):
                record = text_to_record(text)
                if record is None:
                    damaged += 1
                else:
                    yield image_sha256, record
        if damaged:
            raise StoreError(
                f"{self.path}: {counted(damaged, 'record')} damaged; all others are whole.",
                "`edgeprism caption` makes a damaged caption again when it meets the picture.",
            )

    def _files(self) -> list[Path]:
        parts = (self.path, *(self.path.with_name(self.path.name + s) for s in ("-wal", "-shm")))
        return [path for path in parts if path.exists()]
