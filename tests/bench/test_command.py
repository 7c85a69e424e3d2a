"""`edgeprism bench` as a user runs it. No test asserts a time."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgeprism.bench.page import to_page
from edgeprism.bench.report import read_report
from edgeprism.bench.run import disturbances, notes_of_cold_starts
from edgeprism.bench.table import facts
from edgeprism.cli.main import run
from tests.helpers.silence import __file__ as silence

linux = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
STAGES = ["load", "decode_image", "preprocess", "encode", "prefill", "decode"]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    text = files("edgeprism.bench").joinpath("bench.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@linux
def test_a_run(
    schema: dict[str, Any], scripted_bundle: Path, scripted_gguf: Path, photo: Path, tmp_path: Path
) -> None:
    """Under a filter of the kernel that ends every process which opens a network socket."""
    out = tmp_path / "one.json"
    command = ["bench", "-m", str(scripted_bundle), "--reasoner", str(scripted_gguf), "--image",
               str(photo), "--runs", "2", "--json", str(out), "--device", "cpu"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(silence), "--", sys.executable, "-m", "edgeprism", *command],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "of the machine" in done.stdout
    record = json.loads(out.read_text(encoding="utf-8"))
    jsonschema.validate(record, schema, format_checker=jsonschema.FormatChecker())
    check_figures(record)
    assert record["tokens"]["generated"] == 8  # what the script says, and its end
    assert record["model"]["device"] == "cpu"
    check_page_and_comparison(out, tmp_path)
    settings = dataclasses.replace(read_report(out).settings, runs=1)
    model = dataclasses.replace(read_report(out).model, threads=1)
    first, *_ = facts(dataclasses.replace(read_report(out), settings=settings, model=model))
    assert first.startswith("1 run; ")
    assert first.endswith(", 1 thread")


def check_figures(record: dict[str, Any]) -> None:
    """The stages are there, their values agree with each other, and floors where they are known."""
    by_name = {(s["group"], s["name"]): s for s in record["stages"]}
    assert len(by_name) == len(record["stages"])
    for stage in record["stages"]:
        assert stage["min"] == min(stage["values"]) <= stage["median"] <= max(stage["values"])
        assert stage["max"] == max(stage["values"])
        assert stage["min"] <= stage["p95"] <= stage["max"]
        assert stage["name"] == "rest" or stage["min"] >= 0
    for group, parts in (("cold", ["start", *STAGES, "rest"]), ("warm", [*STAGES[1:], "rest"])):
        for number, whole in enumerate(by_name[group, "whole"]["values"]):
            parts_ms = [by_name[group, part]["values"][number] for part in parts]
            assert sum(parts_ms) == pytest.approx(whole)
            assert parts_ms[-1] > -0.1 * whole  # no time is counted twice
            assert all(value <= whole for value in parts_ms)
    assert len(by_name["warm", "whole"]["values"]) == 2
    first, whole = by_name["warm", "first_text"], by_name["warm", "whole"]
    assert all(a < b for a, b in zip(first["values"], whole["values"], strict=True))
    assert {name for group, name in by_name if group == "reasoner"} == {
        "load", "focus", "answer", "evidence",
    }  # fmt: skip
    assert 4 <= record["settings"]["folder_pictures"] <= 200
    assert by_name["folder", "throughput"]["unit"] == "pictures/s"
    floors = {key for key, stage in by_name.items() if stage["floor"]}
    assert floors >= {("warm", name) for name in ("encode", "prefill", "decode", "whole")}
    assert floors.isdisjoint({("cold", "start"), ("cold", "load"), ("reasoner", "answer")})
    memory = record["memory"]
    assert memory["imports"] <= memory["encoded"] <= memory["captioned"]
    energy = record["energy"]
    assert (energy["joules_per_caption"] is None) == bool(energy["reason"])


class Page(html.parser.HTMLParser):
    """Collects what a page would load, and the titles of its marks."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.marks = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href")]
        self.loads += [tag] if tag in ("script", "link", "iframe") else []
        self.marks += tag == "rect"


def check_page_and_comparison(one: Path, tmp_path: Path) -> None:
    report = read_report(one)
    two = tmp_path / "two <b>.json"
    changed = report.to_dict()
    changed["conditions"]["disturbed"] = ["a test"]
    changed["stages"] = [s for s in changed["stages"] if s["group"] != "folder"]
    two.write_text(json.dumps(changed))
    page = tmp_path / "page.html"
    arguments = ["bench", "--no-run", "--compare", str(one), "--compare", str(two)]
    assert run([*arguments, "--html", str(page)]) == 0
    assert run([*arguments, "--html", str(page)]) == 0  # a page of its own is replaced
    seen = Page(page.read_text(encoding="utf-8"))
    assert seen.loads == []
    assert seen.marks == len(report.stages) + len(changed["stages"])
    assert "two <b>" not in page.read_text(encoding="utf-8")
    assert "two &lt;b&gt;" in page.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in to_page([report], ["one"])


# ---- what disturbs


def test_what_disturbs_is_said() -> None:
    assert disturbances(0.1, 0.1, 0) == []
    assert disturbances(None, None, None) == []
    assert disturbances(0.0, 1.3, 0) == ["other programs kept 1.3 cores busy during the run"]
    assert "4 times because of heat" in disturbances(0.0, 0.0, 4)[0]


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--no-run"], "--compare"),
        (["--no-run", "--compare", "a.json", "--json", "b.json"], "--json"),
        (["--compare", "none.json"], "none.json"),
        (["--reasoner", "http://127.0.0.1:1/v1"], "server"),
        (["--reasoner", "no-such-one"], "no-such-one"),
        (["--model", "no-such-model", "--no-reasoner"], "no-such-model"),
        (["--image", "none.png", "--no-reasoner"], "none.png"),
    ],
)
def test_mistakes(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are told before anything is measured."""
    monkeypatch.chdir(tmp_path)
    assert run(["bench", *arguments]) not in (0, 3)
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_files_of_others_are_kept(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.write_text("my own words")
    for target in (mine, tmp_path / "no-folder" / "file"):
        assert run(["bench", option, str(target)]) == 2
        assert str(target) in capsys.readouterr().err
    assert mine.read_text() == "my own words"


def test_a_run_says_that_modules_are_compiled_each_time(tmp_path: Path) -> None:
    compiled = tmp_path / "run.cpython-311.pyc"
    assert "PYTHONDONTWRITEBYTECODE" in notes_of_cold_starts(str(compiled))[0]
    compiled.write_bytes(b"")
    assert notes_of_cold_starts(str(compiled)) == []
