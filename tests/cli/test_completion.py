"""Completion as the shells ask for it: file names stay, names of models come."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprism.files.home import data_dir
from tests.helpers import elsewhere

SHELLS = ("bash", "zsh", "fish")


def edgeprism(environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("edgeprism"))],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def completed(*words: str) -> list[str]:
    """What bash gets for the last of the words: lines of type and value."""
    return edgeprism(
        {"_EDGEPRISM_COMPLETE": "bash_complete", "COMP_WORDS": "\n".join(("edgeprism", *words)),
         "COMP_CWORD": str(len(words))}
    )  # fmt: skip


@pytest.fixture
def installed(scripted_bundle: Path, scripted_gguf: Path) -> None:
    shutil.copytree(scripted_bundle, data_dir() / "models" / "mine")
    shutil.copy(scripted_gguf, data_dir() / "models" / "talker.gguf")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("caption", "Pho"), ["file,Pho"]),
        (("ask", "Pho"), ["file,Pho"]),
        (("chat", "Pho"), ["file,Pho"]),
        (("caption", "-o", "Pho"), ["file,Pho"]),
        (("caption", "-m", ""), ["plain,nano", "plain,mine"]),
        (("caption", "--model", "mi"), ["plain,mine"]),
        (("caption", "-m", "./mi"), ["file,./mi"]),
        (("ask", "-m", "na"), ["plain,nano"]),
        (("eval", "-m", "na"), ["plain,nano"]),
        (("ask", "--reasoner", ""), ["plain,talker"]),
        (("models", "show", "ta"), ["plain,talker"]),
        (("models", "remove", "mi"), ["plain,mine"]),
        (("pull", "smollm2-13"), ["plain,smollm2-135m"]),
        (("cap",), ["plain,caption"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
@pytest.mark.usefixtures("installed")
def test_what_tab_completes(words: tuple[str, ...], expected: list[str]) -> None:
    assert completed(*words) == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_that_the_shell_reads(shell: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("\n".join(edgeprism({"_EDGEPRISM_COMPLETE": f"{shell}_source"})))
    assert "edgeprism" in script.read_text()
    program = shutil.which(shell)
    if program is None:
        return  # the script is there; this machine has no such shell to read it
    subprocess.run([program, "-n", str(script)], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.usefixtures("installed")
def test_bash_completes_a_model(tmp_path: Path) -> None:
    """The script runs in bash, calls the command, and fills COMPREPLY."""
    script = "\n".join(edgeprism({"_EDGEPRISM_COMPLETE": "bash_source"}))
    run = f"""{script}
COMP_WORDS=(edgeprism caption -m mi); COMP_CWORD=3
_edgeprism_completion edgeprism mi -m
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", run], env={**os.environ, "PATH": path}, capture_output=True, text=True,
        check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout == "mine\n"


def test_references_are_completed_by_names_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As zsh and fish ask; bash cuts words at colons. Empty files show that none is opened."""
    store = elsewhere.new_home(tmp_path / "home", monkeypatch) / ".ollama" / "models"
    library = "registry.ollama.ai/library"
    empty = tmp_path / "empty"
    empty.touch()
    elsewhere.ollama_model(store, f"{library}/llava/7b", model=empty, projector=empty)
    elsewhere.ollama_model(store, f"{library}/llama3.2/3b", model=empty)
    assert completed("caption", "-m", "ollama:ll") == ["plain,ollama:llava:7b"]
    assert completed("ask", "--reasoner", "ollama:ll") == [
        "plain,ollama:llama3.2:3b", "plain,ollama:llava:7b"
    ]  # fmt: skip
    assert completed("caption", "-m", "ollama:x") == ["file,ollama:x"]
