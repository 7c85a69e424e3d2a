"""Reasoners and Prism that threads and processes share."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeprism import Captioner, Prism, Reasoner, RemoteReasoner
from edgeprism.language.chat import Message
from tests.helpers.rude_server import RudeServer, said


def together(count: int, work: Callable[[int], object]) -> list[BaseException]:
    """Run `work` in threads at the same time; return what they raise."""
    raised: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return raised


def ask(reasoner: Reasoner | RemoteReasoner, question: str) -> str:
    return reasoner.complete([Message("user", question)], max_tokens=6).text


@pytest.fixture
def reasoner(random_bundle: Path) -> Iterator[Reasoner]:
    reasoner = Reasoner.load(random_bundle / "lm.gguf", chat_format="chatml", threads=1)
    yield reasoner
    reasoner.close()


def test_threads_share_a_reasoner(reasoner: Reasoner) -> None:
    questions = [f"Is there a {word}?" for word in ("boat", "dog", "cat", "bird", "tree")]
    expected = [ask(reasoner, question) for question in questions]
    answers: dict[int, str] = {}

    def work(number: int) -> None:
        if number % 8 == 5:
            reasoner.close()
        answers[number] = ask(reasoner, questions[number % 5])

    assert together(50, work) == []
    assert all(answers[number] == expected[number % 5] for number in range(50))


def test_threads_share_a_prism(
    reasoner: Reasoner, scripted_captioner: Captioner, photo: Path
) -> None:
    """Also if only one of its models may be in memory at a time."""
    for apart in (False, True):
        prism = Prism(scripted_captioner, reasoner, apart=apart)

        def answer(number: int, prism: Prism = prism) -> str:
            question = ("What is red?", "What is near the sea?")[number % 2]
            return prism.ask(photo, question, answer_tokens=6).text

        expected = [answer(0), answer(1)]
        answers: dict[int, str] = {}
        raised = together(10, lambda n: answers.__setitem__(n, answer(n)))  # noqa: B023
        assert raised == []
        assert all(answers[number] == expected[number % 2] for number in range(10))


def test_threads_share_a_remote_reasoner() -> None:
    """It asks for one after another, and a `cancel` is for what is under way."""
    server = RudeServer(said("A boat."))
    try:
        reasoner = RemoteReasoner.load(server.url, "model")
        assert together(12, lambda _: ask(reasoner, "What?")) == []
        assert len(server.requests) == 12
        copy = pickle.loads(pickle.dumps(reasoner))
        assert repr(copy) == repr(reasoner) == f"<RemoteReasoner 'model' at {server.url}>"
        assert ask(copy, "What?") == "A boat."
    finally:
        server.close()


def test_a_pickled_reasoner_holds_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRISM_API_KEY", "sk-1234567890")
    reasoner = RemoteReasoner.load("http://127.0.0.1:9/v1", "model")
    assert b"1234567890" not in pickle.dumps(reasoner)
    assert "1234567890" not in repr(reasoner)


def test_a_pickled_prism_opens_again(
    reasoner: Reasoner, scripted_captioner: Captioner, photo: Path
) -> None:
    prism = Prism(scripted_captioner, reasoner, apart=True)
    copy = pickle.loads(pickle.dumps(prism))
    assert copy.apart
    expected = prism.ask(photo, "What is red?", answer_tokens=6)
    assert copy.ask(photo, "What is red?", answer_tokens=6).text == expected.text
    copy.close()
