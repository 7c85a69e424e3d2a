"""Sidecars as files: which one is a picture's, what it was before, and how it comes back."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from edgeprism.errors import OutputError
from edgeprism.output.authorship import Outputs
from edgeprism.output.originals import Originals
from edgeprism.output.sidecar import OwnTextError, TxtSidecar, XmpSidecar
from edgeprism.output.undo import Undoing, plan_undo
from edgeprism.output.xmp import read_description
from edgeprism.picture.find import PictureFile
from tests.helpers.outputs import KnownOutputs
from tests.output.test_sidecar import DARKTABLE, LIGHTROOM

RECORD: dict[str, Any] = {"caption": "a red dog", "image_sha256": "ab" * 32,
                          "model": {"name": "nano", "digest": "cd" * 32}}  # fmt: skip
TEXTS = {
    "UTF-8": "Möwe\n".encode(),
    "no line end": "Möwe".encode(),
    "UTF-8 with a mark": "Möwe\n".encode("utf-8-sig"),
    "UTF-16": "Möwe\n".encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + "Möwe\r\n".encode("utf-16-be"),
    "UTF-32": "Möwe\n".encode("utf-32"),
    "Latin-1": "Möwe\r\nam Meer\r\n".encode("latin-1"),
}


def undo_sidecar(path: Path, *, outputs: Outputs | None = None, dry_run: bool = False) -> Undoing:
    undo = plan_undo(path, outputs=outputs)
    if not dry_run:
        undo.apply()
    return undo.done


def picture(path: Path) -> PictureFile:
    return PictureFile(path, None, str(path))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "home"))
    path = tmp_path / "photos" / "photo.jpg"
    path.parent.mkdir()
    path.write_bytes(b"\xff\xd8 the picture")
    return path


def names(folder: Path, *there: str, kind: Any = XmpSidecar, **options: Any) -> str:
    """Return the sidecar's name for photo.jpg in a folder with these files."""
    for name in ("photo.jpg", *there):
        (folder / name).touch()
    target: Path = kind(**options).target(picture(folder / "photo.jpg"))
    return target.name


# ---- names


@pytest.mark.parametrize(
    ("there", "form", "name"),
    [
        ([], "stem", "photo.xmp"),
        ([], "full", "photo.jpg.xmp"),
        (["photo.jpg.xmp"], "stem", "photo.jpg.xmp"),
        (["photo.xmp"], "full", "photo.xmp"),
        (["photo.jpg.xmp", "photo.xmp"], "stem", "photo.jpg.xmp"),
        (["photo.jpg.xmp", "photo.xmp"], "full", "photo.jpg.xmp"),
        (["photo.XMP"], "stem", "photo.XMP"),
        (["PHOTO.JPG.xmp"], "stem", "PHOTO.JPG.xmp"),
        (["photo.NEF"], "stem", "photo.jpg.xmp"),
        (["photo.cr3", "photo.xmp"], "stem", "photo.jpg.xmp"),
        (["PHOTO.dng"], "stem", "photo.jpg.xmp"),
        (["photo.png"], "stem", "photo.jpg.xmp"),
        (["photo.png", "photo.xmp"], "full", "photo.jpg.xmp"),
        (["photo.mp4", "photo.txt"], "stem", "photo.xmp"),
        (["other.jpg.xmp", "other.xmp"], "stem", "photo.xmp"),
    ],
)
def test_the_sidecar_that_is_there_is_used(
    tmp_path: Path, there: list[str], form: Any, name: str
) -> None:
    assert names(tmp_path, *there, name_form=form) == name


def test_a_raw_file_has_no_caption_so_texts_keep_the_stem(tmp_path: Path) -> None:
    assert names(tmp_path, "photo.NEF", kind=TxtSidecar) == "photo.txt"
    assert names(tmp_path, "photo.jpg.txt", kind=TxtSidecar) == "photo.jpg.txt"


def test_the_sidecar_that_is_not_used_is_known(photo: Path) -> None:
    for name in ("photo.jpg.xmp", "photo.xmp"):
        (photo.parent / name).write_text(DARKTABLE)
    sidecar = XmpSidecar()
    assert sidecar.twin(picture(photo)) == photo.parent / "photo.xmp"
    sidecar.write(RECORD, picture(photo))
    assert read_description((photo.parent / "photo.jpg.xmp").read_bytes()).text == "a red dog"
    assert (photo.parent / "photo.xmp").read_text() == DARKTABLE
    assert set(sidecar.existing(picture(photo))) == {
        photo.parent / "photo.jpg.xmp", photo.parent / "photo.xmp",
    }  # fmt: skip


def test_darktables_sidecar_is_merged_into_and_no_second_one_made(photo: Path) -> None:
    place = photo.parent / "photo.jpg.xmp"
    place.write_text(DARKTABLE)
    assert XmpSidecar().write(RECORD, picture(photo)).path == place
    assert sorted(files(photo.parent)) == ["photo.jpg", "photo.jpg.xmp"]
    head, tail = DARKTABLE.split("\n  </rdf:Description>")
    assert place.read_text().startswith(head)
    assert place.read_text().endswith("\n  </rdf:Description>" + tail)


# ---- files with properties


@pytest.mark.parametrize("kind", [TxtSidecar, XmpSidecar])
def test_a_write_protected_sidecar_is_named(photo: Path, kind: Any) -> None:
    place = photo.with_suffix(kind.suffix)
    place.write_text(LIGHTROOM, "utf-8")
    place.chmod(0o444)
    with pytest.raises(OwnTextError):  # a person's text is no failure, protected or not
        kind().check(picture(photo))
    assert undo_sidecar(place) == "left"
    place.chmod(0o644)
    place.write_text(DARKTABLE)
    place.chmod(0o444)
    for options in ({"overwrite": True}, {"append": True}):
        with pytest.raises(OutputError, match="write-protected") as error:
            kind(**options).write(RECORD, picture(photo))
        assert not isinstance(error.value, OwnTextError)
        assert str(place) in error.value.message
    assert place.read_text() == DARKTABLE


@pytest.mark.parametrize("kind", [TxtSidecar, XmpSidecar])
def test_a_hard_link_is_not_broken(photo: Path, kind: Any) -> None:
    place = photo.with_suffix(kind.suffix)
    place.write_text(DARKTABLE)
    os.link(place, photo.parent / "other-name")
    with pytest.raises(OutputError, match="hard link"):
        kind(overwrite=True).write(RECORD, picture(photo))
    assert place.stat().st_ino == (photo.parent / "other-name").stat().st_ino


def test_mode_owner_and_attributes_stay(photo: Path) -> None:
    place = photo.with_suffix(".xmp")
    place.write_text(DARKTABLE)
    place.chmod(0o664)
    if os.geteuid() == 0:
        os.chown(place, 1234, 2345)
    before = place.stat()
    has_attributes = hasattr(os, "setxattr")
    if has_attributes:
        try:
            os.setxattr(place, "user.tags", b"harbour")
        except OSError:
            has_attributes = False
    XmpSidecar().write(RECORD, picture(photo))
    after = place.stat()
    assert after.st_ino != before.st_ino, "it was written anew"
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode, before.st_uid, before.st_gid,
    )  # fmt: skip
    if has_attributes:
        assert os.getxattr(place, "user.tags") == b"harbour"


# ---- texts of people


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_text_in_any_encoding_stays_byte_for_byte(photo: Path, encoding: str) -> None:
    place = photo.with_suffix(".txt")
    place.write_bytes(TEXTS[encoding])
    with pytest.raises(OwnTextError):
        TxtSidecar().check(picture(photo))
    with pytest.raises(OwnTextError):
        TxtSidecar().write(RECORD, picture(photo))
    assert place.read_bytes() == TEXTS[encoding]


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_caption_follows_a_text_in_its_encoding(photo: Path, encoding: str) -> None:
    place, before = photo.with_suffix(".txt"), TEXTS[encoding]
    place.write_bytes(before)
    sidecar = TxtSidecar(append=True)
    sidecar.check(picture(photo))
    first = sidecar.write(RECORD, picture(photo))
    data = place.read_bytes()
    assert data.startswith(before)
    codec = {"UTF-16": "utf-16", "UTF-32": "utf-32", "Latin-1": "latin-1",
             "UTF-8 with a mark": "utf-8-sig", "UTF-16, big end first": "utf-16"}  # fmt: skip
    lines = data.decode(codec.get(encoding, "utf-8")).splitlines()
    assert lines[0] == "Möwe"
    assert lines[-1] == "a red dog"
    again = sidecar.write(RECORD, picture(photo))
    assert (again.sha256, place.read_bytes()) == (first.sha256, data)
    TxtSidecar(append=True).write({**RECORD, "caption": "a blue cat"}, picture(photo))
    assert b"dog" not in place.read_bytes().replace(b"\0", b"")
    with pytest.raises(OwnTextError):
        TxtSidecar().write(RECORD, picture(photo))
    assert undo_sidecar(place) == "restored"
    assert place.read_bytes() == before


def test_without_the_data_folder_a_caption_is_not_appended_twice(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = photo.with_suffix(".txt")
    place.write_text("mine\n")
    TxtSidecar(append=True).write(RECORD, picture(photo))
    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "another"))
    TxtSidecar(append=True).write(RECORD, picture(photo))
    assert place.read_text() == "mine\na red dog\n"


def test_what_a_person_writes_in_front_of_the_caption_stays(photo: Path) -> None:
    place = photo.with_suffix(".txt")
    place.write_text("mine\n")
    TxtSidecar(append=True).write(RECORD, picture(photo))
    place.write_text("mine, edited\na red dog\n")
    TxtSidecar(append=True).write({**RECORD, "caption": "a blue cat"}, picture(photo))
    assert place.read_text() == "mine, edited\na blue cat\n"
    assert undo_sidecar(place) == "restored"
    assert place.read_text() == "mine, edited\n"


def test_a_character_that_the_encoding_lacks_is_named(photo: Path) -> None:
    place = photo.with_suffix(".txt")
    place.write_bytes(TEXTS["Latin-1"])
    with pytest.raises(OutputError, match="lacks") as error:
        TxtSidecar(append=True).write({**RECORD, "caption": "🛶"}, picture(photo))
    assert "`overwrite`" in error.value.hint
    assert place.read_bytes() == TEXTS["Latin-1"]


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n", b"\xef\xbb\xbf", b"\xff\xfe"])
def test_an_empty_text_is_filled_and_comes_back(photo: Path, content: bytes) -> None:
    place = photo.with_suffix(".txt")
    place.write_bytes(content)
    TxtSidecar().check(picture(photo))
    TxtSidecar().write(RECORD, picture(photo))
    assert place.read_text() == "a red dog\n"
    TxtSidecar().write({**RECORD, "caption": "a blue cat"}, picture(photo))
    assert place.read_text() == "a blue cat\n"
    assert undo_sidecar(place) == "removed"
    assert place.read_bytes() == content


def test_an_empty_xmp_is_filled_and_comes_back(photo: Path) -> None:
    place = photo.with_suffix(".xmp")
    place.touch()
    XmpSidecar().check(picture(photo))
    XmpSidecar().write(RECORD, picture(photo))
    assert read_description(place.read_bytes()).text == "a red dog"
    assert undo_sidecar(place) == "removed"
    assert place.read_bytes() == b""


# ---- the way back


@pytest.mark.parametrize("encoding", TEXTS)
def test_an_overwritten_text_comes_back(photo: Path, encoding: str) -> None:
    place = photo.with_suffix(".txt")
    place.write_bytes(TEXTS[encoding])
    TxtSidecar(overwrite=True).write(RECORD, picture(photo))
    TxtSidecar().write({**RECORD, "caption": "a blue cat"}, picture(photo))
    assert place.read_text() == "a blue cat\n"
    assert undo_sidecar(place, dry_run=True) == "restored"
    assert place.read_text() == "a blue cat\n"
    assert undo_sidecar(place) == "restored"
    assert place.read_bytes() == TEXTS[encoding]
    assert undo_sidecar(place) == "left"
    with pytest.raises(OwnTextError):
        TxtSidecar().write(RECORD, picture(photo))


@pytest.mark.parametrize("source", [LIGHTROOM, DARKTABLE])
@pytest.mark.parametrize("append", [False, True])
def test_an_xmp_comes_back(photo: Path, source: str, append: bool) -> None:
    place = photo.with_suffix(".xmp")
    place.write_text(source, "utf-8")
    XmpSidecar(append=append, overwrite=not append).write(RECORD, picture(photo))
    assert read_description(place.read_bytes()).text.endswith("a red dog")
    assert undo_sidecar(place) == ("restored" if "Möwe" in source else "removed")
    assert place.read_text("utf-8") == source


def test_files_of_edgeprism_alone_go_and_those_of_others_stay(photo: Path) -> None:
    written = KnownOutputs()
    TxtSidecar(outputs=written).write(RECORD, picture(photo))
    XmpSidecar().write(RECORD, picture(photo))
    other = photo.parent / "other.txt"
    other.write_text("mine")
    for path in (photo.with_suffix(".txt"), photo.with_suffix(".xmp")):
        assert undo_sidecar(path, outputs=written) == "removed"
    assert undo_sidecar(other, outputs=written) == "left"
    assert sorted(files(photo.parent)) == ["other.txt", "photo.jpg"]


def test_a_changed_text_is_somebodys(photo: Path) -> None:
    place = photo.with_suffix(".txt")
    place.write_text("mine\n")
    TxtSidecar(overwrite=True).write(RECORD, picture(photo))
    place.write_text("a red dog, says Ann\n")
    written = KnownOutputs()
    written.remember(place, hashlib.sha256(b"a red dog\n").hexdigest())
    assert undo_sidecar(place, outputs=written) == "left"
    assert place.read_text() == "a red dog, says Ann\n"


def test_no_text_is_replaced_unless_it_can_be_kept(photo: Path, tmp_path: Path) -> None:
    place = photo.with_suffix(".txt")
    place.write_text("mine\n")
    (tmp_path / "a-file").touch()
    originals = Originals(tmp_path / "a-file" / "originals")
    with pytest.raises(OutputError, match="cannot be kept"):
        TxtSidecar(overwrite=True, originals=originals).write(RECORD, picture(photo))
    assert place.read_text() == "mine\n"
