"""Rows hold everything of a record, and every reader of Parquet reads them back alike."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from edgeprism import Captioner
from edgeprism.errors import OutputError
from edgeprism.folder.batch import Batch
from edgeprism.picture.find import PictureFile
from edgeprism.scale.captioner import RayCaptioner
from edgeprism.scale.columns import REFUSED, SCHEMA, failure_to_row, record_to_row, rows_to_table
from edgeprism.scale.engine import Answer
from edgeprism.scale.known import Known
from edgeprism.scale.storage import Place
from edgeprism.store.stored_captioner import request_key
from edgeprism.version import __version__
from tests.scale.test_engine import OF_CAPTIONER, pictures

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "parquet.md"


@pytest.fixture(scope="module")
def ray_captioner(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> RayCaptioner:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPRISM_HOME", str(home))
        return RayCaptioner(
            str(random_bundle), caption_tokens=8, parallel=2, cores=1, **OF_CAPTIONER
        )


def batch_of(files: list[tuple[str, bytes]]) -> pa.Table:
    return pa.table({"path": [f"s3://bucket/{name}" for name, _ in files],
                     "bytes": [data for _, data in files]})  # fmt: skip


def test_a_row_holds_all_of_its_record(
    captioner: Captioner, ray_captioner: RayCaptioner, tmp_path: Path
) -> None:
    files = pictures(5, tmp_path)
    table = ray_captioner(batch_of(files))
    assert table.schema.equals(SCHEMA, check_metadata=True)
    plan = captioner.plan(caption_tokens=8)
    held = [PictureFile(Path(name), None, name, data=data) for name, data in files]
    for outcome, row, (name, data) in zip(
        Batch(captioner, plan, parallel=2).run(held), table.to_pylist(), files, strict=True
    ):
        record = outcome.record
        assert record is not None
        expected = record_to_row({**record, "image": f"s3://bucket/{name}"}, row["request"])
        timed = {key for key in row if key.endswith("_ms")} | {"created"}
        for key in set(row) - timed:
            # what a caption lacks is null: an error, a reduction
            assert row[key] == expected.get(key), key
        assert row["image_sha256"] == hashlib.sha256(data).hexdigest()
        assert row["request"] == request_key(captioner, plan).id()
        assert row["total_ms"] > 0
        # no value of the record is in no column: each is somewhere in the row
        flat = json.dumps({**row, "created": ""})
        for value in (record["caption"], record["model"]["digest"], record["instruction"]):
            assert json.dumps(value) in flat


def test_what_is_no_picture_is_a_row_with_its_reason(
    ray_captioner: RayCaptioner, tmp_path: Path
) -> None:
    files = [*pictures(2, tmp_path), ("broken.png", b"no picture"), ("empty.png", b"")]
    batch = batch_of(files).append_column("more", pa.array([1, 2, 3, 4]))
    batch = batch.set_column(1, "bytes", pa.array([d for _, d in files[:3]] + [None], pa.binary()))
    rows = ray_captioner(batch).to_pylist()
    assert [row["caption"] is None for row in rows] == [False, False, True, True]
    assert [row["error_kind"] for row in rows] == [None, None, "refused", "unread"]
    assert rows[2]["error"].startswith("not a picture that can be read")  # `image` has the name
    assert rows[3]["error"] == "its content is null."
    assert {row["version"] for row in rows} == {__version__}
    assert {row["model"] for row in rows} == {rows[0]["model"]} != {None}
    assert rows[2]["image_sha256"] == hashlib.sha256(b"no picture").hexdigest()
    assert rows[3]["image_sha256"] is None


def test_the_same_picture_twice_in_a_batch_is_captioned_once(
    ray_captioner: RayCaptioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, first), (_, second) = pictures(2, tmp_path)
    files = [("a.png", first), ("b.png", second), ("copy of a.png", first), ("x.png", b"none"),
             ("a again.png", first), ("y.png", b"none")]  # fmt: skip
    sent: list[str] = []
    caption = ray_captioner._engine.caption

    def note(given: Sequence[tuple[str, bytes]]) -> list[Answer]:
        sent.extend(name for name, _ in given)
        return caption(given)

    monkeypatch.setattr(ray_captioner._engine, "caption", note)
    rows = ray_captioner(batch_of(files)).to_pylist()
    assert [row["image"] for row in rows] == [f"s3://bucket/{name}" for name, _ in files]
    assert [row["image_sha256"] for row in rows] == [
        hashlib.sha256(data).hexdigest() for _, data in files
    ]
    for copy in (rows[2], rows[4]):
        assert {**copy, "image": ""} == {**rows[0], "image": ""}
        assert copy["caption"]
    assert rows[1]["caption"] != rows[0]["caption"]
    assert sorted(name.rpartition("/")[2] for name in sent) == ["a.png", "b.png", "x.png", "y.png"]
    assert rows[3]["error"] == rows[5]["error"] != None  # noqa: E711


def test_pixels_give_the_captions_and_digests_of_arrays(
    captioner: Captioner, ray_captioner: RayCaptioner
) -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(2)]
    wrong = np.zeros((4, 4), np.float32)
    rows = ray_captioner({"image": [*arrays, wrong], "path": ["a", "b", "c"]}).to_pylist()
    for array, row in zip(arrays, rows, strict=False):
        caption = captioner.caption(array, caption_tokens=8)
        assert (row["caption"], row["image_sha256"]) == (caption.text, caption.image_sha256)
    assert "float32" in rows[2]["error"]


def test_every_reader_reads_the_same(ray_captioner: RayCaptioner, tmp_path: Path) -> None:
    files = [*pictures(3, tmp_path), ("broken.png", b"no picture")]
    table = ray_captioner(batch_of(files))
    place = Place.of(tmp_path / "out")
    place.write_part("part-1.parquet", table)
    file = tmp_path / "out" / "part-1.parquet"
    assert pq.read_table(file).equals(table)
    captions = table["caption"].to_pylist()
    frame = pd.read_parquet(file)
    assert [None if pd.isna(c) else c for c in frame["caption"]] == captions
    assert frame["created"].dt.tz is not None
    rows = duckdb.sql(
        f"SELECT caption, width, notes, threads, created FROM '{tmp_path / 'out'}/*.parquet'"
    ).fetchall()
    assert [row[0] for row in rows] == captions
    assert [row[1] for row in rows] == table["width"].to_pylist()
    assert [row[3] for row in rows] == table["threads"].to_pylist()
    loaded = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    assert loaded["caption"][:] == captions
    assert set(loaded.column_names) == set(SCHEMA.names)


def partial(host: str, pid: int, name: str = "part-7-000001.parquet") -> str:
    """The name of a file that is being written, by whom."""
    return f".{name}.{host}.{pid}.partial"


def test_what_killed_runs_left_half_written_goes_and_nobody_reads_it(tmp_path: Path) -> None:
    place, here = Place.of(tmp_path / "out"), platform.node()
    table = rows_to_table([failure_to_row("a", "aa", "request", REFUSED, "none", "")])
    place.write_part("part-1.parquet", table)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = {
        "ended": partial(here, ended.pid),
        "running": partial(here, os.getpid()),
        "elsewhere": partial("another.host", ended.pid),
        "long ago": partial("another.host", 1),
        "before there were hosts": ".part-1.parquet.77.partial",
        "no partial": ".part-1.parquet.partial",
        "another's": ".notes.77.partial",
    }
    for name in names.values():
        (tmp_path / "out" / name).write_bytes(b"PAR1half a file")
    for name in ("long ago", "before there were hosts"):
        os.utime(tmp_path / "out" / names[name], (time.time() - 4000,) * 2)
    folder = str(tmp_path / "out")
    assert pyarrow.dataset.dataset(folder).to_table().equals(table)
    assert pq.read_table(folder).num_rows == 1
    assert len(pd.read_parquet(folder)) == 1
    assert duckdb.sql(f"SELECT image FROM '{folder}/*.parquet'").fetchall() == [("a",)]
    assert place.parts() == ["part-1.parquet"]
    place.remove_partials()
    left = {path.name for path in (tmp_path / "out").iterdir()} - {"part-1.parquet"}
    gone = {"ended", "long ago", "before there were hosts"}
    assert left == {name for why, name in names.items() if why not in gone}
    mine = partial(here, os.getpid(), "part-8-000001.parquet")
    (tmp_path / "out" / mine).write_bytes(b"PAR1")
    place.remove_partials("part-8")
    assert {path.name for path in (tmp_path / "out").iterdir()} - {"part-1.parquet"} == left
    Place.of(tmp_path / "nowhere").remove_partials()


def test_a_part_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "out")
    (tmp_path / "out" / "part-1.parquet").mkdir(parents=True)  # so that the last step fails
    (tmp_path / "out" / "part-1.parquet" / "file").touch()
    table = rows_to_table([failure_to_row("a", "aa", "request", REFUSED, "none", "")])
    with pytest.raises(OutputError, match=r"part-1\.parquet: cannot be written"):
        place.write_part("part-1.parquet", table)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part-1.parquet"]


def test_an_output_knows_its_rows_by_content_settings_and_name(
    random_bundle: Path, ray_captioner: RayCaptioner, tmp_path: Path
) -> None:
    files = [*pictures(4, tmp_path), ("broken.png", b"no picture")]
    place = Place.of(tmp_path / "out")
    table = ray_captioner(batch_of(files))
    place.write_part("part-1.parquet", table.slice(0, 2))
    place.write_part("part-2.parquet", table.slice(2))
    (tmp_path / "out" / ".part-3.parquet.partial").write_bytes(b"half a file")
    known = Known.read(place)
    assert len(known) == 5
    again = RayCaptioner(
        str(random_bundle), caption_tokens=8, parallel=2, cores=1, known=known, **OF_CAPTIONER
    )
    other = RayCaptioner(
        str(random_bundle), caption_tokens=9, parallel=2, cores=1, known=known, **OF_CAPTIONER
    )
    try:
        assert again(batch_of(files)).num_rows == 0
        assert other(batch_of(files)).num_rows == 5  # other settings
        moved = again(batch_of([("moved.png", files[3][1]), ("moved2.png", files[4][1])]))
        first, second = moved.to_pylist()
        assert first == {**table.to_pylist()[3], "image": "s3://bucket/moved.png"}  # not made anew
        assert (second["image"], second["caption"]) == ("s3://bucket/moved2.png", None)
        changed = again(batch_of([("p0.png", files[1][1]), ("p1.png", b"changed")]))
        assert changed["image_sha256"].to_pylist() == [
            hashlib.sha256(data).hexdigest() for data in (files[1][1], b"changed")
        ]
    finally:
        for captioner in (again, other):
            captioner.close()
    assert len(Known.read(tmp_path / "nowhere")) == 0


def test_a_foreign_or_damaged_file_in_the_output_is_told(
    ray_captioner: RayCaptioner, tmp_path: Path
) -> None:
    place = Place.of(tmp_path / "out")
    place.write_part("part-1.parquet", ray_captioner(batch_of(pictures(1, tmp_path))))
    whole = (tmp_path / "out" / "part-1.parquet").read_bytes()
    for name, data in (("cut.parquet", whole[: len(whole) // 2]), ("text.parquet", b"text")):
        (tmp_path / "out" / name).write_bytes(data)
        with pytest.raises(OutputError, match=name):
            Known.read(place)
        (tmp_path / "out" / name).unlink()
    pq.write_table(pa.table({"caption": ["a boat"]}), tmp_path / "out" / "foreign.parquet")
    with pytest.raises(OutputError, match=r"foreign\.parquet: holds no captions"):
        Known.read(place)


@pytest.mark.parametrize(
    ("columns", "version", "words"),
    [
        ({"a": [1]}, b"1", "has other columns"),
        ({name: [1] for name in SCHEMA.names}, b"1", "has other columns"),
        ({name: pa.array([None], pa.string()) for name in SCHEMA.names}, b"\xff\xfe", "of form"),
        (
            {name: pa.array([None if name == "request" else "x"], pa.string())
             for name in ("image", "image_sha256", "request", "error_kind", "error")},
            b"1",
            "no request",
        ),
    ],
)  # fmt: skip
def test_a_file_that_says_it_is_an_output_is_looked_into(
    columns: dict[str, object], version: bytes, words: str, tmp_path: Path
) -> None:
    table = pa.table(columns).replace_schema_metadata({b"edgeprism.schema": version})
    pq.write_table(table, tmp_path / "forged.parquet")
    with pytest.raises(OutputError, match=rf"forged\.parquet: .*{words}"):
        Known.read(tmp_path)


def test_rows_of_files_that_nobody_could_read_are_forgotten(
    ray_captioner: RayCaptioner, tmp_path: Path
) -> None:
    files = pictures(2, tmp_path)
    unread = pa.table({"path": ["a", "b"], "bytes": pa.array([None, files[0][1]], pa.binary())})
    place = Place.of(tmp_path / "out")
    place.write_part("part-1.parquet", ray_captioner(unread))
    place.write_part("part-2.parquet", ray_captioner(unread.slice(0, 1)))
    assert len(Known.read(place)) == 1
    assert pq.read_table(tmp_path / "out").num_rows == 3
    known = Known.read(place)
    assert pq.read_table(tmp_path / "out").num_rows == 3, "reading changes nothing"
    known.forget_unread()
    assert pq.read_table(tmp_path / "out")["image"].to_pylist() == ["b"]
    assert not (tmp_path / "out" / "part-2.parquet").exists()


def test_an_output_knows_which_pictures_have_no_caption(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "out")
    failed = failure_to_row("/a/x.png", "xx", "request", REFUSED, "x.png: damaged.", "")
    assert failed["error"] == "damaged."
    rows = [
        failed,
        {**failed, "image": "/a/y.png", "image_sha256": "yy", "error": "y.png: damaged."},  # older
        {**failed, "image": "/a/z.png", "image_sha256": "zz", "error": "too large."},
        {**failed, "image": "/a/c.png", "image_sha256": "cc", "error": None, "error_kind": None,
         "caption": "a boat"},
    ]  # fmt: skip
    place.write_part("part-1.parquet", rows_to_table(rows[:1]))
    place.write_part("part-2.parquet", rows_to_table(rows[1:]))
    known = Known.read(place)
    errors = {name: known.error_of(f"/a/{name}.png", name * 2, "request") for name in "xyzcn"}
    assert errors == {"x": "damaged.", "y": "damaged.", "z": "too large.", "c": None, "n": None}
    assert known.error_of("/a/x.png", "xx", "other settings") is None
    assert [known.has_caption(name * 2, "request") for name in "xc"] == [False, True]
    assert repr(known) == f"<Known {place}: 4 rows, 3 without a caption>"


def test_rows_with_names_in_other_spellings_are_known(tmp_path: Path) -> None:
    """Earlier versions wrote what Ray and Spark gave."""
    (tmp_path / "a b.png").touch()
    row = failure_to_row("", "aa", "request", REFUSED, "damaged.", "")
    spellings = [f"file:{tmp_path}/a b.png", (tmp_path / "a b.png").as_uri()]
    for spelling in spellings:
        place = Place.of(tmp_path / "out")
        place.write_part("part-1.parquet", rows_to_table([{**row, "image": spelling}]))
        assert Known.read(place).has(f"{tmp_path}/a b.png", "aa", "request")


def test_the_page_lists_the_columns_with_their_types() -> None:
    columns, _, _ = PAGE.read_text(encoding="utf-8").partition("A row has either")
    listed = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", columns, re.M)
    assert [(name, kind.strip()) for name, kind in listed] == [
        (column.name, str(column.type)) for column in SCHEMA
    ]
