"""A reasoner's server that answers badly: its questions failed, they were not answered wrongly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprism.evaluation.evaluate import JSON, PAGE, evaluate
from edgeprism.evaluation.matrix import Matrix, Settings
from edgeprism.evaluation.questions import QuestionFile
from edgeprism.perceive.captioner import Captioner
from edgeprism.reason.remote import RemoteReasoner
from tests.helpers.eval_files import WriteTsv, lettered
from tests.helpers.rude_server import RudeServer, http, reply, said

BAD = {
    "thinking": said("", "length", reasoning_content="Let me see. It may be A or B."),
    "nothing": said(""),
    "cut the prompt": reply({"message": {"content": "A"}, "finish_reason": "stop"},
                            prompt_tokens=3),
    "model crashed": http({"error": {"message": "model crashed", "code": 400}}),
    "declined": said(None, refusal="I cannot say."),
}  # fmt: skip


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[RudeServer]:
    it = RudeServer(BAD[request.param])
    yield it
    it.close()


@pytest.mark.parametrize(("server", "words"), [(n, n) for n in BAD], indirect=["server"])
def test_bad_answers_are_failures(
    server: RudeServer, words: str, write_tsv: WriteTsv, random_bundle: Path, tmp_path: Path
) -> None:
    reasoner = RemoteReasoner.load(server.url, "it", timeout_s=5, pause_s=0.01)
    captioner = Captioner.load(random_bundle, threads=1)
    settings = Settings(caption_tokens=6, answer_tokens=6)
    matrix = Matrix([captioner], [reasoner], ["generic"], settings)
    questions = QuestionFile(write_tsv([lettered(0), lettered(1)]))
    report = evaluate(questions, matrix, tmp_path / "out")
    cells = [cell for cell in report["cells"] if cell["reasoner"]]
    assert cells
    assert [(cell["scored"], cell["failed"]) for cell in cells] == [(0, 2)] * len(cells)
    assert {failure["index"] for failure in report["failures"]} == {"0", "1"}
    assert all(words in failure["error"] for failure in report["failures"])
    written = json.loads((tmp_path / "out" / JSON).read_text(encoding="utf-8"))
    assert [cell["accuracy"] for cell in written["cells"] if cell["reasoner"]] == [None] * len(
        cells
    )
    assert words in (tmp_path / "out" / PAGE).read_text(encoding="utf-8")


def test_a_judge_that_only_thinks_condemns_nobody(
    write_tsv: WriteTsv, random_bundle: Path, tmp_path: Path
) -> None:
    words = {"message": {"content": "something that no rule can match"}}
    answering = RudeServer(reply(words, prompt_tokens=900))
    judging = RudeServer(BAD["thinking"])
    reasoner = RemoteReasoner.load(answering.url, "it", timeout_s=5, pause_s=0.01)
    judge = RemoteReasoner.load(judging.url, "judge", timeout_s=5, pause_s=0.01)
    captioner = Captioner.load(random_bundle, threads=1)
    matrix = Matrix([captioner], [reasoner], ["generic"], Settings(caption_tokens=6))
    questions = QuestionFile(write_tsv([lettered(0), lettered(1)]))
    report = evaluate(questions, matrix, tmp_path / "out", judge=judge)
    for cell in report["cells"]:
        if cell["reasoner"]:
            assert (cell["scored"], cell["failed"]) == (0, 2)
    assert all("the judge failed" in failure["error"] for failure in report["failures"])
    answering.close()
    judging.close()
