"""`-` stands wherever a picture may, and an address is told as what it is."""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
from pathlib import Path

import pytest

from edgeprism import Captioner
from edgeprism.cli.main import run
from edgeprism.errors import ImageError
from tests.helpers import bundles

Captured = pytest.CaptureFixture[str]
SAID = bundles.SAID_TEXT


class Piped(io.TextIOWrapper):
    """Standard input as a pipe."""


@pytest.fixture
def model(scripted_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPRISM_MODEL", str(scripted_bundle))
    return scripted_bundle


@pytest.fixture
def piped(photo: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Another picture on standard input; temporary files go where the test can count them."""
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (33, 22), "green").save(data, "PNG")
    monkeypatch.setattr(sys, "stdin", Piped(io.BytesIO(data.getvalue())))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return temporary


@pytest.mark.parametrize("extra", [[], ["--no-cache"]])
@pytest.mark.usefixtures("piped")
def test_a_table(extra: list[str], capfd: Captured) -> None:
    assert run(["caption", "-", "--csv", *extra]) == 0
    header, row = csv.reader(capfd.readouterr().out.splitlines())
    record = dict(zip(header, row, strict=True))
    assert (record["image"], record["caption"]) == ("<stdin>", SAID)


def test_among_others_in_order(piped: Path, photo: Path, capfd: Captured) -> None:
    assert run(["caption", str(photo), "-", "--jsonl"]) == 0
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [record["image"] for record in records] == [str(photo), "<stdin>"]
    assert [record["image_size"] for record in records] == [[30, 20], [33, 22]]
    assert list(piped.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("o.jsonl", lambda text: json.loads(text)["image"]),
        ("o.NDJSON", lambda text: json.loads(text)["image"]),
        ("o.json", lambda text: json.loads(text)[0]["image"]),
        ("o.csv", lambda text: next(csv.DictReader(text.splitlines()))["image"]),
        ("o.txt", lambda text: text.partition(": ")[0]),
        ("o", lambda text: text.partition(": ")[0]),
    ],
)
def test_a_file_whose_suffix_decides_the_form(
    piped: Path, tmp_path: Path, name: str, read: object, capfd: Captured
) -> None:
    assert run(["caption", "-", "-o", str(tmp_path / name)]) == 0
    assert capfd.readouterr().out == ""
    assert callable(read)
    assert read((tmp_path / name).read_text()) == "<stdin>"


@pytest.mark.usefixtures("piped")
def test_an_option_decides_before_the_suffix(tmp_path: Path) -> None:
    assert run(["caption", "-", "--csv", "-o", str(tmp_path / "o.jsonl")]) == 0
    assert (tmp_path / "o.jsonl").read_text().startswith("image,caption,")


@pytest.mark.parametrize("option", ["--txt", "--xmp"])
@pytest.mark.usefixtures("piped")
def test_no_place_for_a_sidecar(option: str, photo: Path, capfd: Captured) -> None:
    for pictures in (["-"], [str(photo), "-"]):
        assert run(["caption", *pictures, option]) == 2
        assert "no place for a .txt or .xmp" in capfd.readouterr().err
    assert [p.name for p in photo.parent.iterdir() if p.suffix in (".txt", ".xmp")] == []


@pytest.mark.usefixtures("piped")
def test_a_question(model: Path, photo: Path, capfd: Captured) -> None:
    ask = ["--reasoner", str(model / "lm.gguf"), "--instruction-mode", "generic", "--json"]
    assert run(["ask", str(photo), "-", "What?", *ask]) == 0
    captions = json.loads(capfd.readouterr().out)["captions"]
    assert [caption["image_size"] for caption in captions] == [[30, 20], [33, 22]]


@pytest.mark.usefixtures("piped")
def test_what_it_costs(capfd: Captured, model: Path) -> None:
    assert run(["models", "show", str(model), "--image", "-", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["size"] == [33, 22]


@pytest.mark.parametrize("command", [["caption"], ["caption", "--csv"], ["caption", "--together"]])
@pytest.mark.usefixtures("piped")
def test_only_one_picture(command: list[str], capfd: Captured) -> None:
    assert run([*command, "-", "-"]) == 2
    assert "only one picture" in capfd.readouterr().err
    assert run(["ask", "-", "-", "What?"]) == 2
    assert "only one picture" in capfd.readouterr().err


@pytest.mark.usefixtures("piped")
def test_a_chat_reads_its_questions_there(capfd: Captured) -> None:
    assert run(["chat", "-"]) == 2
    assert "holds the questions" in capfd.readouterr().err


# ---- addresses

ADDRESSES = [
    ("https://example.org/a.jpg", "curl -sL 'https://example.org/a.jpg'"),
    ("http://127.0.0.1:1/a.png?x=1", "curl -sL 'http://127.0.0.1:1/a.png?x=1'"),
    ("HTTPS://example.org/a.jpg", "curl -sL 'https://example.org/a.jpg'"),
    ("ftp://example.org/a.jpg", "curl -sL 'ftp://example.org/a.jpg'"),
    ("s3://bucket/a.jpg", "'s3://bucket/a.jpg'"),
    ("file:///tmp/a%20b.jpg", "Give the path: /tmp/a b.jpg"),
    ("data:image/png;base64,iVBORw0KGgo=", "edgeprism caption -"),
]


@pytest.mark.parametrize(("address", "way_out"), ADDRESSES)
@pytest.mark.usefixtures("model")
def test_an_address_is_no_missing_file(
    address: str, way_out: str, photo: Path, capfd: Captured, model: Path
) -> None:
    for pictures in ([address], [str(photo), address]):
        assert run(["caption", *pictures]) in (1, 3)
        err = capfd.readouterr().err
        assert way_out in err
        assert "no such file" not in err
    with Captioner.load(model) as captioner:
        for source in (address, Path(address)):
            with pytest.raises(ImageError) as caught:
                captioner.caption(source)
            assert way_out in caught.value.hint


def test_what_only_looks_like_an_address(model: Path, capfd: Captured) -> None:
    for name in ("a:b.jpg", "c:/photos/a.jpg", "x.jpg", "http.jpg"):
        assert run(["caption", name]) == 1
        assert "no such file" in capfd.readouterr().err
