"""The caption store: content addresses, shortcuts, claims, migrations, damage."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprism.files.stamps import status_to_stamp
from edgeprism.store.caption_store import CaptionStore
from edgeprism.store.database import StoreError
from edgeprism.store.request_key import RequestKey
from edgeprism.store.schema import MIGRATIONS
from tests.helpers.stored import stored_record

REQUEST = RequestKey("digest", "int8", "f16", "Describe.", 32, 0.0, 0, 1)
RECORD = stored_record()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "captions.sqlite3"


@pytest.mark.parametrize(
    "changed",
    [
        {"bundle_digest": "other"},
        {"vision_quant": "fp32"},
        {"kv_type": "f32"},
        {"instruction": "Describe!"},
        {"max_tokens": 33},
        {"temperature": 0.5},
        {"seed": 1},
        {"reader": 2},
        {"visual_tokens": 40, "reduction": "max-min-diversity"},
    ],
)
def test_whatever_decides_the_words_is_part_of_the_address(changed: dict[str, Any]) -> None:
    assert replace(REQUEST, **changed).key("aa") != REQUEST.key("aa")
    assert REQUEST.key("aa") != REQUEST.key("ab")


def test_a_record_is_there_for_the_next_process(path: Path) -> None:
    with CaptionStore(path) as store:
        assert store.get(REQUEST.key("aa")) is None
        store.put(REQUEST, "aa", RECORD)
    with CaptionStore(path) as store:
        assert store.get(REQUEST.key("aa")) == RECORD
        assert store.get(replace(REQUEST, seed=1).key("aa")) is None
        assert list(store.records()) == [RECORD]


def test_a_files_digest_holds_while_size_and_mtime_do(path: Path, tmp_path: Path) -> None:
    picture = tmp_path / "bild-ä-\udcff.jpg"
    try:
        picture.write_bytes(b"one")
    except (OSError, UnicodeEncodeError):  # this file system takes UTF-8 names only
        picture = tmp_path / "bild-ä.jpg"
        picture.write_bytes(b"one")
    time.sleep(0.05)  # a stamp vouches for a file once its last change lies a tick back
    status = picture.stat()
    with CaptionStore(path) as store:
        assert store.digest_of(picture, status) is None
        store.remember_file(picture, status_to_stamp(status), "aa")
        assert store.digest_of(picture, picture.stat()) == "aa"
        os.utime(picture, ns=(1, 1))
        assert store.digest_of(picture, picture.stat()) is None


def test_a_claim_holds_against_a_living_process_and_not_a_dead_one(path: Path) -> None:
    claim = (
        "import sys; from pathlib import Path\n"
        "from edgeprism.store.caption_store import CaptionStore\n"
        f"store = CaptionStore(Path({str(path)!r})); print(store.claim('k'), flush=True)\n"
        "sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", claim], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "True"
        with CaptionStore(path) as store:
            assert not store.claim("k")
            assert store.claim("another")
            assert store.claim("another"), "one's own claim never stands in one's way"
            other.kill()
            other.wait()
            assert store.claim("k")
    finally:
        other.kill()
        other.communicate()


def test_putting_a_record_ends_the_claim(path: Path) -> None:
    with CaptionStore(path) as store:
        key = REQUEST.key("aa")
        assert store.claim(key)
        store.put(REQUEST, "aa", RECORD)
        assert store.info()["claims"] == 0
        assert not store.claim(key), "another process has stored the caption since"
        assert store.info()["claims"] == 0
        assert store.claim("b")
        store.release("b")
        assert store.info()["claims"] == 0


def test_prune_and_clear(path: Path, tmp_path: Path) -> None:
    existing = tmp_path / "here.jpg"
    existing.touch()
    with CaptionStore(path) as store:
        store.put(REQUEST, "aa", RECORD)
        store.put(
            replace(REQUEST, bundle_digest="old"),
            "aa",
            stored_record(model={**RECORD["model"], "digest": "old"}),
        )
        stamp = status_to_stamp(existing.stat())
        store.remember_file(existing, stamp, "aa")
        store.remember_file(tmp_path / "gone.jpg", stamp, "bb")
        assert store.prune(keep_digests={"digest"}) == {"files": 1, "captions": 1}
        assert store.info()["captions"] == 1
        assert store.info()["requests"] == 1
        assert store.clear() == 1
        assert store.info()["captions"] == store.info()["files"] == 0


def test_damage_is_said_and_nothing_is_overwritten(path: Path) -> None:
    path.write_bytes(b"this is no database, and it is long enough to be looked at" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"captions\.sqlite3.*unusable") as caught:
        CaptionStore(path)
    assert "`use_store=False`" in caught.value.hint
    assert path.read_bytes() == before


def test_damage_inside_is_said(path: Path) -> None:
    with CaptionStore(path) as store:
        for i in range(300):
            store.put(REQUEST, f"{i:064}", {**RECORD, "caption": "x" * 500})
    data = bytearray(path.read_bytes())
    data[8192:-4096] = os.urandom(1) * (len(data) - 12288)
    path.write_bytes(data)
    with pytest.raises(StoreError), CaptionStore(path) as store:
        list(store.records())


def test_a_newer_schema_is_refused_and_an_older_one_migrated(path: Path) -> None:
    with CaptionStore(path) as store:
        store.put(REQUEST, "aa", RECORD)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(StoreError, match="schema"):
        CaptionStore(path)


def test_migrations_run_in_order_and_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CaptionStore(path) as store:
        store.put(REQUEST, "aa", RECORD)
    later = (*MIGRATIONS, "CREATE TABLE later (x); INSERT INTO later VALUES (1)")
    monkeypatch.setattr("edgeprism.store.caption_store.MIGRATIONS", later)
    for _ in range(2):
        with CaptionStore(path) as store:
            assert store.info()["schema"] == len(later)
            assert store.get(REQUEST.key("aa")) == RECORD
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM later").fetchone() == (1,)
    db.close()


def test_a_locked_store_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprism.store.caption_store.BUSY_SECONDS", 0.2)
    with CaptionStore(path) as store:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(StoreError, match="locked"):
                store.put(REQUEST, "aa", RECORD)
        finally:
            holder.execute("ROLLBACK")
            holder.close()
        store.put(REQUEST, "aa", RECORD)


LONE = '"\\ud800"'
DAMAGE = {
    "no JSON": "UPDATE captions SET record = '[1'",
    "nothing": "UPDATE captions SET record = ''",
    "no fields": "UPDATE captions SET record = '{}'",
    "a list": "UPDATE captions SET record = '[]'",
    "bytes": "UPDATE captions SET record = x'ff00'",
    "bytes for text": "UPDATE captions SET record = CAST(x'7bff7d' AS TEXT)",
    "no caption": "UPDATE captions SET record = json_remove(record, '$.caption')",
    "no tokens": "UPDATE captions SET record = json_set(record, '$.tokens', json('{}'))",
    "tokens in words": "UPDATE captions SET record = json_set(record, '$.tokens.visual', 'many')",
    "another time": "UPDATE captions SET record = json_set(record, '$.timings_ms.dream', 1.0)",
    "no size": "UPDATE captions SET record = json_set(record, '$.image_size', json('[]'))",
    "numbers for notes": "UPDATE captions SET record = json_set(record, '$.notes', json('[1]'))",
    "half a reduction": "UPDATE captions SET record = json_set(record, '$.reduction', json('[1]'))",
    "half a video": "UPDATE captions SET record = json_set(record, '$.video', json('{\"of\": 1}'))",
    "twice": """UPDATE captions SET record = '{"caption": "b", ' || substr(record, 2)""",
    "no number": """UPDATE captions SET record = replace(record, '20.0', 'NaN')""",
    "half a character": f"UPDATE captions SET record = replace(record, '\"0\"', '{LONE}')",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_none_is_told_and_can_be_made_again(path: Path, damage: str) -> None:
    told: list[str] = []
    key, other = REQUEST.key("aa"), replace(REQUEST, seed=1)
    with CaptionStore(path) as store:
        store.put(REQUEST, "aa", RECORD, tiles_sha256="tiles")
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        assert database.execute(DAMAGE[damage]).rowcount == 1
    with CaptionStore(path, on_damaged=lambda error: told.append(error.message)) as store:
        store.put(other, "aa", RECORD)
        assert store.get(key) is None
        assert store.get_alike(REQUEST, "tiles") is None
        assert store.get(other.key("aa")) == RECORD
        assert len(told) == 2
        assert str(path) in told[0]
        exported = store.records()
        assert next(exported) == RECORD
        with pytest.raises(StoreError, match="1 record damaged"):
            next(exported)
        assert sum(bundle["captions"] for bundle in store.info()["bundles"]) in (1, 2)
        assert store.claim(key), "nobody else makes it"
        store.put(REQUEST, "aa", RECORD)
        assert store.get(key) == RECORD
        assert list(store.records()) == [RECORD, RECORD]


def test_prune_takes_damaged_records_for_no_bundles(path: Path) -> None:
    with CaptionStore(path) as store:
        store.put(REQUEST, "aa", RECORD)
        store.put(REQUEST, "bb", RECORD)
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("UPDATE captions SET record = '[1' WHERE image_sha256 = 'bb'")
        assert store.prune(keep_digests={"digest"}, dry_run=True)["captions"] == 1
        assert store.prune(keep_digests={"digest"})["captions"] == 1
        assert list(store.records()) == [RECORD]
