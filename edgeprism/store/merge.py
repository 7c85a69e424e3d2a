"""Takes what one caption store holds over into another, as if one run had filled both.

Runs that share a folder (`--shard`) fill a store each. Their captions have the same keys that one
run's would have, so merging is a union. Where two stores hold a caption of the same key, or tell
different things of a file, the result does not depend on the order in which they are merged.
Claims stay behind: they belong to processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edgeprism.errors import UsageError
from edgeprism.store.database import BUSY_SECONDS, Database, StoreError, UnwritableStoreError
from edgeprism.store.schema import APPLICATION_ID, MIGRATIONS
from edgeprism.store.stored_record import text_to_record

_STORE_FILE = "captions.sqlite3"
_REQUESTS = "INSERT OR IGNORE INTO requests VALUES (?, ?)"
# of two captions of one key the older one stays, so that merging in any order ends alike
_CAPTIONS = """
    INSERT INTO captions VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET record = excluded.record, created = excluded.created,
        tiles_sha256 = coalesce(excluded.tiles_sha256, tiles_sha256)
    WHERE (excluded.created, excluded.record) < (created, record)
"""
# a wrong stamp matches no file, so which one stays decides only whether a file is read once more
_FILES = """
    INSERT INTO files VALUES (?, ?, ?)
    ON CONFLICT (path) DO UPDATE SET stamp = excluded.stamp, sha256 = excluded.sha256
    WHERE (excluded.stamp, excluded.sha256) > (stamp, sha256)
"""
_OUTPUTS = "INSERT OR IGNORE INTO outputs VALUES (?, ?)"


@dataclass(frozen=True)
class Merged:
    """What a store brought."""

    captions: int  # that it holds
    added: int  # those of them that the other store did not have


def store_file(path: Path) -> Path:
    """Return the store's file, of which `path` may be the data folder."""
    return path / _STORE_FILE if path.is_dir() else path


def merge_into(target: Database, path: Path) -> Merged:
    """Add the rows of the store at `path` to `target`, all of them or none.

    Raises UsageError if there is no store at `path`, or it is `target` itself; StoreError if it is
    damaged or cannot be read, or if `target` cannot be written. Each error names its store.
    """
    if target.path.exists() and path.exists() and path.samefile(target.path):
        raise UsageError(
            f"{path}: is the store to merge into.", "Name the other stores before `into`."
        )
    with contextlib.closing(open_source(path)) as source, target.explained():
        before = _count(target)
        with target.transaction():
            target.execute_many(_REQUESTS, _requests(source))
            target.execute_many(_CAPTIONS, _captions(source))
            target.execute_many(_FILES, _paths(source, "SELECT path, stamp, sha256 FROM files"))
            target.execute_many(_OUTPUTS, _paths(source, "SELECT path, sha256 FROM outputs"))
        added = _count(target) - before
        return Merged(_count(source), added)


def open_source(path: Path) -> Database:
    """Open a store that another run filled. Raises UsageError without one, and StoreError."""
    if not path.is_file():
        raise UsageError(
            f"{path}: there is no caption store.",
            f"Name a data folder (EDGEPRISM_HOME) of a run, or the {_STORE_FILE} in it.",
        )
    if _application(path) != APPLICATION_ID:
        raise UsageError(
            f"{path}: not a caption store.", f"Name the {_STORE_FILE} of a run's data folder."
        )
    try:
        return Database(path, MIGRATIONS, BUSY_SECONDS, needed=True)
    except UnwritableStoreError:
        database = Database.open_to_read(path, MIGRATIONS, needed=True)
        if database is None:
            raise
        return database


def _application(path: Path) -> int | None:
    """Return whose SQLite file it is, without changing it; None for any other file."""
    name = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(name, uri=True)) as database:
            return int(database.execute("PRAGMA application_id").fetchone()[0])
    except sqlite3.Error:
        return None


def _requests(source: Database) -> Iterator[tuple[Any, ...]]:
    for row in _rows(source, "SELECT id, settings FROM requests"):
        if not _are_texts(*row):
            raise _damaged(source, "a request has no name, or no settings")
        yield row


def _captions(source: Database) -> Iterator[tuple[Any, ...]]:
    """Yield the captions' rows; one that contradicts itself ends the merge."""
    columns = "key, image_sha256, request, record, created, tiles_sha256"
    for row in _rows(source, f"SELECT {columns} FROM captions"):  # noqa: S608 - constants only
        key, image_sha256, request, record, created, tiles = row
        if not (_are_texts(image_sha256, request) and (tiles is None or _are_texts(tiles))):
            raise _damaged(source, f"caption {key!s:.12}… is of no picture")
        if hashlib.sha256(f"{image_sha256}:{request}".encode()).hexdigest() != key:
            raise _damaged(source, f"caption {key!s:.12}… has another picture's key")
        whole = isinstance(record, str) and text_to_record(record) is not None
        if not whole or not isinstance(created, float):
            raise _damaged(source, f"caption {key!s:.12}… has no whole record")
        yield row


def _paths(source: Database, statement: str) -> Iterator[tuple[Any, ...]]:
    """Yield rows that begin with a file's path, followed by texts."""
    for row in _rows(source, statement):
        path, *texts = row
        if not isinstance(path, bytes) or not _are_texts(*texts):
            raise _damaged(source, "a file's row has no path, or no digest")
        yield row


def _rows(source: Database, statement: str) -> Iterator[tuple[Any, ...]]:
    """Yield rows; whatever keeps one from being read is told of `source`."""
    with source.explained():
        try:
            # no `yield from`: that closes the cursor of a generator that is given up, and the
            # source may be closed by then
            for row in source.execute(statement):  # noqa: UP028
                yield row
        except sqlite3.OperationalError as error:
            # a table or a column is missing, or a text is not UTF-8, which has no code
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) == sqlite3.SQLITE_ERROR:
                raise _damaged(source, str(error)) from error
            raise


def _are_texts(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


def _damaged(source: Database, what: str) -> StoreError:
    return StoreError(
        f"{source.path}: is damaged: {what}. Nothing of it was merged.",
        "Make its captions again, or try `sqlite3 FILE .recover`.",
    )


def _count(database: Database) -> int:
    with database.explained():
        return int(database.execute("SELECT count(*) FROM captions").fetchone()[0])
