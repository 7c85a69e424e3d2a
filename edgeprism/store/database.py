"""One SQLite file: opened as its file system allows, brought to its schema, its errors in words."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edgeprism.errors import EdgePrismError
from edgeprism.files.file_systems import shares_memory
from edgeprism.store.schema import APPLICATION_ID

_UNWRITABLE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
_UNWRITABLE_CODES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_NO_LOCKS = {
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOLFS,
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_RDLOCK,
    sqlite3.SQLITE_IOERR_UNLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMLOCK,
    sqlite3.SQLITE_IOERR_SHMMAP,
}
BUSY_SECONDS = 10.0


class StoreError(EdgePrismError):
    """The caption store cannot be used; captioning works without it."""


class UnwritableStoreError(StoreError):
    """The caption store cannot be written: its disk is full, or it may only be read."""


class Database:
    """A connection to the store's file: use it from one thread."""

    def __init__(
        self, path: Path, migrations: Sequence[str], busy_s: float, *, needed: bool = False
    ) -> None:
        """Open or create `path`.

        `needed` says that the work is about the store itself, so that no hint advises to do
        without it. Raises UnwritableStoreError if it cannot be written, StoreError if it is
        damaged, locked or too new, or if its file system does not lock files.
        """
        self.path = path
        self._migrations = migrations
        self._busy_s, self._needed = busy_s, needed
        self.read_only = False
        with self.explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=busy_s, isolation_level=None)
        try:
            with self.explained():
                self._use_journal()
                # NORMAL loses nothing when a process is killed. After a power cut the last captions
                # may be missing, and the next run makes them again.
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._migrate()
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def open_to_read(
        cls, path: Path, migrations: Sequence[str], *, needed: bool = False
    ) -> Database | None:
        """Open a store that cannot be written; None without one of this schema.

        A store that another program might change is not opened as unchanging ("immutable"), so
        one with a write-ahead log is left alone where the log cannot be read.
        """
        database = cls.__new__(cls)
        database.path, database._migrations, database._busy_s = path, migrations, 1.0
        database.read_only, database._needed = True, needed
        log = path.with_name(path.name + "-wal")
        modes = ["mode=ro"]
        if not (os.path.exists(log) and os.path.getsize(log)):
            modes.append("mode=ro&immutable=1")
        for mode in modes:
            name = f"file:{quote(os.fsencode(os.path.abspath(path)))}?{mode}"
            try:
                database._db = sqlite3.connect(name, uri=True, isolation_level=None)
                if database._version() == len(migrations):
                    return database
                database._db.close()
            except sqlite3.Error:
                continue  # the next mode may do; the caller says that the store cannot be used
        return None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run a statement; raises sqlite3.Error, for `explained` to tell."""
        return self._db.execute(statement, values)

    def execute_many(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement for each of `values`."""
        self._db.executemany(statement, values)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what the block does, or undo it after an exception."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk has undone it already
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn errors of the database itself, and of no picture, into StoreError."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._explain(error) from error
        except OSError as error:
            kind = UnwritableStoreError if error.errno in _UNWRITABLE_CODES else StoreError
            raise kind(
                f"{self.path}: the caption store is unusable: {error.strerror or error}.",
                self._hint("Name a folder that can be written with EDGEPRISM_HOME"),
            ) from error

    def _explain(self, error: sqlite3.Error) -> StoreError:
        whole = getattr(error, "sqlite_errorcode", 0)
        code, where = whole & 0xFF, f"{self.path}: the caption store"
        if code in _LOCKED:
            return StoreError(
                f"{where} is locked: {error}.", self._hint("Wait for the other process")
            )
        if code in _UNWRITABLE or whole == sqlite3.SQLITE_IOERR_WRITE:
            full = code == sqlite3.SQLITE_FULL
            what = "its disk is full" if full else str(error)
            cure = "Free some space" if full else "Allow writing to it and to its folder"
            return UnwritableStoreError(
                f"{where} cannot be written: {what}. The captions in it are safe.",
                self._hint(cure),
            )
        if code == sqlite3.SQLITE_CANTOPEN:
            return UnwritableStoreError(
                f"{where} is unusable: {error}.",
                self._hint(f"Check who may read and write {self.path.parent}"),
            )
        if whole in _NO_LOCKS:
            return StoreError(
                f"{where} is unusable: its file system does not lock files ({error}).",
                self._hint("Name a folder on a local disk with EDGEPRISM_HOME"),
            )
        if code in _DAMAGED:
            return StoreError(
                f"{where} is unusable: {error}.",
                self._hint(
                    "Keep the file under another name, from which `sqlite3 FILE .recover` may save "
                    "captions, and a new store begins"
                ),
            )
        return StoreError(f"{where} is unusable: {error}.", self._hint("Look at its disk"))

    def _hint(self, cure: str) -> str:
        return f"{cure}." if self._needed else f"{cure}, or use `use_store=False`."

    def _use_journal(self) -> None:
        """Choose the journal; SQLite does not wait for a lock during this statement.

        Write-ahead logging shares memory between processes, which no network file system can.
        """
        chosen = "wal" if shares_memory(self.path.parent) else "delete"
        deadline = time.monotonic() + self._busy_s
        while True:
            try:
                if self.journal() != chosen:
                    self._db.execute(f"PRAGMA journal_mode = {chosen}")
                return None
            except sqlite3.OperationalError as error:
                code = getattr(error, "sqlite_errorcode", 0)
                if code in _NO_LOCKS:
                    return self._leave_wal()
                if code & 0xFF not in _LOCKED or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _leave_wal(self) -> None:
        """Use the other journal; a process that is alone needs no shared memory for the change."""
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = delete")
        self._db.execute("PRAGMA locking_mode = NORMAL")
        self.journal()  # the next access gives the lock back

    def journal(self) -> str:
        """Return the journal's mode: "wal", or "delete" where that cannot work."""
        return str(self._db.execute("PRAGMA journal_mode").fetchone()[0])

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _migrate(self) -> None:
        """Bring the tables to the newest version in one transaction: wholly, or not at all."""
        newest = len(self._migrations)
        version = self._version()
        if version > newest:
            raise StoreError(
                f"{self.path}: the caption store has schema {version}, this EdgePrism knows "
                f"{newest}.",
                self._hint("Use a newer EdgePrism"),
            )
        if version == newest:
            return
        with self.transaction():  # a second process waits here, then reads the new version
            for script in self._migrations[self._version() :]:
                for statement in script.split(";"):  # executescript would commit first
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {newest}")
