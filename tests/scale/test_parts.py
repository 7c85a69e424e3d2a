"""A part's summary: what was made, what was known, what failed, now or in an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgeprism.scale.known import Known
from edgeprism.scale.parts import PartCaptioner, PartOptions
from edgeprism.scale.storage import Place
from tests.scale.test_engine import OF_CAPTIONER, pictures


def summary(run: str, source: Path, bundle: Path, known: Known | None = None) -> dict[str, Any]:
    """Caption all of a folder as one part; return what its actor says of it."""
    settings = {"model": str(bundle), "caption_tokens": 8, "parallel": 2, "cores": 1}
    place = Place.of(source)
    options = PartOptions(
        place, Place.of(source.parent / "out"), run, {**settings, **OF_CAPTIONER}
    )  # fmt: skip
    part = PartCaptioner(options, known)
    batch = pa.Table.from_pylist([{"number": 0, "paths": place.pictures()[0]}])
    try:
        first: dict[str, Any] = part(batch).to_pylist()[0]
        # as if its actor had been killed before it could say so
        assert part(batch).to_pylist()[0] == first
    finally:
        part._captioner.close()
    return first


def test_a_summary_tells_what_is_known_and_what_failed(
    random_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "home"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    files = pictures(3, folder)
    (folder / "p0 again.png").write_bytes(files[0][1])
    (folder / "broken.png").write_bytes(b"no picture")
    first = summary("part-1", folder, random_bundle)
    failure = {"image": str(folder / "broken.png"), "error": first["failures"][0]["error"]}
    assert first == {
        "pictures": 5, "captioned": 3, "duplicates": 1, "failures": [failure], "fatal": None,
    }  # fmt: skip
    (folder / "moved.png").write_bytes(files[1][1])
    (folder / "broken too.png").write_bytes(b"no picture")
    second = summary("part-2", folder, random_bundle, Known.read(tmp_path / "out"))
    other = {"image": str(folder / "broken too.png"), "error": failure["error"]}
    assert second == {
        "pictures": 7, "captioned": 0, "duplicates": 0, "failures": [other, failure], "fatal": None,
    }  # fmt: skip
    names = pq.read_table(tmp_path / "out")["image"].to_pylist()
    assert sorted(names) == sorted(str(path) for path in folder.iterdir())
    rows = pq.read_table(tmp_path / "out").to_pylist()
    errors = {row["error"] for row in rows if row["error"] is not None}
    assert len(errors) == 1, "the docs group by it"


def test_a_file_that_cannot_be_read_is_told_without_its_name(tmp_path: Path) -> None:
    from edgeprism.scale.storage import read_file

    errors = {str(read_file(*Place.of(tmp_path / name).open())) for name in "ab"}
    assert errors == {"cannot be read: No such file or directory."}
