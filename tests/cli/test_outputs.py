"""No output falls on an input, on another output, or on a file of another kind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edgeprism.cli.main import run
from tests.helpers import bundles

Captured = pytest.CaptureFixture[str]
SAID = bundles.SAID_TEXT


@pytest.fixture
def model(scripted_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPRISM_MODEL", str(scripted_bundle))
    return scripted_bundle


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with q1.jpg, q2.jpg and two pictures with other suffixes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(("q1.jpg", "q2.jpg", "scan.dat", "note.txt")):
        image = Image.new("RGB", (20 + number, 15), (number * 50, 100, 200))
        image.save(folder / name, "PNG" if name.endswith(("dat", "txt")) else None)
    monkeypatch.chdir(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


OTHERS = {
    "main.py": b"import os\n# a: b\n",
    "notes.md": b"# Mine\n\nBuy milk: 2 l\n",
    "data.csv": b"name,value\r\na,1\r\n",
    "data.jsonl": b'{"prompt": "x"}\n{"prompt": "y"}\n',
    "data.json": b'{"version": 3}\n',
    "table.tsv": b"index\tquestion\n1\tx\n",
    "photo.xmp": b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>\n',
    "disguised": b"\x89PNG\r\n\x1a\n" + bytes(50),
    "model": b"GGUF\x03\0\0\0" + bytes(50),
    "latin.txt": "é: è\n".encode("latin-1"),
    "video.mp4": b"\0\0\0\x18ftypmp42" + bytes(40),
    "archive.zip": b"PK\x03\x04" + bytes(40),
}


# ---- at the command line


@pytest.mark.usefixtures("model")
def test_errors_before_a_picture_does_not_empty_it(photos: Path, capfd: Captured) -> None:
    before = contents(photos)
    assert run(["caption", "--jsonl", "--errors", "q1.jpg", "q2.jpg"]) != 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "q1.jpg" in err
    assert "--errors" in err
    assert contents(photos) == before


@pytest.mark.parametrize("option", ["--output", "--errors"])
@pytest.mark.parametrize(
    ("place", "others"),
    [
        ("q1.jpg", ["q1.jpg", "q2.jpg"]),
        ("q1.jpg", ["q2.jpg", "scan.dat"]),
        ("gone.png", ["q2.jpg"]),
        ("scan.dat", ["scan.dat", "q2.jpg"]),
        ("./scan.dat", ["q2.jpg", "scan.dat"]),
        ("scan.dat", ["q2.jpg", "s*.dat"]),
        ("scan.dat", ["."]),
        ("link", ["q1.jpg"]),
        ("link", ["."]),
        ("note.txt", ["."]),
        ("list", ["--files-from", "list"]),
        ("folder", ["."]),
        ("missing/x.jsonl", ["."]),
        ("q2.jpg/x.jsonl", ["."]),
        ("new.gguf", ["."]),
        ("new.onnx", ["."]),
        *((name, ["q1.jpg", "q2.jpg"]) for name in OTHERS),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["text", "jsonl", "csv"])
@pytest.mark.usefixtures("model")
def test_nothing_is_lost_and_nothing_is_done(
    photos: Path, option: str, place: str, others: list[str], form: str, capfd: Captured
) -> None:
    for name, data in OTHERS.items():
        (photos / name).write_bytes(data)
    (photos / "list").write_text("q1.jpg\nq2.jpg\n")
    (photos / "folder").mkdir()
    (photos / "link").symlink_to("q1.jpg")
    before = contents(photos)
    forms = [] if form == "text" else [f"--{form}"]
    for extra in ([], ["--txt", "--xmp"]):
        assert run(["caption", *others, option, place, *forms, *extra]) in (1, 2)
        out, err = capfd.readouterr()
        assert out == ""
        assert Path(place).name in err or Path(place).parent.name in err
        assert "captioned" not in err
        assert "Traceback" not in err
        assert contents(photos) == before


@pytest.mark.usefixtures("model")
def test_consent_covers_texts_but_never_pictures_or_inputs(photos: Path, capfd: Captured) -> None:
    (photos / "old.txt").write_text("My own words.\n")
    (photos / "list").write_text("q1.jpg\nq2.jpg\n")
    caption = ["caption", "q1.jpg", "q2.jpg", "--overwrite", "--jsonl", "--output"]
    assert run([*caption, "old.txt"]) == 0
    lines = (photos / "old.txt").read_text().splitlines()
    assert [json.loads(line)["caption"] for line in lines] == [SAID, SAID]
    before = contents(photos)
    for name in ("q2.jpg", "scan.dat", "note.txt"):
        assert run([*caption, name]) != 0
    assert run(["caption", "--files-from", "list", "--overwrite", "--output", "list"]) == 2
    capfd.readouterr()
    assert contents(photos) == before


@pytest.mark.parametrize("form", ["text", "json", "jsonl", "csv"])
@pytest.mark.usefixtures("model")
def test_a_run_replaces_its_own_results(photos: Path, form: str, capfd: Captured) -> None:
    flags = [] if form == "text" else [f"--{form}"]
    (photos / "bad.png").write_bytes(b"no picture")
    command = ["caption", "q1.jpg", "q2.jpg", "bad.png", *flags, "--output", "out.x",
               "--errors", "bad.jsonl"]  # fmt: skip
    (photos / "out.x").touch()
    assert run(command) == 3
    first = contents(photos)
    assert run(command) == 3
    capfd.readouterr()
    assert contents(photos).keys() == first.keys()
    assert contents(photos)["bad.jsonl"] == first["bad.jsonl"]
    # but neither takes the other's place
    before = contents(photos)
    assert run(["caption", "q1.jpg", "q2.jpg", "--errors", "out.x"]) == 1
    assert run(["caption", "q1.jpg", "q2.jpg", *flags, "--output", "bad.jsonl"]) == 1
    assert contents(photos) == before


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "a word": lambda data: data.replace(SAID.split()[0].encode(), b"Perhaps", 1),
    "a column": lambda data: data.replace(b"image", b"image,mine", 1).replace(b"jpg", b"jpg,x"),
    "a line behind": lambda data: data + data.splitlines(keepends=True)[-1],
    "a line less": lambda data: b"".join(data.splitlines(keepends=True)[:-1]),
    "a blank": lambda data: data + b"\n",
}


@pytest.mark.parametrize("name", ["out.txt", "out.json", "out.jsonl", "out.csv", "link.jsonl"])
@pytest.mark.usefixtures("model")
def test_an_edited_result_is_kept(photos: Path, name: str, capfd: Captured) -> None:
    (photos / "link.jsonl").symlink_to("real.jsonl")
    command = ["caption", "q1.jpg", "q2.jpg", "--output", name]
    assert run(command) == 0
    written = (photos / name).read_bytes()
    for what, edit in EDITS.items():
        edited = edit(written)
        assert edited != written, what
        (photos / name).write_bytes(edited)
        for pictures in (["q1.jpg", "q2.jpg"], ["q1.jpg"]):
            capfd.readouterr()
            assert run(["caption", *pictures, "-o", name]) == 1, what
            out, err = capfd.readouterr()
            assert out == ""
            assert name in err
            assert "--overwrite" in err
            assert "captioned" not in err
            assert (photos / name).read_bytes() == edited, what
    assert run([*command, "--overwrite"]) == 0
    assert SAID.encode() in (photos / name).read_bytes()
    assert run(command) == 0  # it is EdgePrism's own again
    assert run(["caption", "q1.jpg", "-o", name]) == 0  # also where the pictures are others
    (photos / name).write_bytes(b"")
    assert run(command) == 0


@pytest.mark.usefixtures("model")
def test_an_edited_list_of_failures_is_kept(photos: Path, capfd: Captured) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    command = ["caption", "q1.jpg", "bad.png", "--errors", "bad.jsonl"]
    assert run(command) == 3
    with (photos / "bad.jsonl").open("a") as file:
        file.write('{"image": "mine.png", "error": "I looked: it is black."}\n')
    before = contents(photos)
    assert run(command) == 1
    assert "--overwrite" in capfd.readouterr().err
    assert contents(photos) == before
    assert run([*command, "--overwrite"]) == 3
    assert run(command) == 3


@pytest.mark.usefixtures("model")
def test_a_moved_result_and_one_of_another_home_are_kept(
    photos: Path, tmp_path: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["caption", "q1.jpg", "-o", "out.jsonl"]
    assert run(command) == 0
    shutil.copy(photos / "out.jsonl", photos / "copy.jsonl")
    assert run(["caption", "q1.jpg", "-o", "copy.jsonl"]) == 1
    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "elsewhere"))
    assert run(command) == 1
    assert "another data folder" in capfd.readouterr().err


@pytest.mark.usefixtures("model")
def test_two_results_do_not_share_a_file(photos: Path, capfd: Captured) -> None:
    (photos / "real").touch()
    (photos / "again").symlink_to("real")
    (photos / "sub").mkdir()
    before = contents(photos)
    for one, other in (("x", "x"), ("x", "./x"), ("x", "sub/../x"), ("real", "again")):
        assert run(["caption", "q1.jpg", "q2.jpg", "--output", one, "--errors", other]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert "--output and --errors" in err
    assert contents(photos) == before
    assert run(["caption", "q1.jpg", "q2.jpg", "--output", "/dev/null", "--errors", "/dev/null",
                "--no-cache"]) == 0  # fmt: skip


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.usefixtures("model")
def test_no_sidecar_falls_on_a_list_or_a_result(
    photos: Path, overwrite: list[str], capfd: Captured
) -> None:
    (photos / "q1.txt").write_text("q1.jpg\nq2.jpg\n")
    listed = ["caption", "--files-from", "q1.txt", "--txt", *overwrite]
    assert run(listed) == 3
    assert (photos / "q1.txt").read_text() == "q1.jpg\nq2.jpg\n"
    assert (photos / "q2.txt").read_text() == f"{SAID}\n"
    result = ["caption", "q1.jpg", "q2.jpg", "--xmp", "--jsonl", "--output", "q2.xmp", *overwrite]
    assert run(result) == 3
    lines = (photos / "q2.xmp").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == ["q1.jpg", "q2.jpg"]
    assert "q2.xmp" in capfd.readouterr().err


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="needs a folder closed to root too")
@pytest.mark.usefixtures("model", "photos")
def test_writability_is_tried_before_the_first_caption(capfd: Captured) -> None:
    for options in (["--output", "/sys/kernel/x"], ["--errors", "/sys/kernel/x"],
                    ["--txt", "--out-dir", "/sys/kernel/below/x"]):  # fmt: skip
        assert run(["caption", "q1.jpg", "q2.jpg", *options]) == 1
        out, err = capfd.readouterr()
        assert out == ""
        assert "/sys/kernel" in err
        assert "captioned" not in err


# ---- other commands


@pytest.mark.parametrize("name", ["report.html", "report.json", "answers.csv"])
def test_eval_replaces_no_report_but_its_own(name: str, tmp_path: Path, capfd: Captured) -> None:
    (tmp_path / name).write_text("mine")
    assert run(["eval", "--out", str(tmp_path)]) in (1, 2)
    assert name in capfd.readouterr().err
    assert contents(tmp_path) == {name: b"mine"}


def test_eval_writes_into_no_bundle(scripted_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(scripted_bundle, tmp_path / "bundle")
    before = contents(bundle)
    assert run(["eval", "--out", str(bundle)]) == 2
    assert contents(bundle) == before


@pytest.mark.parametrize("name", ["report.json", "report.txt"])
def test_verify_published_replaces_no_foreign_report(
    name: str, tmp_path: Path, photo: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRISM_OFFLINE", "1")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    command = ["models", "verify-published", "prismcaptioner-2b", "--photos", str(photo)]
    assert run([*command, "--out", str(out)]) == 1
    assert "did not write it" in capfd.readouterr().err
    assert contents(out) == {name: b"mine"}


def test_convert_replaces_no_bundle_that_holds_its_inputs(
    scripted_bundle: Path, tmp_path: Path, capfd: Captured
) -> None:
    bundle = shutil.copytree(scripted_bundle, tmp_path / "bundle")
    shutil.copy(bundle / "lm.gguf", bundle / "mmproj.gguf")
    (tmp_path / "link").symlink_to(bundle)
    before = contents(bundle)
    for out in (bundle, tmp_path / "link"):
        files = [str(bundle / "lm.gguf"), str(bundle / "mmproj.gguf")]
        assert run(["convert", "mmproj", *files, str(out), "--overwrite"]) == 2
        assert "is or holds an input" in capfd.readouterr().err
    assert contents(bundle) == before
