"""A picture has one name, whichever library spells it, and an error does not begin with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprism.scale.names import picture_name, without_name
from edgeprism.scale.storage import Place


def test_every_spelling_of_a_path_becomes_the_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Photos").mkdir()
    for name in ("a b.png", "100%25.png", "ü?#.png"):
        path = tmp_path / "Photos" / name
        path.touch()
        spellings = (
            str(path),
            f"Photos/{name}",
            f"./Photos/{name}",
            f"file:{path}",  # Spark's
            f"FILE:{path}",
            path.as_uri(),
            path.as_uri().replace("file://", "file://localhost"),
        )
        assert {picture_name(spelling) for spelling in spellings} == {str(path)}


@pytest.mark.parametrize(
    "name",
    ["s3://bucket/a b.png", "gs://b/%41.png", "bucket/key.png", "file://host/share/a.png",
     "file:relative.png", "hdfs://name:8020/a.png", ""],
)  # fmt: skip
def test_what_names_no_file_here_stays(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert picture_name(name) == name


def test_an_error_loses_the_name_before_it_alone() -> None:
    assert without_name("a.png: damaged.", "/photos/a.png") == "damaged."
    assert without_name("/photos/a.png: damaged.", "/photos/a.png") == "damaged."
    assert without_name("b.png: damaged.", "/photos/a.png") == "b.png: damaged."
    assert without_name("not a picture: a.png: no", "a.png") == "not a picture: a.png: no"


def test_messages_name_pictures_as_the_folder_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Photos").mkdir()
    below = f"{tmp_path}/Photos/sub/a.png"
    assert Place.of("Photos").shown(below) == "Photos/sub/a.png"
    assert Place.of("Photos/").shown(below) == "Photos/sub/a.png"
    assert Place.of(str(tmp_path)).shown(below) == below
    assert Place.of("Photos/sub/a.png").shown(below) == "Photos/sub/a.png"
    assert Place.of("Photos").shown(f"{tmp_path}/Photos2/a.png") == f"{tmp_path}/Photos2/a.png"
    assert Place("s3://bucket/p", "s3://bucket/p").shown("s3://bucket/p/a") == "s3://bucket/p/a"
