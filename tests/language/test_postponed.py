"""Importing a module of a package without the package's own code."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgeprism.language.postponed import postponed

# the toy's package counts its runs, reads a name of its module, and fails where BROKEN is set
PACKAGE = """
import {name}.small as small
runs = getattr(small, "runs", 0) + 1
small.runs = runs
if getattr(small, "BROKEN", False):
    raise ImportError("planted")
from .small import WORD
late = WORD.upper()
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a package of this test's own."""
    name = f"toy_{request.node.name}".replace("[", "_").replace("]", "_")
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(PACKAGE.format(name=name))
    (tmp_path / name / "small.py").write_text('WORD = "word"\n')
    (tmp_path / name / "broken.py").write_text('raise RuntimeError("planted")\n')
    monkeypatch.syspath_prepend(tmp_path)
    return name


def import_small(name: str, calls: list[str]) -> dict[str, object]:
    scope: dict[str, object] = {}
    with postponed(name, after=lambda: calls.append("after")):
        exec(f"import {name}.small as small", scope)
    return scope


def test_the_package_runs_when_it_is_asked(toy: str) -> None:
    calls: list[str] = []
    small = import_small(toy, calls)["small"]
    assert small.WORD == "word"  # type: ignore[attr-defined]
    assert not hasattr(small, "runs")
    scope: dict[str, object] = {}
    exec(f"import {toy}\nlate = {toy}.late\nagain = {toy}.late\nsame = {toy}.small", scope)
    assert (scope["late"], scope["same"]) == ("WORD", small)
    assert small.runs == 1  # type: ignore[attr-defined]
    assert calls == ["after"]
    with pytest.raises(AttributeError, match=f"'{toy}' has no attribute 'nothing'"):
        exec(f"{toy}.nothing", scope)
    with pytest.raises(ImportError, match="nothing"):
        exec(f"from {toy} import nothing", scope)


def test_from_the_package_import_a_name(toy: str) -> None:
    import_small(toy, [])
    scope: dict[str, object] = {}
    exec(f"from {toy} import late\nfrom {toy} import *", scope)
    assert scope["late"] == "WORD"
    assert scope["runs"] == 1


def test_threads_ask_at_once_and_it_runs_once(toy: str) -> None:
    small = import_small(toy, [])["small"]
    package, barrier, got = sys.modules[toy], threading.Barrier(8), []

    def ask() -> None:
        barrier.wait()
        got.append(package.late)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == ["WORD"] * 8
    assert small.runs == 1  # type: ignore[attr-defined]


def test_what_fails_in_the_package_is_told_each_time(toy: str) -> None:
    calls: list[str] = []
    small = import_small(toy, calls)["small"]
    small.BROKEN = True  # type: ignore[attr-defined]
    package = sys.modules[toy]
    for _ in range(2):
        with pytest.raises(ImportError, match="planted"):
            _ = package.late
    assert calls == []
    small.BROKEN = False  # type: ignore[attr-defined]
    assert package.late == "WORD"


def test_a_module_that_fails_leaves_no_package(toy: str) -> None:
    with (
        pytest.raises(RuntimeError, match="planted"),
        postponed(toy, after=lambda: None),
    ):
        exec(f"import {toy}.broken")
    assert toy not in sys.modules


def test_a_package_that_is_there_stays(toy: str) -> None:
    calls: list[str] = []
    scope: dict[str, object] = {}
    exec(f"import {toy}", scope)
    before = sys.modules[toy]
    import_small(toy, calls)
    assert sys.modules[toy] is before
    assert before.late == "WORD"
    assert calls == []


def test_a_package_that_is_not_installed() -> None:
    with (
        pytest.raises(ModuleNotFoundError, match="no_such_package_here"),
        postponed("no_such_package_here", after=lambda: None),
    ):
        exec("import no_such_package_here.part")


def test_llama_cpp_beside_edgeprism() -> None:
    """A program that embeds EdgePrism has all of llama_cpp, and EdgePrism keeps llama.cpp's log."""
    program = """
import sys
from edgeprism.language.llama import import_llama, last_words
llama = import_llama()
assert not {"jinja2", "sqlite3", "diskcache", "multiprocessing"} & set(sys.modules)
import llama_cpp
assert llama_cpp.llama_cpp is llama and llama_cpp.__version__ and "jinja2" in sys.modules
assert llama_cpp.Llama.__module__ == "llama_cpp.llama"
assert not llama.llama_model_load_from_file(b"/no/such", llama.llama_model_default_params())
print(last_words(3))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "/no/such" in done.stdout
    assert done.stderr == ""
