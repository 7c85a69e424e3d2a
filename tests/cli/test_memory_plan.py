"""`edgeprism doctor --plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeprism.cli.main import run


def test_what_a_captioner_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--plan", "nano"]) == 0
    out = capsys.readouterr().out
    for words in ("captioner nano", "vision weights", "language weights", "KV cache",
                  "512 cells of f16", "in all: ", "fits"):  # fmt: skip
        assert words in out
    assert "--stages" not in out


def test_both_models(scripted_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--plan", "nano", "--reasoner", str(scripted_gguf)]
    assert run(["doctor", *models]) == 0
    out = capsys.readouterr().out
    assert "reasoner lm" in out
    assert "--stages auto: together, because both models fit" in out
    assert run(["doctor", *models, "--json", "--memory", "64G"]) == 0
    plan = json.loads(capsys.readouterr().out)
    roles = [model["role"] for model in plan["models"]]
    assert roles == ["process", "captioner", "reasoner"]
    assert plan["machine"]["size"] == plan["machine"]["free"] == 64_000_000_000
    sizes = [sum(part["size"] for part in m["parts"] if part["needed"]) for m in plan["models"]]
    assert plan["together"]["memory_bytes"] == sum(sizes)
    assert plan["apart"]["memory_bytes"] == sizes[0] + max(sizes[1:])


def test_a_machine_that_is_too_small(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--plan", "nano", "--memory", "100MB"]) == 1
    out = capsys.readouterr().out
    assert "memory: 100.0 MB (as asked)" in out
    assert "MB of memory are needed, 100 MB are free" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--memory", "8G"], 2, "belong to --plan"),
        (["--plan", "nano", "--memory", "much"], 2, "--memory much is not a size"),
        (["--plan", "nano", "--lm", "a.gguf", "--mmproj", "b.gguf"], 2, "--plan names"),
        (["--plan", "no-such"], 4, "no-such"),
        (["--plan", "nano", "--reasoner", "./none.gguf"], 4, "none.gguf"),
    ],
)
def test_mistakes(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", *arguments]) == code
    assert words in capsys.readouterr().err


def test_a_damaged_model(
    scripted_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in scripted_bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    graph = folder / "vision.fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:200])
    assert run(["doctor", "--plan", str(folder)]) == 4
    assert graph.name in capsys.readouterr().err
