"""Pairs whose answers in llama.cpp differ from the published model's: they run, and it is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeprism.bundle.gguf_parts import read_model_header
from edgeprism.cli.main import run
from edgeprism.install.discover import discover
from edgeprism.perceive.captioner import Captioner
from edgeprism.vision.mmproj_checks import departure_of
from edgeprism.vision.pair import open_pair
from tests.helpers import bundles
from tests.helpers.cogvlm_pair import write_cogvlm_pair

WORDS = "counts a picture's rows one by one"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_cogvlm_pair(tmp_path_factory.mktemp("pair"))


def test_it_captions_as_any_pair(files: tuple[Path, Path]) -> None:
    texts = set()
    with Captioner(open_pair(*files), device="cpu", threads=1) as captioner:
        for seed in range(3):
            pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            caption = captioner.caption(pixels, caption_tokens=8)
            assert caption.tokens.visual == 18  # 16 patches and two learned rows
            texts.add(caption.text)
    assert len(texts) == 3


def test_the_manifest_says_how_its_answers_differ(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert WORDS in open_pair(*files).manifest.notice
    out = tmp_path / "bundle"
    assert run(["convert", "mmproj", *map(str, files), "--encoder", "mtmd", str(out)]) == 0
    capsys.readouterr()
    assert run(["models", "show", str(out), "--json"]) == 0
    assert WORDS in json.loads(capsys.readouterr().out)["notice"]


def test_the_doctor_warns(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--lm", str(files[0]), "--mmproj", str(files[1]), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    of_pair = [finding for finding in findings if finding["topic"] == "pair"]
    assert [finding["state"] for finding in of_pair] == ["ok", "warn"]
    assert WORDS in of_pair[1]["text"]


def test_what_other_programs_keep_is_told_to_differ(files: tuple[Path, Path]) -> None:
    (found,) = [model for model in discover([files[0].parent]) if model.kind == "captioner"]
    assert WORDS in found.note


def test_other_pairs_have_no_such_note(scripted_gguf: Path) -> None:
    header = read_model_header(scripted_gguf)
    assert header.architecture == "llama"
    assert departure_of(header) == ""
    assert WORDS not in bundles.make_manifest({}).notice
