"""A reasoner behind a real OpenAI-compatible server: llama-cpp-python's own, as a process."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprism.cli.main import run
from edgeprism.errors import ReplyError, ServerError
from edgeprism.language.chat import Message
from edgeprism.reason.local import Reasoner
from edgeprism.reason.remote import RemoteReasoner
from edgeprism.reason.shape import choices_to_shape
from tests.helpers.bundles import SAID_TEXT

pytest.importorskip("fastapi", reason="llama_cpp.server's own requirements: the extra dev")
KEY = "sk-of-the-tests"
CHAT = [Message("user", "What floats?")]


@pytest.fixture(scope="module")
def url(scripted_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    settings = {"model_alias": "tiny", "port": port, "api_key": KEY, "n_ctx": 1024,
                "n_threads": 1, "n_threads_batch": 1}  # fmt: skip
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(scripted_gguf), *options]
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ})
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRISM_API_KEY", KEY)


def test_it_says_what_the_same_file_says_here(url: str, scripted_gguf: Path) -> None:
    remote = RemoteReasoner.load(url)
    reply = remote.complete(CHAT, max_tokens=20)
    loaded = Reasoner.load(scripted_gguf, threads=1)
    local = loaded.complete(CHAT, max_tokens=20)
    loaded.close()
    assert reply.text == local.text == SAID_TEXT
    assert reply.finish_reason == local.finish_reason == "stop"
    assert remote.model.name == "tiny"
    assert reply.tokens.generated > 0
    assert reply.tokens.prompt > 0


def test_a_limit_is_a_limit(url: str) -> None:
    reply = RemoteReasoner.load(url).complete(CHAT, max_tokens=3)
    assert reply.finish_reason == "length"
    assert SAID_TEXT.startswith(reply.text)


def test_choices_are_enforced(url: str) -> None:
    """Without a shape the model writes other text (above). This server obeys grammars only."""
    choices = ["no boats", "two boats"]
    reasoner = RemoteReasoner.load(url)
    for _ in range(2):
        reply = reasoner.complete(CHAT, max_tokens=20, shape=choices_to_shape(choices))
        assert reply.text in choices
    cut = reasoner.complete(CHAT, max_tokens=1, shape=choices_to_shape(choices))
    assert (cut.text, cut.finish_reason) == ("", "length")


def test_a_prompt_that_is_too_long(url: str) -> None:
    with pytest.raises(ReplyError, match="maximum context length") as caught:
        RemoteReasoner.load(url).complete([Message("user", "a " * 5000)], max_tokens=3)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("key", ["", "sk-wrong"])
def test_without_the_right_key(url: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRISM_API_KEY", key)
    with pytest.raises(ServerError, match="401") as caught:
        RemoteReasoner.load(url)
    assert "EDGEPRISM_API_KEY" in caught.value.hint


def test_ask(
    url: str, scripted_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ask", str(photo), "What is there?", "--captioner", str(scripted_bundle), "--json"]
    assert run([*arguments, "--reasoner", url]) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert (record["answer"], record["reasoner"]["name"]) == (SAID_TEXT, "tiny")
    assert KEY not in printed.out + printed.err
    # These fail before the captioner reads the picture.
    assert run(["ask", "gone.jpg", "What?", "--reasoner", "http://example.org/v1"]) == 2
    assert "--allow-network" in capsys.readouterr().err
    assert run([*arguments, "--reasoner-model", "tiny", "--reasoner", "some.gguf"]) == 2


def test_eval(
    url: str,
    scripted_bundle: Path,
    scripted_gguf: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One model, loaded and served, gives the same answers in one matrix."""
    out = tmp_path / "run"
    code = run(["eval", "--limit", "2", "--captioner", str(scripted_bundle), "--reasoner", url,
                "--reasoner", str(scripted_gguf), "--instruction-mode", "generic", "--out",
                str(out), "--json"])  # fmt: skip
    printed = capsys.readouterr()
    assert code == 0, printed.err
    with (out / "answers.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    reply = {name: [row["answer"] for row in rows if row["reasoner"] == name]
            for name in ("tiny", "lm")}  # fmt: skip
    assert reply == {"tiny": [SAID_TEXT] * 4, "lm": [SAID_TEXT] * 4}  # with captions and without
    assert KEY.encode() not in b"".join(p.read_bytes() for p in out.iterdir())


def test_shaped_answers(
    url: str,
    scripted_bundle: Path,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    schema = tmp_path / "schema.json"
    properties = {"kind": {"enum": ["boat", "bird"]}, "old": {"type": "boolean"}}
    schema.write_text(json.dumps({"type": "object", "properties": properties,
                                  "required": ["kind", "old"]}))  # fmt: skip
    arguments = ["ask", str(photo), "What is there?", "--captioner", str(scripted_bundle),
             "--reasoner", url]  # fmt: skip
    assert run([*arguments, "--schema", str(schema)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["kind"] in ("boat", "bird")
    assert isinstance(answer["old"], bool)
    assert run([*arguments, "--choices", "boat,bird", "--answer-tokens", "1"]) == 1
    assert capsys.readouterr().out == ""  # no half answer
