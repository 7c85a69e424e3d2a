"""`edgeprism mcp`, asked by the protocol's own client, and line by line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

pytest.importorskip("mcp", reason="the extra mcp is not installed")

from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import CallToolResult

from edgeprism.cli.main import run
from edgeprism.perceive.captioner import Captioner
from edgeprism.reason.evidence import caption_to_sentences
from edgeprism.serve.mcp_messages import find_fault
from edgeprism.serve.standard_pipes import LONGEST_LINE
from tests.helpers import bundles

SILENCE = Path(__file__).parents[1] / "helpers" / "silence.py"
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, scenes: list[bytes]) -> Path:
    """A folder of pictures, one beside it, and a reasoner that says "2" to everything."""
    place = tmp_path_factory.mktemp("mcp")
    (place / "photos" / "sea").mkdir(parents=True)
    (place / "photos" / "one.png").write_bytes(scenes[0])
    (place / "photos" / "sea" / "two.png").write_bytes(scenes[1])
    (place / "photos" / "broken.png").write_bytes(b"no picture")
    (place / "secret.png").write_bytes(scenes[2])
    (place / "photos" / "out.png").symlink_to(place / "secret.png")
    says_two = bundles.piece_ids("2", bundles.IM_END)
    bundles.write_lm(place / "two.gguf", script=says_two)
    return place


def documented() -> dict[str, Any]:
    """How the documentation tells a program to start it, in JSON and in TOML alike."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "mcp.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```(json|toml)\n(.*?)```", page, re.DOTALL))
    told: dict[str, Any] = json.loads(blocks["json"])["mcpServers"]["edgeprism"]
    assert told == tomllib.loads(blocks["toml"])["mcp_servers"]["edgeprism"]
    return told


def command(place: Path, *options: str) -> list[str]:
    """The documented command, with a folder and a reasoner of the tests."""
    told, reasoner = documented(), ["--reasoner", str(place / "two.gguf")]
    assert Path(told["command"]).name == "edgeprism"
    *words, _folder = told["args"]
    return [sys.executable, "-m", "edgeprism", *words, *reasoner, *options, str(place / "photos")]


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "EDGEPRISM_HOME": str(place / "home")}


@dataclass
class Caller:
    """A client in a thread of its own."""

    portal: BlockingPortal
    client: Client

    def call(self, tool: str, **arguments: Any) -> CallToolResult:
        result: CallToolResult = self.portal.call(self.client.call_tool, tool, arguments)
        return result


@pytest.fixture(scope="module")
def caller(place: Path) -> Iterator[Caller]:
    """Its server ends at the first network socket, where the system has such a filter."""
    words = command(place)
    if sys.platform == "linux":
        words = [sys.executable, str(SILENCE), "--", *words]
    server = StdioServerParameters(command=words[0], args=words[1:], env=environment(place))
    with (
        open(place / "log", "w") as log,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Client(stdio_client(server, log))) as client,
    ):
        yield Caller(portal, client)


def test_the_tools_say_what_they_take(caller: Caller, place: Path) -> None:
    listed = caller.portal.call(caller.client.list_tools).tools
    tools = {tool.name: tool for tool in listed}
    assert set(tools) == {"describe_picture", "ask_picture"}
    assert tools["describe_picture"].input_schema["required"] == ["path"]
    assert set(tools["ask_picture"].input_schema["required"]) == {"paths", "question"}
    for tool in listed:
        assert str(place / "photos") in (tool.description or "")
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is True


def test_a_picture_is_described(caller: Caller, place: Path, texts: list[str]) -> None:
    for path, text in (("one.png", texts[0]), ("sea/two.png", texts[1]),
                       (f"{place}/photos/one.png", texts[0])):  # fmt: skip
        result = caller.call("describe_picture", path=path)
        assert not result.is_error
        assert result.structured_content["caption"] == text
        assert result.structured_content["path"] == path
        assert result.structured_content["model"] == "nano"
        assert result.content[0].text.startswith(text)  # type: ignore[union-attr]


def test_focus_and_instruction_reach_the_captioner(caller: Caller, scenes: list[bytes]) -> None:
    with Captioner.load("nano") as captioner:
        focused = captioner.caption(scenes[0], focus="the colours").text
        told = captioner.caption(scenes[0], instruction="Read the text.").text
    result = caller.call("describe_picture", path="one.png", focus="the colours")
    assert result.structured_content["caption"] == focused
    result = caller.call("describe_picture", path="one.png", instruction="Read the text.")
    assert result.structured_content["caption"] == told


def test_visual_tokens_reach_the_captioner(caller: Caller, scenes: list[bytes]) -> None:
    with Captioner.load("nano", visual_tokens=9) as captioner:
        fewer = captioner.caption(scenes[0]).text
    result = caller.call("describe_picture", path="one.png", visual_tokens=9)
    assert result.structured_content["caption"] == fewer
    question = "How many numbers are there?"
    result = caller.call("ask_picture", paths=["one.png"], question=question, visual_tokens="auto")
    assert result.structured_content["answer"] == "2"


def test_an_answer_comes_with_its_evidence(caller: Caller) -> None:
    paths = ["one.png", "sea/two.png"]
    result = caller.call("ask_picture", paths=paths, question="How many numbers are there?")
    assert not result.is_error, result.content
    data = result.structured_content
    assert data["answer"] == "2"
    assert [each["path"] for each in data["captions"]] == paths
    sentences = [
        {"path": each["path"], "sentence": sentence}
        for each in data["captions"]
        for sentence in caption_to_sentences(each["caption"])
    ]
    assert data["evidence"] == [sentences[1]]  # its reply to that question, too, is "2"
    assert sentences[1]["sentence"] in result.content[0].text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("describe_picture", {"path": "../secret.png"}, "not in a folder that may be read"),
        ("describe_picture", {"path": "out.png"}, "not in a folder that may be read"),
        ("ask_picture", {"paths": ["one.png", "/etc/passwd"], "question": "?"}, "not in a folder"),
        ("describe_picture", {"path": "none.png"}, "Name a picture in"),
        ("describe_picture", {"path": "broken.png"}, "broken.png: not a picture"),
        ("describe_picture", {"path": "sea"}, "not a file"),
        ("describe_picture", {"file": "one.png"}, "Its arguments: path, focus, instruction"),
        ("describe_picture", {"path": "one.png", "focus": "x" * 30_000}, "focus"),
        ("describe_picture", {"path": "one.png", "visual_tokens": 0}, "visual_tokens"),
        ("ask_picture", {"paths": [], "question": "What?"}, "paths"),
        ("ask_picture", {"paths": ["one.png"] * 17, "question": "What?"}, "paths"),
        ("ask_picture", {"paths": ["one.png"], "question": " "}, "question"),
    ],
)
def test_errors_of_tools_say_what_to_do(
    caller: Caller, tool: str, arguments: dict[str, Any], told: str
) -> None:
    result = caller.call(tool, **arguments)
    assert result.is_error
    assert told in result.content[0].text  # type: ignore[union-attr]
    assert len(result.content[0].text) < 600  # type: ignore[union-attr]


def test_an_unknown_tool_is_an_error_of_the_protocol(caller: Caller) -> None:
    with pytest.raises(MCPError, match="describe_picture, ask_picture"):
        caller.call("delete_picture")


def test_the_log_holds_no_content(caller: Caller, place: Path) -> None:
    caller.call("ask_picture", paths=["one.png"], question="A secret question?")
    log = (place / "log").read_text()
    assert "loaded captioner nano" in log
    assert "secret" not in log
    assert "one.png" not in log


# ---- line by line

HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


class Talk:
    """A server, spoken to without a library; a thread reads its log, which else would fill up."""

    def __init__(self, words: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
            text=True, errors="replace",
        )  # fmt: skip
        self.input, self.output = piped(self.process.stdin), piped(self.process.stdout)
        self.log: list[str] = []  # the lines so far
        self._reader = threading.Thread(
            target=self.log.extend, args=(piped(self.process.stderr),), daemon=True
        )
        self._reader.start()

    def send(self, method: str, number: int | None = None, **params: Any) -> None:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
        message |= {} if number is None else {"id": number}
        self.input.write(json.dumps(message) + "\n")
        self.input.flush()

    def receive(self) -> Any:
        return json.loads(self.output.readline())

    def end(self, *, closes_input: bool = True) -> tuple[str, str]:
        """What the server still writes until it has ended, and its whole log."""
        if closes_input:
            self.input.close()
        output = self.output.read()
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return output, "".join(self.log)

    def greet(self) -> None:
        self.send("initialize", 1, **HELLO)
        assert self.receive()["result"]["serverInfo"]["name"] == "edgeprism"
        self.send("notifications/initialized")

    def describe(self, number: int) -> None:
        self.send("tools/call", number, name="describe_picture", arguments={"path": "one.png"})


def piped(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@contextlib.contextmanager
def talking(place: Path, *options: str) -> Iterator[Talk]:
    talk = Talk(command(place, *options), environment(place))
    try:
        yield talk
    finally:
        talk.process.kill()
        talk.end(closes_input=False)


def test_it_ends_with_its_input_and_writes_the_protocol_alone(
    place: Path, texts: list[str]
) -> None:
    with talking(place, "-v") as talk:  # -v: the engines' own logs
        talk.greet()
        talk.input.write("no JSON\n\n")
        talk.input.write('{"jsonrpc": "2.0", "id": 7, "method": ["a secret"]}\n')
        talk.describe(2)
        broken, strange = talk.receive(), talk.receive()
        assert (broken["id"], broken["error"]["code"]) == (None, -32700)
        assert (strange["id"], strange["error"]["code"]) == (7, -32600)
        reply = talk.receive()
        assert reply["id"] == 2
        assert reply["result"]["structuredContent"]["caption"] == texts[0]
        output, errors = talk.end()
        assert talk.process.returncode == 0
        assert output == ""
        assert "freed captioner nano" in errors
        assert errors.count("a line of standard input is no message: It is ") == 2
        assert "secret" not in errors
        assert "Traceback" not in errors


def test_a_signal_ends_it_in_the_middle_of_calls(place: Path) -> None:
    """By SIGTERM; `tests/machine/test_signals.py` has Ctrl-C do the same to every command."""
    with talking(place, "--preload") as talk:
        talk.greet()
        deadline = time.monotonic() + PATIENCE_S
        while not any("loaded reasoner" in line for line in talk.log):  # before anything is asked
            assert time.monotonic() < deadline, talk.log
            time.sleep(0.01)
        for call in range(2, 40):
            talk.describe(call)
        talk.receive()
        talk.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        output, errors = talk.end(closes_input=False)
        assert time.monotonic() - start < 10
        assert talk.process.returncode == 0
        for line in output.splitlines():
            assert json.loads(line)["jsonrpc"] == "2.0"
        assert "Traceback" not in errors


def test_what_libraries_print_goes_to_standard_error() -> None:
    program = """
import os, subprocess, sys
from edgeprism.serve.standard_pipes import claimed_pipes
with claimed_pipes() as (source, target):
    print("of Python", flush=True)
    os.write(1, b"of a library")
    assert subprocess.run([sys.executable, "-c", "print(input())"]).returncode  # has no input
    os.write(target, b"an answer to " + os.read(source, 99))
print(" and on")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], input="a question", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "an answer to a question and on\n"
    assert "of Python\nof a library" in done.stderr


@pytest.mark.parametrize(
    ("line", "code", "number"),
    [
        ("{", -32700, None),
        ("[" * 100_000, -32700, None),
        ('{"jsonrpc": "2.0", "id": 1, "method": "ping"} x', -32700, None),
        ('"' + "x" * LONGEST_LINE, -32700, None),
        ("[]", -32600, None),
        ('[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', -32600, None),
        ("null", -32600, None),
        ('{"id": 3, "method": "ping"}', -32600, 3),
        ('{"jsonrpc": "1.0", "id": "a", "method": "ping"}', -32600, "a"),
        ('{"jsonrpc": "2.0", "id": true, "method": 1}', -32600, None),
        ('{"jsonrpc": "2.0", "id": "' + "x" * 200 + '", "method": 1}', -32600, None),
        ('{"jsonrpc": "2.0", "id": 4}', -32600, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_message_is_answered(line: str, code: int, number: str | int | None) -> None:
    fault = find_fault(line)
    assert fault is not None
    assert (fault["jsonrpc"], fault["id"], fault["error"]["code"]) == ("2.0", number, code)
    assert len(fault["error"]["message"]) < 200


@pytest.mark.parametrize(
    "line",
    [
        '{"jsonrpc": "2.0", "id": 1, "method": "ping"}',
        '{"jsonrpc": "2.0", "method": "notifications/initialized", "params": {}}',
        '{"jsonrpc": "2.0", "id": 1, "result": {}}',
    ],
)
def test_messages_pass(line: str) -> None:
    assert find_fault(line) is None


# ---- the command


def test_usage_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = str(tmp_path)
    for options, code, told in (
        ([], 2, "FOLDER"),
        ([str(tmp_path / "none")], 2, "no such folder"),
        (["--model", "none-such", folder], 4, "none-such"),
        (["--reasoner", "smollm2-135n", folder], 4, "Did you mean smollm2-135m"),
        (["--keep-alive", "soon", folder], 2, "'soon' is no duration"),
    ):
        assert run(["mcp", *options]) == code, options
        assert told in capsys.readouterr().err


def test_a_missing_extra_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "edgeprism.serve.mcp_server", raising=False)
    monkeypatch.setitem(sys.modules, "mcp", None)
    assert run(["mcp", str(tmp_path)]) == 2
    assert 'pip install "edgeprism[mcp]"' in capsys.readouterr().err
