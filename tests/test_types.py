"""What a type checker tells those who use the package: no public call is Any, no slip passes."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import edgeprism

REPOSITORY = Path(edgeprism.__file__).parent.parent
HEAD = "from edgeprism import Captioner, Prism, Reasoner, RemoteReasoner, caption_folder\n"
# {name: what somebody wrote}; both checkers find an error in the last line
SLIPS = {
    "caption": 'Captioner.load("nano").caption("x.png", max_token=5)',
    "caption_number": "Captioner.load().caption(5)",
    "caption_tokens": 'Captioner.load().caption("x.png", caption_tokens="5")',
    "load": 'Captioner.load("nano", thread=2)',
    "load_device": "Captioner.load(device=0)",
    "stream": 'Captioner.load().stream("x.png", instructions="Count.")',
    "cost": "Captioner.load().cost((640, 480), focal=True)",
    "cost_size": 'Captioner.load().cost("x.png")',
    "reasoner": 'Reasoner.load("a.gguf", layers=3)',
    "answer": 'Reasoner.load().answer([], "What?", option={"A": "red"})',
    "remote": 'RemoteReasoner.load("http://localhost:8080", pause=1)',
    "ask": 'Prism(Captioner.load(), Reasoner.load()).ask("x.png", "What?", tokens=5)',
    "ask_seed": 'Prism(Captioner.load(), Reasoner.load()).ask("x.png", "What?", seed="1")',
    "folder": 'caption_folder("photos", Captioner.load(), sidecars=("text",))',
    "prism": 'Prism("nano", Reasoner.load())',
    "text": "Captioner.load().caption('x.png').txt",
}
# Every public call; its lines are revealed one by one
CALLS = """
captioner = Captioner.load("nano", device="cpu", threads=2)
captioner.encode("x.png")
captioner.caption_many(["x.png", b""], focus="the boats")
captioner.encode_together(["x.png", b""])
captioner.caption("x.png", focus="the boats", caption_tokens=20)
captioner.stream("x.png").finished()
list(captioner.stream("x.png"))
captioner.stream("x.png").caption
captioner.cost((640, 480))
captioner.plan(seed=1)
captioner.start("x.png", captioner.plan())
captioner.device
captioner.model
captioner.cancel()
captioner.close()
reasoner = Reasoner.load("smollm2-135m", threads=2)
reasoner.answer([], "What?", options={"A": "red"})
reasoner.complete([], max_tokens=5)
reasoner.choose([], ["red", "blue"], max_tokens=5)
reasoner.draw_focus("Is the boat red?")
reasoner.focus_notes
reasoner.focus_timings
reasoner.find_evidence([], "What?", "A boat.")
reasoner.model
reasoner.model_bytes()
reasoner.cancel()
reasoner.close()
remote = RemoteReasoner.load("http://localhost:8080")
remote.answer([], "What?")
prism = Prism(captioner, reasoner)
prism.ask("x.png", "What?", answer_tokens=5, caption_tokens=20)
prism.ask(["x.png", captioner.encode("y.png")], "What?").text
prism.focus_for("Is the boat red?")
prism.answer([], "What?")
prism.close()
caption_folder("photos", captioner, sidecars=("txt",))
caption_folder(["a", "b/*.png"], captioner).failures
"""
# What other rooms call: a folder's threads between two steps of a caption, with values that only
# they have, a forked child, and who asks before a reasoner is told to draw a focus
FOR_OTHER_ROOMS = {"complete_in_shape", "forget_natives", "in_use", "knows_prompts",
                   "memory_parts", "record", "reply_to", "request", "steps", "takes_focus",
                   "tiles_to_encoded"}  # fmt: skip


@dataclass(frozen=True)
class Message:
    file: str  # without its ending
    line: int
    severity: str  # "error", "information"
    text: str


def by_mypy(folder: Path) -> list[Message]:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--output=json",
               "--cache-dir", str(folder / "cache"), "--follow-imports=silent",
               *map(str, folder.glob("*.py"))]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr + done.stdout
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [Message(Path(m["file"]).stem, m["line"], m["severity"], m["message"]) for m in found]


def by_pyright(folder: Path) -> list[Message]:
    settings = {"include": ["."], "extraPaths": [str(REPOSITORY)], "typeCheckingMode": "strict",
                "reportUnusedImport": False, "reportUnusedExpression": False}  # fmt: skip
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable,
               "--project", str(folder)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr + done.stdout
    return [
        Message(Path(m["file"]).stem, m["range"]["start"]["line"] + 1, m["severity"], m["message"])
        for m in json.loads(done.stdout)["generalDiagnostics"]
    ]


@pytest.fixture(scope="module", params=[by_mypy, by_pyright])
def messages(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[Message]:
    folder = tmp_path_factory.mktemp("types")
    for name, line in SLIPS.items():
        (folder / f"slip_{name}.py").write_text(f"{HEAD}\n{line}\n")
    (folder / "calls.py").write_text(HEAD + "".join(map(revealed, CALLS.splitlines())))
    found: list[Message] = request.param(folder)
    return found


def revealed(line: str) -> str:
    name, _, call = line.rpartition(" = ") if re.match(r"\w+ = ", line) else ("", "", line)
    asked = f"reveal_type({call})" if call else ""
    return f"{name} = {asked}\n" if name else f"{asked}\n"


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_an_error(slip: str, messages: list[Message]) -> None:
    errors = [m for m in messages if m.file == f"slip_{slip}" and m.severity == "error"]
    assert {m.line for m in errors} == {HEAD.count("\n") + 2}


def test_no_public_call_is_any(messages: list[Message]) -> None:
    said = [m for m in messages if m.file == "calls"]
    types = {m.line: m.text for m in said if m.severity in ("note", "information")}
    assert [m for m in said if m.severity == "error"] == []
    assert len(types) == sum(bool(line) for line in CALLS.splitlines())
    assert [text for text in types.values() if re.search(r"\b(Any|Unknown)\b", text)] == []


@pytest.mark.parametrize("kind", [edgeprism.Captioner, edgeprism.Prism, edgeprism.Reasoner])
def test_every_public_call_is_among_them(kind: type) -> None:
    members = {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}
    assert {
        name for name in members - FOR_OTHER_ROOMS if not re.search(rf"\.{name}\b", CALLS)
    } == set()
