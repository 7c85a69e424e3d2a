"""Texts that people wrote: known before a model runs, counted, left alone, continued, restored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from edgeprism.cli.main import run
from edgeprism.folder.batch import Batch
from edgeprism.folder.run import caption_folder
from edgeprism.output.xmp import read_description
from edgeprism.perceive.captioner import Captioner
from tests.helpers.bundles import SAID_TEXT

Captured = pytest.CaptureFixture[str]
NAMES = [f"p{number}" for number in range(6)]
MINE = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-synt'
    'ax-ns#"><rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><rdf:Alt>'
    '<rdf:li xml:lang="de-DE">Meins</rdf:li></rdf:Alt></dc:description></rdf:Description></rdf:RDF>'
    "</x:xmpmeta>"
)


@pytest.fixture
def album(tmp_path: Path, scripted_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EDGEPRISM_MODEL", str(scripted_bundle))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "album"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(folder / f"{name}.png")
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_own_texts_are_counted_and_are_no_failure(album: Path, capfd: Captured) -> None:
    for name in NAMES[:4]:
        (album / f"{name}.txt").write_bytes("größer\r\n".encode("latin-1"))
    before = snapshot(album)
    assert run(["caption", "album", "--txt", "--errors", "errors.jsonl"]) == 0
    err = capfd.readouterr().err
    assert "6 pictures: 2 captioned, 0 known already, 4 left alone, 0 failed" in err
    assert "4 have a description of their own, left alone" in err
    assert "error:" not in err
    assert Path("errors.jsonl").read_text() == ""
    after = snapshot(album)
    assert {name: after[name] for name in before} == before
    assert (album / "p5.txt").read_text("utf-8") == SAID_TEXT + "\n"


def test_the_model_does_not_run_for_them(
    album: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        (album / f"{name}.txt").write_text("mine")
        (album / f"{name}.xmp").write_text(MINE)
    before = snapshot(album)

    def no_batch(*_: object) -> None:
        raise AssertionError("a model would run")

    monkeypatch.setattr(Batch, "run", no_batch)
    assert run(["caption", "album", "--txt", "--xmp"]) == 0
    assert "6 have a description of their own, left alone" in capfd.readouterr().err
    assert snapshot(album) == before


def test_with_results_elsewhere_all_are_captioned_and_texts_still_stay(
    album: Path, capfd: Captured
) -> None:
    (album / "p0.txt").write_text("mine")
    assert run(["caption", "album", "--txt", "--jsonl"]) == 0
    out, err = capfd.readouterr()
    assert [json.loads(line)["caption"] for line in out.splitlines()] == [SAID_TEXT] * 6
    assert "6 pictures: 6 captioned, 0 known already, 0 failed" in err
    assert "1 has a description of its own, left alone" in err
    assert (album / "p0.txt").read_text() == "mine"


def test_one_sidecar_of_two_is_written(album: Path, capfd: Captured) -> None:
    (album / "p0.txt").write_text("mine")
    (album / "p1.xmp").write_text(MINE)
    assert run(["caption", "album", "--txt", "--xmp"]) == 0
    err = capfd.readouterr().err
    assert "6 pictures: 6 captioned" in err
    assert "2 have a description of their own, left alone" in err
    assert (album / "p0.txt").read_text() == "mine"
    assert (album / "p1.xmp").read_text() == MINE
    assert read_description((album / "p0.xmp").read_bytes()).text == SAID_TEXT
    assert (album / "p1.txt").read_text("utf-8") == SAID_TEXT + "\n"


def test_the_order_of_outcomes_is_that_of_the_pictures(
    album: Path, scripted_captioner: Captioner
) -> None:
    for name in ("p1", "p3", "p5"):
        (album / f"{name}.txt").write_text("mine")
    seen: list[tuple[str, bool]] = []
    result = caption_folder(
        album, scripted_captioner, sidecars=("txt",), parallel=1,
        on_outcome=lambda o: seen.append((o.picture.path.stem, o.left_alone)),
    )  # fmt: skip
    assert seen == [(name, name in ("p1", "p3", "p5")) for name in NAMES]
    assert (result.left_alone, result.passed_over, result.failures) == (3, 0, [])
    again = caption_folder(album, scripted_captioner, sidecars=("txt",), parallel=1)
    assert (again.total, again.known, again.left_alone, again.passed_over) == (6, 3, 3, 3)
    limited = caption_folder(album, scripted_captioner, sidecars=("txt",), parallel=1, limit=2)
    assert (limited.known, limited.failures) == (2, [])


def test_broken_and_protected_sidecars_are_failures_by_name(album: Path, capfd: Captured) -> None:
    (album / "p0.xmp").write_bytes(MINE.encode("utf-16-le"))
    (album / "p1.xmp").write_text(MINE.replace("Meins", ""))
    (album / "p1.xmp").chmod(0o444)
    (album / "p2.xmp").write_text("<x:xmpmeta")
    before = snapshot(album)
    assert run(["caption", "album", "--xmp"]) == 3
    err = capfd.readouterr().err
    assert "6 pictures: 3 captioned, 0 known already, 3 failed" in err
    for name in ("p0.xmp", "p1.xmp", "p2.xmp"):
        assert name in err
    after = snapshot(album)
    assert {name: after[name] for name in before} == before
    assert "p5.xmp" in after


@pytest.mark.parametrize("option", ["--append", "--overwrite"])
def test_everything_comes_back(album: Path, capfd: Captured, option: str) -> None:
    (album / "p0.txt").write_bytes("größer\r\n".encode("utf-16"))
    (album / "p1.txt").touch()
    (album / "p0.xmp").write_text(MINE.replace("de-DE", "x-default"))
    (album / "p1.xmp").touch()
    (album / "p2.png.xmp").write_text(MINE.replace("Meins", ""))
    before = snapshot(album)
    assert run(["caption", "album", "--txt", "--xmp", option]) == 0
    once = snapshot(album)
    assert once["p0.txt"] != before["p0.txt"]
    assert ("größer".encode("utf-16-le") in once["p0.txt"]) == (option == "--append")
    assert ("Meins" in read_description(once["p0.xmp"]).text) == (option == "--append")
    assert SAID_TEXT in read_description(once["p0.xmp"]).text
    assert run(["caption", "album", "--txt", "--xmp", option]) == 0
    assert snapshot(album) == once, "the same again changes nothing"
    assert run(["sidecars", "undo", "album", "--dry-run"]) == 0
    assert snapshot(album) == once
    capfd.readouterr()
    assert run(["sidecars", "undo", "album"]) == 0
    assert "2 former texts brought back" in capfd.readouterr().err
    assert snapshot(album) == before


def test_undo_leaves_what_people_wrote(album: Path, capfd: Captured) -> None:
    assert run(["caption", "album", "--txt", "--xmp"]) == 0
    (album / "p0.txt").write_text("corrected")
    (album / "p1.txt").unlink()
    (album / "p1.txt").write_text("mine")
    assert run(["sidecars", "undo", "album", "--txt"]) == 0
    assert sorted(path.name for path in album.glob("*.txt")) == ["p0.txt", "p1.txt"]
    assert len(list(album.glob("*.xmp"))) == 6
    assert run(["sidecars", "undo", "album"]) == 0
    assert not list(album.glob("*.xmp"))
    assert (album / "p0.txt").read_text() == "corrected"
    assert "sidecars of others left alone" in capfd.readouterr().err


def test_two_sidecars_are_told_and_their_rule_is_fixed(album: Path, capfd: Captured) -> None:
    for name in ("p0.png.xmp", "p0.xmp"):
        (album / name).write_text(MINE.replace("Meins", ""))
    assert run(["caption", "album", "--xmp", "--sidecar-name", "full"]) == 0
    err = capfd.readouterr().err
    assert "1 picture has two sidecars" in err
    assert "p0.png.xmp was used, not p0.xmp" in err
    assert read_description((album / "p0.png.xmp").read_bytes()).text == SAID_TEXT
    assert (album / "p0.xmp").read_text() == MINE.replace("Meins", "")
    assert (album / "p1.png.xmp").is_file()
    assert not (album / "p1.xmp").exists()


def test_append_and_overwrite_exclude_each_other(album: Path, capfd: Captured) -> None:
    assert run(["caption", "album", "--txt", "--append", "--overwrite"]) == 2
    assert "--overwrite" in capfd.readouterr().err


# ---- nano, which does not know photographs


@pytest.fixture
def photographs(album: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures in which nano knows nothing."""
    monkeypatch.delenv("EDGEPRISM_MODEL")
    for name in NAMES[:3]:
        (album / f"{name}.png").unlink()
    for number, name in enumerate(NAMES[3:]):
        Image.effect_noise((64, 64), 20 + number).save(album / f"{name}.png")
    return album


def test_a_model_that_is_not_for_photographs_must_be_told_to(
    photographs: Path, capfd: Captured
) -> None:
    before = snapshot(photographs)
    for options in (["--txt"], ["--xmp"], ["--xmp", "--out-dir", "out"]):
        assert run(["caption", "album", *options]) == 2
        err = capfd.readouterr().err
        assert "not made for photographs" in err
        assert "--yes" in err
    assert snapshot(photographs) == before
    assert not Path("out").exists()
    assert run(["caption", "album", "--txt", "--dry-run"]) == 0
    assert run(["caption", "album", "--jsonl"]) == 0, "a record is no sidecar"


def test_what_says_nothing_is_not_written(photographs: Path, capfd: Captured) -> None:
    (photographs / "p3.txt").touch()
    before = snapshot(photographs)
    assert run(["caption", "album", "--jsonl"]) == 0
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    unknown = [r for r in records if r["caption"] == "There is nothing here that I know."]
    assert unknown, "nano recognises nothing in noise"
    assert run(["caption", "album", "--txt", "--xmp", "--yes"]) == 0
    assert f"{len(unknown)} not recognised, nothing written" in capfd.readouterr().err
    for record in unknown:
        name = Path(record["image"]).stem
        assert not (photographs / f"{name}.xmp").exists()
        assert not (photographs / f"{name}.txt").exists() or name == "p3"
    assert len(list(photographs.glob("*.xmp"))) == len(records) - len(unknown)
    assert snapshot(photographs)["p3.txt"] == before["p3.txt"] or len(unknown) < 3
