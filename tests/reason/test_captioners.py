"""Captions of several captioners: the prompt names each, or the reasoner merges them first."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from edgeprism.cli.main import run
from edgeprism.errors import UsageError
from edgeprism.language.chat import Message
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.read import ImageSource
from edgeprism.prism import Prism
from edgeprism.reason.base import BaseReasoner, Completion
from edgeprism.reason.shape import Shape
from edgeprism.records import ModelInfo, Timings, TokenCounts
from tests.helpers import bundles

OTHER = bundles.piece_ids("▁two", "▁white", "▁bird", "▁near", "▁it", bundles.IM_END)
OTHER_TEXT = "two white bird near it"
MERGED = "a red dog and two birds"


class Scripted(BaseReasoner):
    """Gives prepared replies in order, and records its prompts."""

    name = "scripted"
    model = ModelInfo("scripted", "")

    def __init__(self, *replies: tuple[str, str]) -> None:
        self.replies, self.prompts = list(replies), list[str]()

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int, shape: Shape | None = None
    ) -> Completion:
        self.prompts.append(messages[-1].content)
        text, finish_reason = self.replies.pop(0)
        return Completion(text, finish_reason, TokenCounts(0, 5, 2), Timings())

    def cancel(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    return bundles.write_bundle(folder, script=OTHER, name="other")


@pytest.fixture
def two(scripted_bundle: Path, other_bundle: Path) -> Iterator[list[Captioner]]:
    captioners = [Captioner.load(path, threads=1) for path in (scripted_bundle, other_bundle)]
    yield captioners
    for captioner in captioners:
        captioner.close()


def test_side_by_side_under_their_names(two: list[Captioner], photo: Path) -> None:
    reasoner = Scripted(("a dog", "stop"))
    pictures: list[ImageSource] = [
        photo,
        io.BytesIO(photo.read_bytes()),
    ]  # the second can be read only once
    answer = Prism(two, reasoner).ask(pictures, "What?", instruction_mode="generic")
    named = [(caption.model.name, caption.text) for caption in answer.captions]
    assert named == [("tiny", bundles.SAID_TEXT)] * 2 + [("other", OTHER_TEXT)] * 2
    assert len({caption.image_sha256 for caption in answer.captions}) == 1
    (prompt,) = reasoner.prompts
    for number in (1, 2):
        assert f"picture {number} by tiny:\n{bundles.SAID_TEXT}\n" in prompt
        assert f"picture {number} by other:\n{OTHER_TEXT}\n" in prompt


def test_merged_first(two: list[Captioner], photo: Path) -> None:
    reasoner = Scripted((MERGED, "stop"), ("one dog", "stop"), ("a dog", "stop"))
    pictures = [photo, photo]
    answer = Prism(two, reasoner).ask(pictures, "What?", instruction_mode="generic", merge=True)
    merging, _, prompt = reasoner.prompts
    assert bundles.SAID_TEXT in merging
    assert OTHER_TEXT in merging
    assert "What?" not in merging  # a description, not an answer
    assert f"picture 1:\n{MERGED}\n" in prompt
    assert "picture 2:\none dog\n" in prompt
    assert OTHER_TEXT not in prompt
    first, second = answer.captions
    assert (first.text, second.text) == (MERGED, "one dog")
    assert (first.model, first.image) == (reasoner.model, str(photo))
    assert first.notes[-2:] == (
        f"merged from tiny: {bundles.SAID_TEXT}", f"merged from other: {OTHER_TEXT}",
    )  # fmt: skip
    assert answer.notes == ("the captions of tiny and other were merged by scripted",)


@pytest.mark.parametrize("reply", [("", "stop"), ("a red dog and two", "length")])
def test_what_cannot_be_merged_stays_side_by_side(
    two: list[Captioner], photo: Path, reply: tuple[str, str]
) -> None:
    reasoner = Scripted((MERGED, "stop"), reply, ("a dog", "stop"))
    pictures = [photo, photo]
    answer = Prism(two, reasoner).ask(pictures, "What?", instruction_mode="generic", merge=True)
    assert [caption.text for caption in answer.captions].count(OTHER_TEXT) == 2
    assert f"picture 2 by other:\n{OTHER_TEXT}\n" in reasoner.prompts[-1]
    assert MERGED not in reasoner.prompts[-1]
    assert len(answer.notes) == 1
    assert "were not merged" in answer.notes[0]


def test_one_captioner_has_nothing_to_merge(two: list[Captioner], photo: Path) -> None:
    reasoner = Scripted(("a dog", "stop"))
    answer = Prism(two[0], reasoner).ask(photo, "What?", instruction_mode="generic", merge=True)
    assert (len(reasoner.prompts), answer.notes) == (1, ())


def test_no_captioner_and_one_twice(
    two: list[Captioner], photo: Path, scripted_bundle: Path
) -> None:
    with pytest.raises(UsageError, match="No captioner"):
        Prism([], Scripted())
    again = Captioner.load(scripted_bundle, threads=1)
    with pytest.raises(UsageError, match="named twice"):
        Prism([two[0], again], Scripted()).ask(photo, "What?", instruction_mode="generic")
    again.close()


def test_ask(
    scripted_bundle: Path, other_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ask", str(photo), "What is there?", "--captioner", str(scripted_bundle),
             "--captioner", str(other_bundle), "--reasoner", str(scripted_bundle / "lm.gguf"),
             "--instruction-mode", "generic"]  # fmt: skip
    assert run([*arguments, "--show-captions"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{photo} by tiny: {bundles.SAID_TEXT}",
        f"{photo} by other: {OTHER_TEXT}",
        "evidence: none; the description does not say",
        bundles.SAID_TEXT,
    ]
    assert run([*arguments, "--merge-captions", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    (caption,) = record["captions"]
    assert caption["model"]["name"] == "lm"
    assert f"merged from other: {OTHER_TEXT}" in caption["notes"]
    assert record["notes"] == ["the captions of tiny and other were merged by lm"]
