"""`edgeprism cache merge`: stores of several runs become one, in any order, or nothing changes."""

from __future__ import annotations

import gc
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edgeprism.cli.main import run
from edgeprism.errors import UsageError
from edgeprism.files.stamps import status_to_stamp
from edgeprism.store.caption_store import CaptionStore
from edgeprism.store.database import StoreError
from edgeprism.store.request_key import RequestKey
from edgeprism.store.schema import MIGRATIONS
from tests.helpers.stored import stored_record

REQUEST = RequestKey("digest", "int8", "f16", "Describe.", 32, 0.0, 0, 1)
OTHER = RequestKey("digest", "int8", "f16", "Count.", 32, 0.0, 0, 1)
TABLES = ("requests", "captions", "files", "outputs")


def record(words: str) -> dict[str, Any]:
    return stored_record(words, image="p.png")


def rows(path: Path) -> dict[str, list[Any]]:
    """Everything that a store holds."""
    with closing(sqlite3.connect(path)) as database:
        return {
            table: sorted(database.execute(f"SELECT * FROM {table}"), key=repr) for table in TABLES
        }


def filled(path: Path, pictures: dict[str, str], request: RequestKey = REQUEST) -> Path:
    """A store with captions of these pictures, by sha256."""
    with CaptionStore(path) as store:
        for sha256, words in pictures.items():
            store.put(request, sha256, record(words), tiles_sha256=f"tiles of {sha256}")
            store.outputs.remember(path.parent / f"{sha256}.txt", sha256)
    return path


def test_a_merged_store_equals_one_that_a_single_run_filled(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"pixels")
    os.utime(picture, (1, 1))
    parts = [
        filled(tmp_path / "a.sqlite3", {"aa": "a boat", "ab": "a tree"}),
        filled(tmp_path / "b.sqlite3", {"ba": "a house"}),
        filled(tmp_path / "c.sqlite3", {"aa": "two boats"}, OTHER),
    ]
    with CaptionStore(parts[1]) as store:
        store.remember_file(picture, status_to_stamp(picture.stat()), "ba")
        store.claim("a claim stays behind")
    whole = tmp_path / "whole.sqlite3"
    CaptionStore(whole).close()
    with closing(sqlite3.connect(whole, isolation_level=None)) as database:
        for part in parts:  # the same rows, put by hand into one store
            for table, values in rows(part).items():
                for row in values:
                    marks = ", ".join("?" * len(row))
                    database.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)
    expected = rows(whole)
    assert [len(expected[table]) for table in TABLES] == [2, 4, 1, 3]
    before = [rows(part) for part in parts]
    for number, order in enumerate(itertools.permutations(parts)):
        into = tmp_path / f"merged-{number}.sqlite3"
        with CaptionStore(into) as store:
            merged = [store.merge(part) for part in order]
            again = [store.merge(part) for part in order]
            assert store.info()["claims"] == 0
        assert sum(each.added for each in merged) == 4
        assert sum(each.added for each in again) == 0
        assert rows(into) == expected
    assert [rows(part) for part in parts] == before
    with CaptionStore(into) as store:
        assert store.get(REQUEST.key("ab")) == record("a tree")
        assert store.digest_of(picture, picture.stat()) in ("ba", None)  # None: by its file system


def test_of_two_captions_of_a_key_the_older_stays_in_any_order(tmp_path: Path) -> None:
    first = filled(tmp_path / "first.sqlite3", {"aa": "made first"})
    second = filled(tmp_path / "second.sqlite3", {"aa": "made second"})
    for name, order in (("ab", (first, second)), ("ba", (second, first))):
        with CaptionStore(tmp_path / name) as store:
            for part in order:
                store.merge(part)
            assert store.get(REQUEST.key("aa")) == record("made first")


def test_a_record_with_a_name_of_any_bytes_is_merged(tmp_path: Path) -> None:
    odd = {**record("a boat"), "image": "caf\udce9.png", "instruction": "caf\udce9?"}
    with CaptionStore(tmp_path / "odd.sqlite3") as store:
        store.put(REQUEST, "aa", odd)
    with CaptionStore(tmp_path / "into.sqlite3") as store:
        assert store.merge(tmp_path / "odd.sqlite3").added == 1
        assert store.get(REQUEST.key("aa")) == odd


DAMAGE = {
    "key": "UPDATE captions SET key = 'ff' || key WHERE image_sha256 = '59'",
    "record": "UPDATE captions SET record = '[1'",
    "record without fields": "UPDATE captions SET record = '{}', created = 0.0",
    "a number that is none": """UPDATE captions SET record = replace(record, '20.0', 'NaN')""",
    "half a character": r"""UPDATE captions SET record = replace(record, '"0"', '"\ud800"')""",
    "bytes for a record": "UPDATE captions SET record = CAST(record AS BLOB)",
    "a date in words": "UPDATE captions SET created = 'yesterday'",
    "a number for a path": "UPDATE outputs SET path = 5 WHERE sha256 = '59'",
    "words for a path": "INSERT INTO files VALUES ('p.png', '', 'aa')",
}


@pytest.mark.parametrize("damage", [*DAMAGE, "bytes"])
def test_a_damaged_store_changes_nothing(tmp_path: Path, damage: str) -> None:
    bad = filled(tmp_path / "bad.sqlite3", {f"{i:02}": "words " * 200 for i in range(60)})
    if damage == "bytes":
        data = bytearray(bad.read_bytes())
        for page in range(3, len(data) // 4096):
            data[4096 * page : 4096 * page + 200] = b"\xff" * 200
        bad.write_bytes(data)
    else:
        with closing(sqlite3.connect(bad, isolation_level=None)) as database:
            database.execute(DAMAGE[damage])
    into = filled(tmp_path / "into.sqlite3", {"aa": "a boat"})
    before = rows(into)
    with CaptionStore(into) as store, pytest.raises(StoreError) as caught:
        store.merge(bad)
    assert str(bad) in caught.value.message
    assert rows(into) == before


# the columns of each table, and what else could stand in each of them
COLUMNS = {
    "requests": ("id", "settings"),
    "captions": ("key", "image_sha256", "request", "record", "created", "tiles_sha256"),
    "files": ("path", "stamp", "sha256"),
    "outputs": ("path", "sha256"),
}
VALUES = ("NULL", "5", "1.5", "x'ff'", "CAST(x'ff' AS TEXT)", "'a'")
FITTING = {("captions", "tiles_sha256", "NULL"), ("captions", "created", "1.5")} | {
    *((table, column, "'a'") for table, columns in COLUMNS.items() for column in columns[1:]
      if table != "captions" or column == "tiles_sha256"),
    ("requests", "id", "'a'"), ("files", "path", "x'ff'"), ("outputs", "path", "x'ff'"),
}  # fmt: skip


def loose(path: Path) -> Path:
    """A store with a row in each table; the tables take anything, as other programs make them."""
    filled(path, {"bb": "a house"})
    with CaptionStore(path) as store:
        store.remember_file(path, status_to_stamp(path.stat()), "bb")
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for table, columns in COLUMNS.items():
            database.execute(f"CREATE TABLE other ({', '.join(columns)})")
            database.execute(f"INSERT INTO other SELECT {', '.join(columns)} FROM {table}")
            database.execute(f"DROP TABLE {table}")
            database.execute(f"ALTER TABLE other RENAME TO {table}")
    return path


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("table", COLUMNS)
def test_unfit_values_are_told_of_the_store_that_holds_them(
    tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    original = loose(tmp_path / "original.sqlite3")
    into = filled(tmp_path / "into.sqlite3", {"aa": "a boat"})
    before, bad = rows(into), tmp_path / "bad.sqlite3"
    for column, value in itertools.product(COLUMNS[table], VALUES):
        shutil.copy(original, bad)
        with closing(sqlite3.connect(bad, isolation_level=None)) as database:
            database.execute(f"UPDATE {table} SET {column} = {value}")
        code = run(["cache", "merge", str(bad), "--into", str(into)])
        said = capsys.readouterr().err
        if (table, column, value) in FITTING:
            assert (code, said) == (0, "")
            into.unlink()
            filled(into, {"aa": "a boat"})
            before = rows(into)
        else:
            assert code == 1
            assert said.startswith(f"error: {bad}: is damaged: ")
            assert "Nothing of it was merged." in said
            assert "Make its captions again" in said
            assert rows(into) == before
    gc.collect()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("table", COLUMNS)
def test_a_store_without_a_table_is_told(tmp_path: Path, table: str) -> None:
    bad = loose(tmp_path / "bad.sqlite3")
    with closing(sqlite3.connect(bad, isolation_level=None)) as database:
        database.execute(f"DROP TABLE {table}")
    into = filled(tmp_path / "into.sqlite3", {"aa": "a boat"})
    before = rows(into)
    with CaptionStore(into) as store, pytest.raises(StoreError, match=f"no such table: {table}"):
        store.merge(bad)
    assert rows(into) == before
    gc.collect()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_target_that_cannot_take_rows_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = filled(tmp_path / "good.sqlite3", {"aa": "a boat"})
    into = filled(tmp_path / "into.sqlite3", {"ab": "a tree"})
    with closing(sqlite3.connect(into, isolation_level=None)) as database:
        database.execute("DROP TABLE outputs")
    for command in (["merge", str(good), "--into", str(into)], ["merge", str(into)]):
        assert run(["cache", *command]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: {into}: ")
        assert "--no-cache" not in said, "these commands are about the store"
        assert "use_store" not in said
    gc.collect()


def test_what_is_no_store_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    good = filled(tmp_path / "good.sqlite3", {"aa": "a boat"})
    foreign = tmp_path / "foreign.sqlite3"
    with closing(sqlite3.connect(foreign)) as database:
        database.execute("CREATE TABLE captions (key TEXT)")
    untouched = foreign.read_bytes()
    text = tmp_path / "text.sqlite3"
    text.write_text("no database")
    newer = filled(tmp_path / "newer.sqlite3", {"aa": "a boat"})
    with closing(sqlite3.connect(newer)) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    into = tmp_path / "into.sqlite3"
    for bad in (foreign, text, newer, tmp_path / "missing.sqlite3", tmp_path):
        assert run(["cache", "merge", str(good), str(bad), "--into", str(into)]) in (1, 2)
        assert not into.exists()
    assert foreign.read_bytes() == untouched
    assert not (tmp_path / "missing.sqlite3").exists()
    with CaptionStore(good) as store, pytest.raises(UsageError, match="is the store to merge into"):
        store.merge(good)


def test_stores_of_killed_runs_and_of_former_versions_are_merged(tmp_path: Path) -> None:
    killed = tmp_path / "killed.sqlite3"
    code = (
        "import os, sys; from pathlib import Path; from tests.store.test_merge import filled;"
        "filled(Path(sys.argv[1]), {}); from edgeprism.store.caption_store import CaptionStore;"
        "from tests.store.test_merge import REQUEST, record;"
        "CaptionStore(Path(sys.argv[1])).put(REQUEST, 'aa', record('a boat')); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(killed)], check=False)
    assert killed.with_name("killed.sqlite3-wal").exists()  # the caption is in the log alone
    former = tmp_path / "former.sqlite3"
    with closing(sqlite3.connect(former, isolation_level=None)) as database:
        for statement in MIGRATIONS[0].split(";"):
            database.execute(statement)
        database.execute("PRAGMA application_id = 0x45505249")
        database.execute("PRAGMA user_version = 1")
        database.execute(
            "INSERT INTO captions VALUES (?, 'bb', ?, ?, 1.0)",
            (REQUEST.key("bb"), REQUEST.id(), json.dumps(record("old"))),
        )
    with CaptionStore(tmp_path / "into.sqlite3") as store:
        assert store.merge(killed).added == 1
        assert store.merge(former).added == 1
        assert store.get(REQUEST.key("aa")) == record("a boat")
        assert store.get(REQUEST.key("bb")) == record("old")


def test_the_command_names_folders_or_files_and_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home-of-a-run"
    home.mkdir()
    filled(home / "captions.sqlite3", {"aa": "a boat", "ab": "a tree"})
    other = filled(tmp_path / "b.sqlite3", {"aa": "a boat", "ba": "a house"})
    assert run(["cache", "merge", str(home), str(other)]) == 0  # into the user's own
    own = Path(os.environ["EDGEPRISM_HOME"]) / "captions.sqlite3"
    assert capsys.readouterr().out.splitlines() == [
        f"{home / 'captions.sqlite3'}: 2 captions, 0 of them known",
        f"{other}: 2 captions, 1 of them known",
        f"{own}: 3 captions",
    ]
    shutil.rmtree(home)
    with CaptionStore(own) as store:
        assert store.get(REQUEST.key("ba")) == record("a house")
