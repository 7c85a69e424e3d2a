"""The records of a run: one SQLite file, one row per record, on disk before the next begins.

A record's key is a hash of everything that decides it (models' digests, settings, the question).
So the same command continues where it was stopped, and a larger matrix or limit reuses records.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeprism.errors import EdgePrismError, UsageError
from edgeprism.files.regular import open_regular

FILE_NAME = "run.sqlite3"
APPLICATION_ID = 0x45504556  # "EPEV"
SCHEMA = 1
_TABLES = (
    "CREATE TABLE data (md5 TEXT NOT NULL)",
    """CREATE TABLE records (
        kind TEXT NOT NULL, key TEXT NOT NULL, item TEXT NOT NULL, record TEXT NOT NULL,
        PRIMARY KEY (kind, key, item)
    ) WITHOUT ROWID""",
)


class ResultsError(EdgePrismError):
    """The file of results cannot be used."""


class Results:
    """Records by kind ("focus", "caption", "answer", "verdict", "memory"), key and item."""

    def __init__(self, folder: Path, data_md5: str) -> None:
        """Open or begin the run in `folder`. Raises UsageError if it holds other data's results."""
        self.path = folder / FILE_NAME
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=10, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # each commit reaches the disk
            self._begin(data_md5)
            stored_md5 = self._db.execute("SELECT md5 FROM data").fetchone()[0]
        if stored_md5 != data_md5:
            self.close()
            raise UsageError(
                f"{folder} holds results of other data (MD5 {stored_md5}).", "Choose another `out`."
            )

    def get(self, kind: str, key: str, item: str) -> dict[str, Any] | None:
        """The record at this address, None without one."""
        with self._explained():
            row = self._db.execute(
                "SELECT record FROM records WHERE kind = ? AND key = ? AND item = ?",
                (kind, key, item),
            ).fetchone()
        return json.loads(row[0]) if row else None

    def has(self, kind: str, key: str, item: str) -> bool:
        """Return whether a record exists and is no failure, because failures are tried again."""
        record = self.get(kind, key, item)
        return record is not None and "error" not in record

    def put(self, kind: str, key: str, item: str, record: dict[str, Any]) -> None:
        """Keep a record, in place of an earlier one."""
        text = json.dumps(record, ensure_ascii=False)
        with self._explained():
            self._db.execute(
                "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", (kind, key, item, text)
            )

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Return whether a folder holds a run's records, without opening them as a database."""
        try:
            with open_regular(folder / FILE_NAME) as file:
                header = file.read(72)
        except OSError:
            return False
        return header[68:72] == APPLICATION_ID.to_bytes(4, "big")

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, data_md5: str) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == 0 and tables == 0:
            for statement in _TABLES:
                self._db.execute(statement)
            self._db.execute("INSERT INTO data VALUES (?)", (data_md5,))
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {SCHEMA}")
        self._db.execute("COMMIT")
        owner = self._db.execute("PRAGMA application_id").fetchone()[0]
        if owner != APPLICATION_ID or version not in (0, SCHEMA):
            raise sqlite3.DatabaseError("it does not hold results of this version of EdgePrism")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            raise ResultsError(
                f"{self.path}: results cannot be stored there: {error}.",
                "Choose another `out`, or move the file away.",
            ) from error


def key_of(*parts: Any) -> str:
    """Hash everything that decides a record into a short key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
