"""Pages of a mapped file are given back, and read again when they are needed."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeprism.language.model import LanguageModel
from edgeprism.machine.mapped_files import drop_mapped_pages
from tests.helpers import bundles

LARGE = 1 << 25

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux lists mappings in /proc")


def resident_bytes(path: Path) -> int:
    """Return the resident bytes of the mappings of `path`, as Linux lists them."""
    found, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            found = line.endswith(str(path))
        elif found and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.parametrize("name", ["weights.gguf", "two words, ümläut.gguf"])
def test_pages_go_and_come_back(name: str, tmp_path: Path) -> None:
    path, other = tmp_path / name, tmp_path / "other"
    values = np.random.default_rng(0).integers(0, 256, LARGE, np.uint8)
    for each in (path, other):
        each.write_bytes(values.tobytes())
    with path.open("rb") as first, other.open("rb") as second:
        data = mmap.mmap(first.fileno(), 0, access=mmap.ACCESS_READ)
        kept = mmap.mmap(second.fileno(), 0, access=mmap.ACCESS_READ)
    assert data[:] == kept[:] == values.tobytes()
    assert resident_bytes(path) == resident_bytes(other) == LARGE
    drop_mapped_pages(path)
    assert (resident_bytes(path), resident_bytes(other)) == (0, LARGE)
    assert data[:] == values.tobytes()


def test_what_is_written_to_a_mapping_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "written"
    path.write_bytes(bytes(LARGE))
    with path.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 0)
        own = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    shared[:4], own[4:8] = b"both", b"mine"
    drop_mapped_pages(path)
    assert own[4:8] == b"mine"
    assert shared[:4] == b"both"


def test_a_file_that_is_gone_or_not_mapped_is_let_be(tmp_path: Path) -> None:
    drop_mapped_pages(tmp_path / "none")
    (tmp_path / "unmapped").write_bytes(b"x")
    drop_mapped_pages(tmp_path / "unmapped")


def test_a_language_model_keeps_no_second_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After loading, the pages are gone where the engine has copied weights, and only there."""
    path = bundles.write_heavy_lm(
        tmp_path / "lm.gguf", bundles.LmShape(n_embd=256, n_ff=4096, n_layer=3)
    )
    for copied, expected in ((frozenset({2}), True), (frozenset[int](), False)):
        monkeypatch.setattr("edgeprism.language.model.repacked_types", lambda copied=copied: copied)
        model = LanguageModel(path)
        assert (resident_bytes(path) < path.stat().st_size / 10) == expected
        ids = model.vocabulary.tokenize("a boat")
        assert ids
        model.close()
