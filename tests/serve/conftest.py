"""One server for the tests of this folder, in a thread; its clients use real sockets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprism.models import nano
from edgeprism.perceive.captioner import Captioner
from edgeprism.reason.thinking import AnswerText
from tests.helpers.serving import Running, serving


@pytest.fixture(scope="session")
def server(scripted_gguf: Path) -> Iterator[Running]:
    """A server of nano; its own reasoner says `bundles.SAID_TEXT`."""
    with serving(reasoner=str(scripted_gguf), keep_alive_s=float("inf")) as running:
        yield running


@pytest.fixture(scope="session")
def scenes() -> list[bytes]:
    """The files of nano's example pictures."""
    folder = Path(nano.__file__).parent / "examples"
    return [path.read_bytes() for path in sorted(folder.glob("*.png"))]


@pytest.fixture(scope="session")
def texts(scenes: list[bytes]) -> list[str]:
    """What nano says of them, without a server."""
    with Captioner.load("nano") as captioner:
        return [captioner.caption(data).text for data in scenes]


@pytest.fixture
def slow_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a reasoner of this process take a moment for each word of an answer.

    The tiny ones here write all of it before a server's thread gets its turn to send a word.
    """
    feed = AnswerText.feed

    def feed_slowly(answer: AnswerText, piece: str) -> str:
        time.sleep(0.03)
        return feed(answer, piece)

    monkeypatch.setattr(AnswerText, "feed", feed_slowly)
