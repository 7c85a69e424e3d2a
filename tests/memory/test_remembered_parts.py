"""A count of memory is made once for files that stay as they are."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from edgeprism.bundle.gguf import GgufHeader
from edgeprism.bundle.gguf_parts import read_model_header
from edgeprism.errors import ModelError
from edgeprism.files.home import data_dir
from edgeprism.memory.parts import ModelParts
from edgeprism.perceive import footprint as of_captioners
from edgeprism.perceive.captioner import Captioner
from edgeprism.reason import footprint as of_reasoners
from edgeprism.reason.local import Reasoner


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of which a header was read for a count."""
    paths: list[Path] = []

    def read(path: Path) -> GgufHeader:
        paths.append(path)
        return read_model_header(path)

    for module in (of_captioners, of_reasoners):
        monkeypatch.setattr(module, "read_model_header", read)
    return paths


@pytest.fixture
def lm(scripted_gguf: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copy(scripted_gguf, tmp_path / "lm.gguf"))
    time.sleep(0.1)  # what is counted of a file that was written just now is not remembered
    return path


def count(lm: Path) -> ModelParts:
    return Reasoner.load(lm, device="cpu").memory_parts()


def test_headers_are_read_once(lm: Path, scripted_bundle: Path, reads: list[Path]) -> None:
    def count_both() -> tuple[ModelParts, ModelParts]:
        with Captioner.load(scripted_bundle, device="cpu") as captioner:
            return captioner.engines.memory_parts(), count(lm)

    both = count_both()
    assert count_both() == both
    assert reads == [scripted_bundle / "lm.gguf", lm]
    with Captioner.load(scripted_bundle, device="cpu", kv_type="f32") as captioner:
        assert captioner.engines.memory_parts() != both[0]  # of another use


def test_what_was_changed_or_damaged_is_counted_again(lm: Path, reads: list[Path]) -> None:
    parts = count(lm)
    remembered = data_dir() / "memory.json"
    for old, new in (('"why"', '"how"'), ('"size": ', '"size": "much'), ("[", "[["), ("]", "")):
        remembered.write_text(remembered.read_text().replace(old, new, 1))
        assert count(lm) == parts, new
    n_reads = len(reads)
    os.utime(lm)  # it may be another file
    assert count(lm) == parts
    assert len(reads) == n_reads + 1
    lm.write_bytes(lm.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"lm\.gguf"):
        count(lm)
    lm.unlink()
    with pytest.raises(ModelError, match=r"lm\.gguf"):
        count(lm)
