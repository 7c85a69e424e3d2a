"""Texts that repeat themselves: ended, told, and never taken for a caption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeprism.cli.main import run
from edgeprism.errors import EdgePrismError
from edgeprism.language.chat import Message
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Request, Sampling
from edgeprism.perceive.captioner import Captioner
from edgeprism.reason.json_schema import schema_to_shape
from edgeprism.reason.local import Reasoner
from edgeprism.store.caption_store import CaptionStore, default_path
from tests.helpers import bundles

# Each piece leads to the next, and the last to the first: the text never ends by itself.
CIRCLE = bundles.piece_ids("▁a", "▁red", "▁dog", "▁a")
ROUND = "a red dog"


@pytest.fixture(scope="module")
def circling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that says "a red dog a red dog …" of every picture, up to any limit."""
    folder = tmp_path_factory.mktemp("circling")
    return bundles.write_bundle(folder, script=CIRCLE)


@pytest.fixture
def reasoner(circling: Path) -> Iterator[Reasoner]:
    it = Reasoner.load(circling / "lm.gguf", threads=1)
    yield it
    it.close()


def test_a_reasoner_that_goes_in_circles_is_ended(reasoner: Reasoner) -> None:
    answer = reasoner.answer([], "What?", answer_tokens=1000)
    assert answer.finish_reason == "repetition"
    assert answer.tokens.generated < 200
    assert answer.text.startswith(f"{ROUND} {ROUND}")
    assert any("repeats itself" in note for note in answer.notes)
    assert answer.to_dict()["finish_reason"] == "repetition"


def test_a_short_limit_tells_circles_from_a_long_text(reasoner: Reasoner) -> None:
    assert reasoner.answer([], "What?", answer_tokens=60).finish_reason == "repetition"
    assert reasoner.answer([], "What?", answer_tokens=8).finish_reason == "length"


def test_several_at_once_and_streams(circling: Path, photo: Path) -> None:
    with Captioner.load(circling, threads=1) as captioner:
        stream = captioner.stream(photo, caption_tokens=1000)
        text = "".join(stream)
        assert stream.caption.text == text
        assert stream.caption.finish_reason == "repetition"
        assert any("repeats itself" in note for note in stream.caption.notes)
        lm = captioner.engines.lm()
        generator = Generator(lm, parallel=2)
        request = Request(([1, bundles.LINE_FEED],), Sampling(max_tokens=600))
        done = [e for e in generator.run([request] * 3) if isinstance(e, Finished)]
        assert [each.finish_reason for each in done] == ["repetition"] * 3
        free = Sampling(max_tokens=300, stop_at_end=False)  # for comparisons of two models
        (compared,) = [
            e for e in generator.run([Request(([1, bundles.LINE_FEED],), free)])
            if isinstance(e, Finished)
        ]  # fmt: skip
        assert (len(compared.ids), compared.finish_reason) == (300, "length")
        generator.close()


def test_what_a_grammar_demands_may_repeat_itself(reasoner: Reasoner) -> None:
    schema = {"type": "array", "items": {"type": "null"}, "minItems": 90, "maxItems": 90}
    answer = reasoner.answer([], "What?", shape=schema_to_shape(schema), answer_tokens=900)
    assert answer.finish_reason == "stop"
    assert json.loads(answer.text) == [None] * 90


# ---- texts that only look like it

TRUE_TEXTS = {
    "fruit": "one apple, one pear, " * 5 + "one plum, one fig, " * 5 + "two grapes",
    "a list": "".join(f"- a {colour} boat on the sea\n" for colour in
                      ("red", "green", "blue", "white", "black", "old", "small", "large") * 3),
    "a numbered list": "".join(f"{i}. a red boat\n" for i in range(1, 60)),
    "a table": "".join(f"| {i} | {i * i} | {i * 7 % 10} |\n" for i in range(1, 60)),
    "a unit matrix": "".join(
        " ".join("1" if i == j else "0" for j in range(12)) + "\n" for i in range(12)
    ),
    "zeros": "0, " * 100,
    "a rule": "-" * 120 + "\nand " + "=" * 120,
    "laughter": "ha" * 40,
    "four alike": "a red boat near the old house on the hill, " * 4,
}  # fmt: skip


def test_lists_and_tables_are_left_alone(scripted_lm: LanguageModel) -> None:
    from edgeprism.language.repetition import repeats_for_good

    def has_letters(ids: Any) -> bool:
        return any(
            map(str.isalpha, b"".join(map(scripted_lm.vocabulary.token_to_bytes, ids)).decode())
        )

    for name, text in TRUE_TEXTS.items():
        ids = scripted_lm.vocabulary.tokenize(text)
        ended = [n for n in range(1, len(ids) + 1) if repeats_for_good(ids[:n], has_letters)]
        assert ended == [], name
    for unit, times in (("a red dog ", 60), ("a boat on the sea. It is red. ", 30), ("!", 900)):
        ids = scripted_lm.vocabulary.tokenize(unit * times)
        assert any(repeats_for_good(ids[:n], has_letters) for n in range(1, len(ids) + 1)), unit


# ---- what becomes of it


def test_it_is_told_and_not_stored(
    circling: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["caption", str(photo), "--model", str(circling), "--max-tokens", "400"]
    assert run(command) == 0
    assert "repeats itself" in capsys.readouterr().err
    assert run([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["finish_reason"] == "repetition"
    assert any("repeats itself" in note for note in record["notes"])


def test_an_answer_tells_that_a_caption_repeats_itself(
    circling: Path, scripted_gguf: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ask", str(photo), "What?", "--captioner", str(circling), "--max-tokens", "300",
               "--reasoner", str(scripted_gguf), "--instruction-mode", "generic"]  # fmt: skip
    assert run(command) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{bundles.SAID_TEXT}\n"
    assert "photo.png: the text repeats itself" in printed.err
    with CaptionStore(default_path()) as store:
        assert list(store.records()) == []


def test_a_folder_counts_it_as_failed(
    circling: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):  # the same picture three times: twins
        shutil.copy(photo, folder / name)
    command = ["caption", str(folder), "--model", str(circling), "--max-tokens", "300", "--txt"]
    for _ in range(2):  # the second run finds no caption in the store
        assert run(command) != 0
        printed = capsys.readouterr()
        assert "repeats itself" in printed.err
        assert all(str(folder / name) in printed.err for name in ("a.png", "b.png", "c.png"))
        assert list(folder.glob("*.txt")) == []


def test_circling_thoughts_are_no_answer(circling: Path) -> None:
    class Thinker(Reasoner):
        def complete(self, messages: Any, *, max_tokens: int, shape: Any = None) -> Any:
            reply = super().complete(messages, max_tokens=max_tokens, shape=shape)
            import dataclasses

            return dataclasses.replace(reply, text="", thinking=reply.text)

    thinker = Thinker(circling / "lm.gguf", "thinker", threads=1)
    with pytest.raises(EdgePrismError, match="in circles"):
        thinker.answer([], "What?", answer_tokens=400)
    assert thinker.complete([Message("user", "?")], max_tokens=9).finish_reason == "length"
    thinker.close()
