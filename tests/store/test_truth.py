"""What the store says of pictures is true: replaced, moved, strangely named, rated anew."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from edgeprism.files import file_systems
from edgeprism.files.digests import file_digest
from edgeprism.files.stamps import status_to_stamp
from edgeprism.store.caption_store import CaptionStore, default_path
from edgeprism.store.claims import LEASE_S
from edgeprism.store.database import StoreError
from edgeprism.store.request_key import RequestKey
from tests.helpers import ordinary_user
from tests.helpers.stored import stored_record

REQUEST = RequestKey("digest", "int8", "f16", "Describe.", 32, 0.0, 0, 1)
RECORD = stored_record()
SETTLED_S = 0.05  # after this a file's stamp vouches for its content

# the tables of version 1, as the first release made them
VERSION_1 = """
    CREATE TABLE requests (id TEXT PRIMARY KEY, settings TEXT NOT NULL);
    CREATE TABLE captions (
        key TEXT PRIMARY KEY, image_sha256 TEXT NOT NULL,
        request TEXT NOT NULL REFERENCES requests(id), record TEXT NOT NULL, created REAL NOT NULL
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
    PRAGMA user_version = 1;
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "captions.sqlite3"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures, each of another colour."""
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(6):
        Image.new("RGB", (40, 30), (index * 40, 90, 200)).save(folder / f"p{index}.jpg")
    time.sleep(SETTLED_S)
    return folder


def edgeprism(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeprism", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, errors="surrogateescape", cwd=cwd, check=False
    )


def captions_of(model: Path, folder: Path) -> dict[str, str]:
    """Run over a folder; return {name: caption}."""
    done = edgeprism("caption", "--model", model, folder, "--jsonl")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return {os.path.basename(record["image"]): record["caption"] for record in records}


def in_words(stderr: str) -> str:
    """Return the summary of a run."""
    return next(line for line in stderr.splitlines() if "known already" in line)


# ---- a picture's identity


def test_a_picture_replaced_with_size_and_date_kept_is_looked_at_again(
    random_bundle: Path, folder: Path
) -> None:
    first, second = folder / "p0.bmp", folder / "p1.bmp"
    Image.new("RGB", (40, 30), "red").save(first)
    Image.new("RGB", (40, 30), "blue").save(second)
    time.sleep(SETTLED_S)
    before = captions_of(random_bundle, folder)
    status = first.stat()
    first.write_bytes(second.read_bytes())  # in place: the inode stays too
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert first.stat().st_mtime_ns == status.st_mtime_ns
    after = captions_of(random_bundle, folder)
    assert before["p0.bmp"] != before["p1.bmp"]
    assert after["p0.bmp"] == after["p1.bmp"] == before["p1.bmp"]


def test_a_file_replaced_by_renaming_is_looked_at_again(path: Path, tmp_path: Path) -> None:
    picture, other = tmp_path / "a.jpg", tmp_path / "b.jpg"
    for file in (picture, other):
        file.write_bytes(b"same size")
        os.utime(file, ns=(10**18, 10**18))
    time.sleep(SETTLED_S)
    with CaptionStore(path) as store:
        store.remember_file(picture, status_to_stamp(picture.stat()), "aa")
        assert store.digest_of(picture, picture.stat()) == "aa"
        other.replace(picture)
        assert store.digest_of(picture, picture.stat()) is None


def test_a_file_that_has_just_been_written_is_read_again(path: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"one")
    stamp = status_to_stamp(picture.stat())
    with CaptionStore(path) as store:
        store.remember_file(picture, stamp, "aa")
        assert store.digest_of(picture, picture.stat()) is None


@pytest.mark.parametrize("kind", ["vfat", "exfat", "cifs", "fuse.sshfs", "9p", ""])
def test_where_no_change_shows_every_file_is_read(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"one")
    time.sleep(SETTLED_S)
    monkeypatch.setattr(file_systems, "file_system_of", lambda _: kind)
    file_systems._type_of_device.cache_clear()
    try:
        with CaptionStore(path) as store:
            store.remember_file(picture, status_to_stamp(picture.stat()), "aa")
            assert store.digest_of(picture, picture.stat()) is None
    finally:
        file_systems._type_of_device.cache_clear()


def test_the_kernels_table_of_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        "2 1 0:5 / /mnt/my\\040disk rw,x shared:1 - vfat /dev/b rw\n"
        "3 2 0:6 / /mnt/my\\040disk/nas rw - nfs4 host:/x rw\n4 1 0:7 / /mnt rw - tmpfs none rw\n"
    )
    monkeypatch.setattr(file_systems, "_MOUNTS", table)
    monkeypatch.setattr(os.path, "realpath", lambda path, **_: os.fspath(path))
    monkeypatch.setattr(os.path, "lexists", lambda _: True)
    places = ("/mnt/my disk/a.jpg", "/mnt/my disk/nas/a", "/mnt/my diskette", "/home", "/")
    kinds = [file_systems.file_system_of(place) for place in places]
    assert kinds == ["vfat", "nfs4", "tmpfs", "ext4", "ext4"]


def test_a_rating_in_the_file_needs_no_new_caption(random_bundle: Path, folder: Path) -> None:
    before = captions_of(random_bundle, folder)
    data = (folder / "p0.jpg").read_bytes()
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    segment = b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp
    (folder / "p0.jpg").write_bytes(data[:2] + segment + data[2:])
    for _ in range(2):
        done = edgeprism("caption", "--model", random_bundle, folder, "--jsonl")
        assert "0 captioned, 6 known already" in in_words(done.stderr)
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert [record["caption"] for record in records] == [*before.values()]
        assert len({record["image_sha256"] for record in records}) == 6
    turned = Image.open(folder / "p1.jpg")
    exif = turned.getexif()
    exif[0x0112] = 6  # an orientation is no rating
    turned.save(folder / "p1.jpg", exif=exif)
    done = edgeprism("caption", "--model", random_bundle, folder, "--jsonl")
    assert "1 captioned, 5 known already" in in_words(done.stderr)


def test_a_model_changed_with_size_and_date_kept_is_hashed_again(tmp_path: Path) -> None:
    model = tmp_path / "lm.gguf"
    model.write_bytes(b"one")
    first, status = file_digest(model), model.stat()
    time.sleep(SETTLED_S)
    assert file_digest(model) == first
    model.write_bytes(b"two")
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_digest(model) != first


# ---- places


def test_an_export_has_absolute_paths_that_follow_a_move(
    random_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    edgeprism("caption", "--model", random_bundle, "in", "--csv", cwd=tmp_path)

    def exported() -> dict[str, list[str]]:
        lines = edgeprism("cache", "export", cwd=Path("/")).stdout.splitlines()
        return {record["image"]: record["paths"] for record in map(json.loads, lines)}

    places = [str(folder / f"p{index}.jpg") for index in range(6)]
    assert exported() == {place: [place] for place in places}
    moved = folder.rename(tmp_path / "moved")
    assert exported() == {place: [] for place in places}, "nobody has met them since"
    (moved / "p0.jpg").rename(moved / "renamed.jpg")
    edgeprism("caption", "--model", random_bundle, moved, "--csv")
    places = [str(moved / name) for name in ("renamed.jpg", *(f"p{n}.jpg" for n in range(1, 6)))]
    assert exported() == {place: [place] for place in places}


def test_names_of_any_bytes_are_kept_and_found_again(
    random_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    names = [b"b-\xe9t\xe9.jpg", b"a\nb.jpg", b"\t c .jpg ", b"-d.jpg", b"\xed\xb3\xa9.jpg",
             b"e\\udce9.jpg", b"e\xe9.jpg", b"\xff" * 200 + b".jpg",
             "ü".encode() * 125 + b".jpg"]  # fmt: skip
    raw = os.fsencode(folder)
    for index, name in enumerate(names):
        Image.new("RGB", (40, 30), (255, index * 20, 0)).save(folder / "new.jpg")
        os.rename(folder / "new.jpg", os.path.join(raw, name))
    time.sleep(SETTLED_S)
    for state in ("14 captioned, 0 known", "0 captioned, 14 known"):
        done = edgeprism("caption", "--model", random_bundle, folder, "--jsonl", "--txt")
        assert done.returncode == 0, done.stderr
        assert state in in_words(done.stderr)
        images = {os.fsencode(json.loads(line)["image"]) for line in done.stdout.splitlines()}
    assert {os.path.join(raw, name) for name in names if name.endswith(b".jpg")} <= images
    lines = edgeprism("cache", "export").stdout.splitlines()
    assert images == {os.fsencode(json.loads(line)["image"]) for line in lines}
    done = edgeprism("cache", "prune")
    assert "0 files and 0 captions" in done.stdout


def test_times_and_inodes_beyond_a_databases_numbers(path: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"one")
    time.sleep(SETTLED_S)
    fields = list(picture.stat())
    fields[1] = 2**64 - 1
    exotic = os.stat_result(fields, {"st_mtime_ns": 2**70, "st_ctime_ns": 1, "st_dev": 1})
    with CaptionStore(path) as store:
        store.remember_file(picture, status_to_stamp(exotic), "aa")
        assert store.digest_of(picture, picture.stat()) is None
        assert store.info()["files"] == 1


def test_an_instruction_of_any_bytes(path: Path) -> None:
    request = RequestKey("digest", "int8", "f16", "caf\udce9?", 32, 0.0, 0, 1)
    with CaptionStore(path) as store:
        store.put(request, "aa", {**RECORD, "instruction": "caf\udce9?"})
        record = store.get(request.key("aa"))
    assert record is not None
    assert record["instruction"] == "caf\udce9?"


# ---- stores of other versions


def old_store(path: Path, picture: Path) -> None:
    """Write a store as version 1 did."""
    db = sqlite3.connect(path)
    db.executescript(VERSION_1)
    db.execute("INSERT INTO requests VALUES (?, ?)", (REQUEST.id(), REQUEST.settings()))
    for index in range(50):
        text = json.dumps({**RECORD, "image": "in/a.jpg", "caption": f"boat {index}" * 40})
        values = (REQUEST.key(f"{index}"), f"{index}", REQUEST.id(), text, float(index))
        db.execute("INSERT INTO captions VALUES (?, ?, ?, ?, ?)", values)
    status = picture.stat()
    file = (str(picture), status.st_size, status.st_mtime_ns, "7")
    db.execute("INSERT INTO files VALUES (?, ?, ?, ?)", file)
    db.execute("INSERT INTO outputs VALUES (?, ?)", (str(picture.with_suffix(".txt")), "dd"))
    db.commit()
    db.close()


def test_an_old_store_keeps_its_captions_and_places(path: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    picture = tmp_path / "in" / "a.jpg"
    picture.write_bytes(b"one")
    old_store(path, picture)
    with CaptionStore(path) as store:
        assert store.info()["captions"] == 50
        assert store.digest_of(picture, picture.stat()) is None, "it is read once more"
        assert store.outputs.is_written(picture.with_suffix(".txt"), "dd")
        records = list(store.located_records())
    assert [record["image"] for record in records if record["paths"]] == [str(picture)]
    assert records[3]["image"] == "in/a.jpg", "of this one no place is known"


def test_a_migration_that_is_broken_off_loses_nothing(path: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"one")
    old_store(path, picture)
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "from edgeprism.store.caption_store import CaptionStore\n"
        "CaptionStore(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=False
    )
    assert "StoreError" in done.stderr
    with CaptionStore(path) as store:
        assert store.info()["captions"] == 50
        assert store.info()["schema"] == 3


# ---- claims


def claim_elsewhere(path: Path, key: str, until: float) -> None:
    with sqlite3.connect(path) as db:
        db.execute("INSERT OR REPLACE INTO claims VALUES (?, 'elsewhere', 1, ?)", (key, until))


@pytest.mark.parametrize("ahead", [600.0, 4e9])
def test_a_claim_that_nobody_renews_holds_for_one_lease(
    path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with CaptionStore(path) as store:
        claim_elsewhere(path, "k", time.time() + ahead)
        assert not store.claim("k")
        now[0] += LEASE_S / 2
        claim_elsewhere(path, "k", time.time() + ahead + 5)  # renewed
        assert not store.claim("k")
        now[0] += LEASE_S - 1
        assert not store.claim("k")
        now[0] += 2
        assert store.claim("k")


def test_a_living_process_renews_its_claims(path: Path) -> None:
    with CaptionStore(path) as store, sqlite3.connect(path) as db:
        assert store.claim("k")
        before = db.execute("SELECT until FROM claims").fetchone()[0]
        time.sleep(0.05)
        store.renew()
        assert db.execute("SELECT until FROM claims").fetchone()[0] > before
        assert before < time.time() + LEASE_S + 1


def test_prune_ends_claims_that_nobody_can_hold(path: Path) -> None:
    with CaptionStore(path) as store:
        claim_elsewhere(path, "wrong clock", 4e9)
        claim_elsewhere(path, "over", 1.0)
        claim_elsewhere(path, "living", time.time() + LEASE_S)
        assert store.drop_stale_claims(dry_run=True) == 2
        assert store.drop_stale_claims() == 2
        assert store.info()["claims"] == 1


def test_other_pictures_go_first_and_the_wait_is_told(random_bundle: Path, folder: Path) -> None:
    """The waiting run has a shorter lease, so that the test need not wait for a whole one."""
    lease_s = 3.0
    impatient = f"""
from edgeprism.store import claims
claims.LEASE_S = {lease_s}
from edgeprism.cli.main import main
main()
"""
    for index in range(40):
        Image.new("RGB", (40, 30), (index, index * 5, 99)).save(folder / f"q{index}.png")
    first = edgeprism("caption", "--model", random_bundle, folder, "--limit", "1", "--jsonl")
    assert first.returncode == 0
    store = default_path()
    with sqlite3.connect(store) as db:
        request = db.execute("SELECT id FROM requests").fetchone()[0]
    for index in range(20):
        sha256 = hashlib.sha256((folder / f"q{index}.png").read_bytes()).hexdigest()
        key = hashlib.sha256(f"{sha256}:{request}".encode()).hexdigest()
        claim_elsewhere(store, key, 4e9)
    began = time.monotonic()
    arguments = ("caption", "--model", random_bundle, folder, "--jsonl")
    done = subprocess.run(
        [sys.executable, "-c", impatient, *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "45 captioned, 1 known already" in in_words(done.stderr)
    assert "Waiting for 20 pictures" in done.stderr
    assert lease_s < time.monotonic() - began < lease_s + 2 * LEASE_S
    images = [json.loads(line)["image"] for line in done.stdout.splitlines()]
    assert len(images) == len(set(images)) == 46


# ---- disks


def test_a_store_that_may_only_be_read_is_read(random_bundle: Path) -> None:
    with ordinary_user.folder() as home:
        path = home / "captions.sqlite3"
        with CaptionStore(path) as store:
            store.put(REQUEST, "aa", RECORD)
        path.chmod(0o444)
        with ordinary_user.rights():
            with pytest.raises(StoreError, match=r"cannot be written.*are safe"):
                CaptionStore(path)
            told: list[StoreError] = []
            with CaptionStore(path, on_unwritable=told.append) as store:
                assert store.get(REQUEST.key("aa")) == RECORD
                store.put(REQUEST, "bb", RECORD)
                assert store.claim("k")
                assert store.get(REQUEST.key("bb")) is None
        assert len(told) == 1


def test_a_full_disk_loses_no_caption_and_ends_no_run(random_bundle: Path, folder: Path) -> None:
    assert len(captions_of(random_bundle, folder)) == 6
    Image.new("RGB", (40, 30), "white").save(folder / "new.png")
    size = default_path().stat().st_size
    limit = f"ulimit -f {size // 1024}; trap '' XFSZ; exec \"$@\""
    command = [sys.executable, "-m", "edgeprism", "caption", "--model", random_bundle, folder]
    done = subprocess.run(
        ["bash", "-c", limit, "-", *map(str, command), "--jsonl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7
    assert "6 known already" in in_words(done.stderr)
    with CaptionStore(default_path()) as store:
        assert store.info()["captions"] >= 6


@pytest.mark.parametrize("record", ["{}", "[1"])
def test_damaged_records_are_made_again_and_told(
    random_bundle: Path, folder: Path, record: str
) -> None:
    expected = captions_of(random_bundle, folder)
    store = default_path()
    with closing(sqlite3.connect(store, isolation_level=None)) as database:
        database.execute(
            "UPDATE captions SET record = ? WHERE key IN (SELECT key FROM captions LIMIT 2)",
            (record,),
        )
    assert edgeprism("cache", "info").stdout.splitlines()[-1].split() == ["damaged:", "2"]
    export = edgeprism("cache", "export")
    assert len(export.stdout.splitlines()) == 4
    assert export.stderr.startswith(f"error: {store}: 2 records damaged; all others are whole.")
    done = edgeprism("caption", "--model", random_bundle, folder)
    assert done.returncode == 0
    assert done.stderr.count("Damaged captions are made again.") == 1
    assert str(store) in done.stderr
    assert "2 captioned, 4 known already" in in_words(done.stderr)
    assert captions_of(random_bundle, folder) == expected
    assert len(edgeprism("cache", "export").stdout.splitlines()) == 6


def test_ask_describes_again_what_a_damaged_record_told(
    random_bundle: Path, scripted_gguf: Path, folder: Path
) -> None:
    ask = ("ask", folder / "p1.jpg", "What?", "-m", random_bundle, "--reasoner", scripted_gguf,
           "--json")  # fmt: skip
    first = json.loads(edgeprism(*ask).stdout)
    with closing(sqlite3.connect(default_path(), isolation_level=None)) as database:
        database.execute("UPDATE captions SET record = '{}'")
    second = edgeprism(*ask)
    assert second.returncode == 0
    assert "holds a damaged record. The picture is described again." in second.stderr
    assert json.loads(second.stdout)["captions"][0]["caption"] == first["captions"][0]["caption"]
    assert "damaged" not in edgeprism(*ask).stderr


def test_ask_goes_on_without_a_damaged_store(
    random_bundle: Path, scripted_gguf: Path, photo: Path
) -> None:
    default_path().write_bytes(b"no database" * 1000)
    done = edgeprism("ask", photo, "What?", "--captioner", random_bundle, "--reasoner",
                     scripted_gguf, "--chat-format", "chatml", "--answer-tokens", "4")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("caption store") == 1
    assert default_path().read_bytes() == b"no database" * 1000


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "vfat", ""])
def test_no_shared_memory_on_file_systems_that_have_none(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with CaptionStore(path) as store:
        store.put(REQUEST, "aa", RECORD)
        assert store.info()["journal"] == "wal"
    monkeypatch.setattr(file_systems, "file_system_of", lambda _: kind)
    with CaptionStore(path) as store:
        assert store.info()["journal"] == "delete"
        assert store.get(REQUEST.key("aa")) == RECORD
        store.put(REQUEST, "bb", RECORD)
    assert not list(path.parent.glob("*-wal"))
