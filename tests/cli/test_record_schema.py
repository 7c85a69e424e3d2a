"""record.schema.json, which ships with the package, is what the commands print."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgeprism import Captioner
from edgeprism.cli.main import run

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    text = files("edgeprism").joinpath("record.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def check(schema: dict[str, Any], record: object, kind: str) -> None:
    jsonschema.validate(record, {**schema, "anyOf": [{"$ref": f"#/$defs/{kind}"}]})
    jsonschema.validate(record, schema)


def test_captions(schema: dict[str, Any], scripted_bundle: Path, photo: Path,
                  tmp_path: Path, capfd: Captured) -> None:  # fmt: skip
    (tmp_path / "broken.png").write_bytes(b"no picture")
    model = ["-m", str(scripted_bundle)]
    for extra in (["--json"], ["--jsonl"], ["--jsonl", "--max-tokens", "2"]):
        assert run(["caption", str(photo), *model, *extra]) == 0
        record = json.loads(capfd.readouterr().out)
        check(schema, record, "caption")
        assert record["image_size"] == [30, 20]  # the picture is 30 wide and 20 high
    failed = tmp_path / "failed.jsonl"
    for _ in range(2):  # the second time from the store
        command = ["caption", str(photo), str(tmp_path / "broken.png"), *model, "--jsonl"]
        assert run([*command, "--errors", str(failed)]) == 3
        check(schema, json.loads(capfd.readouterr().out), "caption")
        check(schema, json.loads(failed.read_text()), "failure")
    assert run(["caption", str(photo), str(photo), *model, "--json"]) == 0
    jsonschema.validate(json.loads(capfd.readouterr().out), schema)


def test_answers(
    schema: dict[str, Any], scripted_bundle: Path, scripted_gguf: Path, photo: Path, capfd: Captured
) -> None:
    ask = ["ask", str(photo), "What?", "-m", str(scripted_bundle), "--reasoner", str(scripted_gguf)]
    assert run([*ask, "--json"]) == 0
    check(schema, json.loads(capfd.readouterr().out), "answer")


def test_records_of_python(
    schema: dict[str, Any], scripted_captioner: Captioner, photo: Path
) -> None:
    record = scripted_captioner.caption(photo).to_dict()
    check(schema, record, "caption")
    for fault in ({"image_size": [1]}, {"caption": None}, {"extra": 1}, {"schema": 2}):
        with pytest.raises(jsonschema.ValidationError):
            check(schema, {**record, **fault}, "caption")
