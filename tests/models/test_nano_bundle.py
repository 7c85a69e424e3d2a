"""The shipped nano, through the public API: right about its world, and honest figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgeprism
from edgeprism import Captioner
from edgeprism.models.nano import evaluate
from edgeprism.models.nano.data import heldout_scenes
from edgeprism.models.nano.grammar import scores_to_table

NANO = Path(evaluate.__file__).parent
EXAMPLES = json.loads((NANO / "examples" / "examples.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def captioner() -> edgeprism.Captioner:
    return Captioner.load("nano")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e["image"])
def test_examples_are_described_truly(captioner: Captioner, example: dict[str, str]) -> None:
    assert captioner.caption(NANO / "examples" / example["image"]).text == example["caption"]


@pytest.mark.parametrize("instruction", [None, "What do you see?", "Wo ist der grüne Kreis?"])
def test_held_out_scenes_are_described_rightly_whatever_is_asked(instruction: str | None) -> None:
    scenes = heldout_scenes(3, 16)
    table = scores_to_table(evaluate.score_bundle("nano", scenes, instruction), scenes)
    assert table["objects right (shape and colour)"] >= 0.85
    assert table["relation right"] >= 0.8


def test_the_bundle_is_small() -> None:
    assert sum(f.stat().st_size for f in (NANO / "bundle").iterdir()) <= 12e6


def test_evaluate_prints_and_writes_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    assert evaluate.main(["--scenes", "4", "--json", str(out)]) == 0
    assert "captions without any mistake" in capsys.readouterr().out
    assert json.loads(out.read_text(encoding="utf-8"))["scenes"] == 4
