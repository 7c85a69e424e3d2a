"""The caption store: content addresses, shortcuts, claims, migrations, damage."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprism.files.stamps import status_to_stamp
from edgeprism.store.caption_store import CaptionStore
from edgeprism.store.database import StoreError
from edgeprism.store.request_key import RequestKey
from edgeprism.store.schema import MIGRATIONS

REQUEST = RequestKey("digest", "int8", "f16", "Describe.", 32, 0.0, 0, 1)
RECORD = {
    "caption": "a boat",
    "model": {"name": "m", "digest": "digest"},
    "timings_ms": {"total": 20},
}


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
            replace(REQUEST, bundle_digest="old"), "aa", {**RECORD, "model": {"digest": "old"}}
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
