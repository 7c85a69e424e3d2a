"""A pair's graph that is disturbed while it is built: another program, Ctrl-C, a full disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeprism.bundle.open import open_bundle
from edgeprism.cli.main import run
from edgeprism.convert import supervise
from edgeprism.convert.mmproj import peer
from edgeprism.convert.mmproj.build import build_bundle
from edgeprism.convert.mmproj.speed_up import speed_up_pair
from edgeprism.convert.options import PairOptions
from edgeprism.errors import OutputError
from edgeprism.progress import Progress
from edgeprism.vision.pair import write_pair
from tests.helpers import mmprojs
from tests.helpers.mmproj_graphs import tiny_lm

FP32 = PairOptions(("fp32",), always=True)


class Disturbed(Progress):
    """Progress that calls a function once, at the first stage that begins with some words."""

    def __init__(self, words: str, call: Callable[[], object]) -> None:
        self._calls = {words: call}

    def stage(self, text: str, total: int = 0) -> None:
        for words in [words for words in self._calls if text.startswith(words)]:
            self._calls.pop(words)()


@pytest.fixture(autouse=True)
def _speed_is_not_at_issue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "_ROUNDS", ((1, 0.0),))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Return the paths of a language model and its mmproj file."""
    lm = tiny_lm().write(tmp_path / "lm")
    return [str(lm), str(mmprojs.mmproj_parts(mmprojs.IDEFICS).write(tmp_path / "mm"))]


def another(folder: Path, out: Path) -> None:
    """Replace the bundle by that of another pair."""
    lm = tiny_lm(["<another>"]).write(folder / "lm2")
    mmproj = mmprojs.mmproj_parts(mmprojs.IDEFICS, 5).write(folder / "mm2")
    write_pair(lm, mmproj, out, name="two", overwrite=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("stage", ["Encoding", "Finishing"])
def test_two_models_are_never_mixed(stage: str, files: list[str], tmp_path: Path) -> None:
    out, graph = tmp_path / "out", tmp_path / "graph"
    write_pair(Path(files[0]), Path(files[1]), out, name="one")
    others = dict[str, bytes]()

    def disturb() -> None:
        # under another name: one process writes one bundle at a place
        another(tmp_path, tmp_path / "other")
        out.rename(tmp_path / "gone")
        (tmp_path / "other").rename(out)
        others.update(contents(out))

    with pytest.raises(OutputError, match=f"{out} was changed by another program meanwhile"):
        build_bundle(out, out, FP32, Disturbed(stage, disturb))
    assert contents(out) == others
    assert not list(tmp_path.glob(".*"))
    # written elsewhere, the bundle holds the files that its graph was made of
    write_pair(Path(files[0]), Path(files[1]), tmp_path / "pair", name="one")
    build_bundle(
        tmp_path / "pair", graph, FP32,
        Disturbed(stage, lambda: another(tmp_path, tmp_path / "pair")),
    )  # fmt: skip
    made = contents(graph)
    assert (made["lm.gguf"], made["mmproj.gguf"]) == tuple(Path(f).read_bytes() for f in files)
    assert open_bundle(graph).manifest.name == "one"


def test_a_pair_that_was_replaced_before_its_graph_is_left_alone(
    files: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    digest = write_pair(Path(files[0]), Path(files[1]), out, name="one")
    another(tmp_path, out)
    others = contents(out)
    with pytest.raises(OutputError, match="changed by another program") as refused:
        speed_up_pair(out, Progress(), FP32, digest=digest)
    assert refused.value.details == ()
    assert contents(out) == others


def test_ctrl_c_says_what_the_folder_holds(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(supervise, "_follow", interrupt)
    out = tmp_path / "out"
    assert run(["convert", "mmproj", *files, str(out), "--encoder", "onnx"]) == 130
    said = f"Interrupted.\n    {out} holds the pair without a graph: llama.cpp encodes"
    assert said in capfd.readouterr().err
    assert open_bundle(out).manifest.vision.mmproj is not None


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a file's size are POSIX's")
def test_a_full_disk_is_told_in_words(files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from edgeprism.cli.main import main
main(["convert", "mmproj", *{files!r}, {str(out)!r}, "--encoder", "onnx"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"error: {out} cannot be written: File too large." in done.stderr
    assert f"    {out} holds the pair without a graph" in done.stderr
    assert "hint: Free some space." in done.stderr
    assert open_bundle(out).manifest.vision.mmproj is not None
    assert not list(tmp_path.glob(".*"))
