"""A pair's graph with `auto`: int8 for as many matrices as the error's bound allows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest

from edgeprism.bundle.manifest import Manifest
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.cli.main import run
from edgeprism.convert.gate import int8
from edgeprism.convert.mmproj import peer
from edgeprism.convert.mmproj.build import build_bundle
from edgeprism.convert.mmproj.speed_up import speed_up_pair
from edgeprism.convert.options import PairOptions
from edgeprism.errors import ParityError, UsageError
from edgeprism.progress import Progress
from edgeprism.vision.pair import write_pair
from tests.helpers import bundles, mmprojs
from tests.helpers.mmproj_graphs import tiny_lm

OUTLIER = 300.0
CHANNEL = 7


def outlying() -> bundles.GgufParts:
    """Make one channel of two inputs huge, and its weights small: the tower computes the same."""
    parts = mmprojs.mmproj_parts(mmprojs.IDEFICS, 3)
    readers = {"ln1": ("attn_q", "attn_k", "attn_v"), "ln2": ("ffn_up",)}
    for norm, matrices in readers.items():
        for end in ("weight", "bias"):
            parts.tensors[f"v.blk.1.{norm}.{end}"][CHANNEL] *= OUTLIER
        for name in matrices:
            parts.tensors[f"v.blk.1.{name}.weight"][:, CHANNEL] /= OUTLIER
    return parts


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    lm, mmproj = tiny_lm().write(folder / "lm"), outlying().write(folder / "mm")
    write_pair(lm, mmproj, folder / "pair", name="outlying")
    return folder / "pair"


@pytest.fixture(autouse=True)
def _speed_is_not_at_issue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "_ROUNDS", ((1, 0.0),))


def made(pair: Path, out: Path, quant: str) -> Manifest:
    build_bundle(pair, out, PairOptions((quant,), always=True), Progress())
    return manifest_from_bundle(out)


def test_auto_keeps_outliers_in_float(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = made(pair, tmp_path / "auto", "auto")
    assert [(v.file, v.quant) for v in auto.vision.variants] == [("vision.int8.onnx", "int8")]
    figures = auto.parity.figures["vision int8"]
    assert figures["relative_error"] <= figures["error_bound"] == int8.AUTO_ERROR
    assert 1 <= figures["float_matrices"] <= 8
    graph = onnx.load(str(tmp_path / "auto" / "vision.int8.onnx"), load_external_data=False).graph
    assert "MatMulInteger" in {node.op_type for node in graph.node}
    assert auto.asked_quants == ("auto",)
    assert auto.has_quants(("auto",))
    assert auto.has_quants(("int8",))
    assert not auto.has_quants(("int8-full",))
    monkeypatch.setattr(int8, "_FLOAT_SHARES", ())
    with pytest.raises(ParityError, match="vision int8: relative error"):
        made(pair, tmp_path / "plain", "int8")
    # a graph of which no bound decided is another one
    plain = dataclasses.replace(auto, parity=dataclasses.replace(auto.parity, figures={}))
    assert plain.asked_quants == ("int8",)
    assert not plain.has_quants(("auto",))


def test_auto_is_float_where_no_matrix_can_be_int8(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "AUTO_ERROR", 1e-7)
    manifest = made(pair, tmp_path / "out", "auto")
    assert [(v.file, v.quant) for v in manifest.vision.variants] == [("vision.fp32.onnx", "fp32")]
    assert manifest.asked_quants == ("auto",)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*manifest.files, "manifest.json"}


def test_auto_excludes_what_it_may_become(
    pair: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for other in ("int8", "fp32"):
        with pytest.raises(UsageError, match="excludes both"):
            speed_up_pair(pair, Progress(), PairOptions(("auto", other)))
    files = [str(pair / "lm.gguf"), str(pair / "mmproj.gguf"), str(tmp_path / "out")]
    given = ["--vision-quant", "auto", "--vision-quant", "int8"]
    assert run(["convert", "mmproj", *files, *given]) == 2
    assert "Leave them out of --vision-quant." in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
