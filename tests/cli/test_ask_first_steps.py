"""`ask` and `chat` as newcomers use them: mistakes told before any work, one way of looking."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgeprism.cli.main import run
from edgeprism.files.safe_text import printable
from edgeprism.language.model import LanguageModel
from edgeprism.perceive.captioner import Captioner
from edgeprism.vision.onnx import VisionEncoder
from tests.helpers.bundles import SAID_TEXT
from tests.helpers.calls import count_calls

QUESTION = "Is the red boat near the house?"


@pytest.fixture
def ask(random_bundle: Path, scripted_gguf: Path) -> Any:
    def asked(*arguments: str) -> int:
        return run(["ask", *arguments, "--captioner", str(random_bundle),
                    "--reasoner", str(scripted_gguf)])  # fmt: skip

    return asked


def test_pictures_are_checked_before_a_model_loads(
    ask: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(LanguageModel, "__init__", load)
    for picture, words in (
        (tmp_path / "gone.png", "no such file"),
        (tmp_path, "is a directory"),
        (Path("/dev/null"), "not a regular file"),
    ):
        assert ask(str(photo), str(picture), QUESTION) == 1
        printed = capsys.readouterr()
        assert f"{picture}: " in printed.err
        assert words in printed.err


def test_question_and_picture_swapped_are_recognised(ask: Any, photo: Path, capsys: Any) -> None:
    assert ask("What is there?", str(photo)) == 2
    printed = capsys.readouterr().err
    assert "'What is there?' is no picture" in printed
    assert f"edgeprism ask {photo} 'What is there?'" in printed
    assert ask(str(photo), str(photo)) == 2
    assert "There is no question" in capsys.readouterr().err


@pytest.mark.parametrize("length", [256, 5000, 100_000])
def test_a_long_question_is_no_path(ask: Any, photo: Path, capsys: Any, length: int) -> None:
    question = "What is on the left, and what is behind it? ".ljust(length - 1, "x") + "?"
    assert ask(str(photo), question, "--instruction-mode", "generic", "--no-cache") != 2
    assert "name too long" not in capsys.readouterr().err
    assert ask(question, str(photo)) == 2  # swapped
    assert "is no picture" in capsys.readouterr().err


@pytest.mark.parametrize("address", [
    "https://example.org/x.jpg", "file:///tmp/x.jpg", "data:image/png;base64," + "A" * 9000,
])  # fmt: skip
def test_an_address_is_told_as_caption_tells_it(ask: Any, address: str, capsys: Any) -> None:
    assert ask(address, QUESTION) == 1
    told = capsys.readouterr().err
    assert "no such file" not in told
    assert run(["caption", address, "--model", "nano"]) == 1
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(("given", "words"), [
    ('{"type": "object"}', "takes a file, not the schema"),
    ("photo", "not a text in UTF-8"),
    ("gone.json", "gone.json: cannot be read: No such file"),
    (".", "cannot be read: Is a directory"),
])  # fmt: skip
def test_what_is_no_file_with_a_schema(
    ask: Any, photo: Path, given: str, words: str, capsys: Any
) -> None:
    given = str(photo) if given == "photo" else given
    assert ask(str(photo), QUESTION, "--schema", given) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert "Errno" not in printed
    assert "codec" not in printed


@pytest.mark.parametrize(("name", "hint"), [
    ("smolm2", "smollm2-135m"),
    ("SmolLM2-135M", "Did you mean smollm2-135m"),
    ("smollm2-135m", "edgeprism pull smollm2-135m"),
    ("127.0.0.1:9", "http://127.0.0.1:9/v1"),
    ("localhost:8080/v1", "http://localhost:8080/v1"),
])  # fmt: skip
def test_a_reasoner_that_is_none(photo: Path, name: str, hint: str, capsys: Any) -> None:
    assert run(["ask", str(photo), QUESTION, "--reasoner", name]) == 4
    assert hint in capsys.readouterr().err


def test_the_total_covers_focus_captions_and_loading(ask: Any, photo: Path, capsys: Any) -> None:
    began = time.perf_counter()
    assert ask(str(photo), QUESTION, "--json", "--no-cache") == 0
    took = (time.perf_counter() - began) * 1000
    record = json.loads(capsys.readouterr().out)
    times, caption = record["timings_ms"], record["captions"][0]["timings_ms"]
    assert times["load"] > 0  # the reasoner loaded for the focus, before it answered
    assert caption["total"] + times["load"] + times["prefill"] < times["total"] <= took


# ---- chat


def test_a_chat_looks_for_what_a_question_needs(
    chat: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    looks = count_calls(monkeypatch, VisionEncoder, "encode")
    instructions: list[str] = []
    start = Captioner.start

    def noted(self: Captioner, image: Any, plan: Any) -> Any:
        instructions.append(plan.instruction)
        return start(self, image, plan)

    monkeypatch.setattr(Captioner, "start", noted)
    assert chat(f"{QUESTION}\n{QUESTION}\nWhat is there?\n") == 0
    assert capsys.readouterr().out == f"{SAID_TEXT}\n" * 3
    assert len(instructions) == 2  # the general one, and that of the first two questions
    assert "Attend to: " in instructions[1]
    assert len(looks) == 2
    del instructions[:]
    assert chat(f"{QUESTION}\n", "--instruction-mode", "generic", "--no-cache") == 0
    assert chat(f"{QUESTION}\n", "--focus", "the sky", "--no-cache") == 0
    assert len(instructions) == 2
    assert [each.partition("Attend to: ")[2] for each in instructions] == ["", "the sky."]


def test_it_asks_with_the_focus_that_ask_draws(
    chat: Any, ask: Any, photo: Path, capsys: Any
) -> None:
    assert ask(str(photo), QUESTION, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert chat(f"{QUESTION}\n/captions\n") == 0
    assert printable(record["captions"][0]["caption"]) in capsys.readouterr().out


@pytest.mark.parametrize("word", ["/quit", "/exit", "exit", "quit", "EXIT"])
def test_words_that_end_a_chat(chat: Any, capsys: Any, word: str) -> None:
    assert chat(f"What is there?\n{word}\nWhat is there?\n") == 0
    assert capsys.readouterr().out == f"{SAID_TEXT}\n"


def test_help_and_captions(chat: Any, photo: Path, capsys: Any) -> None:
    assert chat("/help\n/focus boats\n/focus boats\n/captions\n") == 0
    printed = capsys.readouterr()
    assert "/captions prints" in printed.out
    lines = [line for line in printed.out.splitlines() if line.startswith(f"{photo}: ")]
    assert len(lines) == 1 + 2
    assert len(set(lines)) == 2
    assert "nothing new" in printed.err


# ---- a captioner that does not know the picture


def test_an_answer_without_a_basis_says_so(
    scripted_gguf: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """nano says "nothing here" of a photograph, and a reasoner answers all the same."""
    words = ("says nothing of the picture:", "nano knows drawn pictures, not photographs")
    options = ["--reasoner", str(scripted_gguf), "--model", "nano"]
    for form in ([], ["--json"]):
        assert run(["ask", str(photo), "Who is there?", *options, *form]) == 0
        err = capsys.readouterr().err
        assert all(err.count(word) == 1 for word in words), err
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who is there?\n"))
    assert run(["chat", str(photo), *options]) == 0
    err = capsys.readouterr().err
    assert all(err.count(word) == 1 for word in words), err
    assert run(["--quiet", "ask", str(photo), "Who is there?", *options]) == 0
    assert not any(word in capsys.readouterr().err for word in words)


def test_an_answer_with_a_basis_says_nothing_of_it(ask: Any, photo: Path, capsys: Any) -> None:
    assert ask(str(photo), "Who is there?") == 0
    assert "guess" not in capsys.readouterr().err


def test_merged_descriptions_are_advised_on_as_the_captioners_wrote_them(
    random_bundle: Path, scripted_gguf: Path, photo: Path, capsys: Any
) -> None:
    models = ["--model", "nano", "--model", str(random_bundle), "--merge-captions", "--json"]
    assert run(["ask", str(photo), "Who?", *models, "--reasoner", str(scripted_gguf)]) == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["captions"]) == 1  # merged
    assert printed.err.count("nano knows drawn pictures, not photographs") == 1
    assert "guess" not in printed.err  # the other captioner described the picture
