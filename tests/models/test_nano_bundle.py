"""The shipped nano, through the public API: accurate in its world, with honest figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import edgeprism
from edgeprism import Captioner
from edgeprism.evaluation.questions import QuestionFile
from edgeprism.models import nano
from edgeprism.models.nano.recipe.measure import plain
from edgeprism.models.nano.recipe.world.plain_grammar import scores_to_table
from edgeprism.picture.read import read_picture
from tests.helpers.tiles import picture_to_tiles

NANO = Path(nano.__file__).parent
EXAMPLES = json.loads((NANO / "examples" / "examples.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def captioner() -> edgeprism.Captioner:
    return Captioner.load("nano")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e["image"])
def test_examples_are_described_truly(captioner: Captioner, example: dict[str, str]) -> None:
    assert captioner.caption(NANO / "examples" / example["image"]).text == example["caption"]


@pytest.mark.parametrize("instruction", [None, "What do you see?"])
def test_held_out_plain_scenes_are_described_rightly(instruction: str | None) -> None:
    scenes = plain.heldout_scenes(3, 16)
    table = scores_to_table(plain.score_bundle("nano", scenes, instruction), scenes)
    assert table["objects right (shape and colour)"] >= 0.9
    assert table["relation right"] >= 0.85  # 99.2 % of 500 scenes, see the card


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e["image"])
def test_what_a_focus_asks_for_comes_last(captioner: Captioner, example: dict[str, str]) -> None:
    if "focus" in example:
        image = NANO / "examples" / example["image"]
        assert captioner.caption(image, focus=example["focus"]).text.endswith(example["said"])


@pytest.mark.parametrize(("kind", "focused"), [("colour", True), ("chart", False)])
def test_what_a_question_asks_for_is_in_the_caption(
    captioner: Captioner, kind: str, focused: bool
) -> None:
    """Use the question set's pictures and wordings of focuses, which training never had."""
    file = QuestionFile(NANO / "questions.tsv")
    questions = [question for question in file.questions if question.category == kind][:20]
    hits = []
    for question in questions:
        answer = dict(question.options).get(question.answer, question.answer)
        picture = file.picture_bytes(question.pictures[0])
        text = captioner.caption(picture, focus=question.text if focused else None).text
        hits.append(re.search(rf"\b{answer}\b", text) is not None)
    assert sum(hits) >= 0.8 * len(questions)


def test_its_weights_can_be_trained_further(captioner: Captioner) -> None:
    """The restored weights write the same captions in torch."""
    torch = pytest.importorskip("torch")
    from edgeprism.models.nano.recipe.learn.caption import write_captions
    from edgeprism.models.nano.recipe.learn.restore import bundle_to_model
    from edgeprism.models.nano.recipe.learn.tokenizer import DEFAULT_INSTRUCTION

    model = bundle_to_model(captioner.bundle.path).eval()
    for example in EXAMPLES[:3]:
        path = NANO / "examples" / example["image"]
        tiles = picture_to_tiles(read_picture(path), captioner.bundle.manifest.image)
        pixels = torch.from_numpy(tiles)
        with torch.no_grad():
            expected = model.projector(model.tower(pixels))[0].numpy()
        encoded = np.asarray(captioner.encode(path).visual_tokens)
        # the bundle has 8-bit activations
        assert np.abs(expected - encoded).max() < 0.1 * np.abs(expected).max()
        assert write_captions(model, pixels, [DEFAULT_INSTRUCTION]) == [example["caption"]]


def test_a_photograph_is_not_described(captioner: Captioner) -> None:
    """Noise over a gradient of light is not a drawing."""
    rng = np.random.default_rng(5)
    light = np.linspace(40, 200, 160)[:, None, None] + rng.normal(0, 25, (160, 220, 3))
    text = captioner.caption(np.clip(light, 0, 255).astype(np.uint8)).text
    assert text == "There is nothing here that I know."


def test_the_bundle_is_small() -> None:
    assert sum(f.stat().st_size for f in (NANO / "bundle").iterdir()) <= 24e6


def test_evaluate_prints_and_writes_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    assert plain.main(["--scenes", "4", "--json", str(out)]) == 0
    assert "captions without any mistake" in capsys.readouterr().out
    assert json.loads(out.read_text(encoding="utf-8"))["scenes"] == 4
