"""The gate of large towers: few passes, each of which serves several checks, and none is blind."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.convert.gate import int8
from edgeprism.convert.gate.data import gate_mosaic, gate_pictures
from edgeprism.convert.mmproj import build, mtmd_slices, peer
from edgeprism.convert.mmproj.build import build_bundle
from edgeprism.convert.mmproj.graph import is_read_alike, write_graph
from edgeprism.convert.mmproj.shape import read_shape
from edgeprism.convert.mmproj.tensors import MmprojTensors
from edgeprism.convert.options import PairOptions
from edgeprism.convert.vision.quantize import quantize_int8
from edgeprism.errors import ParityError
from edgeprism.picture.layout import PictureLayout
from edgeprism.progress import Progress
from edgeprism.vision.mtmd import MtmdEncoder
from edgeprism.vision.pair import write_pair
from tests.helpers import bundles, mmprojs
from tests.helpers.mmproj_graphs import tiny_lm

# both readings of the first two are one graph; pictures of the last two become several tiles
KINDS = {"gemma3": mmprojs.GEMMA, "mlp": mmprojs.CLIP_MLP,
         "idefics3": mmprojs.IDEFICS, "internvl": mmprojs.INTERN}  # fmt: skip
ALL_KINDS = {**KINDS, "siglip": mmprojs.SIGLIP_MLP, "lfm2": mmprojs.LFM2,
             "qwen": mmprojs.QWEN, "qwen2.5": mmprojs.QWEN25}  # fmt: skip
# {graph: tiles that it runs on}; `n` is a picture's number of tiles, and there are two variants
PASSES: dict[str, Callable[[int], dict[str, int]]] = {
    "gemma3": lambda n: {"peer": n + 1, "vision": 2 * (n + 1)},
    "idefics3": lambda n: {"peer": n + 1, "vision": 2 * (n + 1)},
    "mlp": lambda n: {"peer": n, "graph": n + 1, "vision": 2 * (n + 1)},
    "internvl": lambda n: {"peer": n, "graph": n + 1, "vision": 2 * (n + 1)},
}
N_TILES = {"gemma3": 1, "mlp": 1, "idefics3": 4, "internvl": 5}


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    pairs: dict[str, Path] = {}

    def pair(name: str) -> Path:
        if name not in pairs:
            folder = tmp_path_factory.mktemp("pair")
            mmproj = mmprojs.mmproj_parts(KINDS[name], 3).write(folder / "mm")
            pairs[name] = folder / "pair"
            write_pair(tiny_lm().write(folder / "lm"), mmproj, pairs[name], name=name)
        return pairs[name]

    return pair


@pytest.fixture(autouse=True)
def _all_towers_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "LARGE_TILE", 1)
    monkeypatch.setattr(peer, "_CLEAR_GAIN", 0.0)  # how fast it is is not at issue


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, text: str, total: int = 0) -> None:
        self.lines.append(text)

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("name", KINDS)
def test_a_pass_serves_every_check(
    name: str,
    pair_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs: Counter[str] = Counter()
    mtmd: list[int] = []
    run, encode = onnxruntime.InferenceSession.run, MtmdEncoder.encode_picture

    def counted(session: Any, names: Any, feed: dict[str, np.ndarray], options: Any = None) -> Any:
        graphs[Path(session._model_path).name.split(".")[0]] += len(feed["pixels"])
        return run(session, names, feed, options)

    def counted_encode(encoder: MtmdEncoder, pixels: np.ndarray) -> Any:
        mtmd.append(len(pixels))
        return encode(encoder, pixels)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", counted)
    monkeypatch.setattr(MtmdEncoder, "encode_picture", counted_encode)
    monkeypatch.setattr(build, "_WORTH_SAYING_S", 0.0)
    told = Told()
    options = PairOptions(("fp32", "int8"), always=True)
    build_bundle(pair_of(name), tmp_path / "out", options, told)
    assert mtmd == [1]
    assert graphs == PASSES[name](N_TILES[name])
    estimate = next(i for i, line in enumerate(told.lines) if "takes about 1 minute on" in line)
    assert re.match("Encoding with llama.cpp: its time shows how long", told.lines[estimate - 1])
    figures = json.loads((tmp_path / "out" / "manifest.json").read_text())["parity"]["figures"]
    assert figures["vision fp32 against libmtmd"]["relative_error"] < 2e-3
    assert 1e-3 < figures["vision int8"]["relative_error"] < 0.08
    assert figures["vision int8"]["pictures"] == N_TILES[name] + 1
    assert figures["vision fp32"]["relative_error"] < 1e-6
    assert figures["greedy text"] == {"tokens": 32, "same_from_the_start": 32}  # both are float32
    assert figures["speed on the converting machine"]["graph_seconds_per_tile"] > 0


def shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each patch its neighbour's position."""
    read = MmprojTensors.read

    def planted(self: MmprojTensors, name: str) -> np.ndarray:
        values = read(self, name)
        return np.roll(values, 1, axis=0) if name == "v.position_embd.weight" else values

    monkeypatch.setattr(MmprojTensors, "read", planted)


def misplaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a picture into its tile's corner instead of the middle."""
    fitted = mtmd_slices.fitted

    def planted(*args: Any) -> Any:
        tile = np.asarray(fitted(*args))
        return np.roll(tile, -np.flatnonzero(tile.any(axis=(1, 2)))[0], axis=0)

    monkeypatch.setattr(peer, "fitted", planted)


def coarser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give half of a matrix's columns scales that are too large, in every int8 graph."""
    quantize = quantize_int8

    def planted(graph: Path, out: Path, *args: Any, **options: Any) -> None:
        quantize(graph, out, *args, **options)
        model = onnx.load(str(out), load_external_data=False)
        scales = [t for t in model.graph.initializer if t.name.endswith("_scale") and t.dims]
        values = onnx.numpy_helper.to_array(scales[-1]).copy()
        values[::2] *= 1.5
        scales[-1].CopyFrom(onnx.numpy_helper.from_array(values, scales[-1].name))
        onnx.save(model, str(out))

    monkeypatch.setattr(int8, "quantize_int8", planted)
    monkeypatch.setattr(int8, "_FLOAT_SHARES", ())  # else that matrix stays in float


@pytest.mark.parametrize(
    ("plant", "check"),
    [(shifted, "against libmtmd: relative error"), (misplaced, "against libmtmd: relative error"),
     (coarser, "vision int8: relative error")],
)  # fmt: skip
def test_planted_mistakes_are_caught(
    plant: Callable[[pytest.MonkeyPatch], None],
    check: str,
    pair_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = pair_of("gemma3")
    plant(monkeypatch)
    with pytest.raises(ParityError) as refused:
        build_bundle(pair, tmp_path / "out", PairOptions(always=True), Progress())
    assert check in refused.value.message
    assert not (tmp_path / "out").exists()


def test_an_unclear_gain_is_measured_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "_CLEAR_GAIN", 1.5)
    layout = PictureLayout(None, ((28, 28),) * 2, np.arange(2), ())
    blank = np.zeros((1, 28, 28, 3), np.uint8)
    picture = peer.MtmdRows((28, 28), blank, np.zeros((2, 4)), layout, 40.0)
    asked = []

    def without_flash(*_: object) -> float:
        asked.append(1)
        return 30.0

    monkeypatch.setattr(peer, "seconds_without_flash", without_flash)
    lm: Any = None  # nothing is encoded
    assert peer.seconds_of_passes(lm, Path(), picture, (10.0, 9.0, 12.0)) == (20.0, 10.0)
    assert asked == []
    assert peer.seconds_of_passes(lm, Path(), picture, (14.0, 14.0)) == (15.0, 14.0)
    assert asked == [1]


@pytest.mark.parametrize("name", ALL_KINDS)
def test_both_readings_are_one_graph_where_it_is_said(name: str, tmp_path: Path) -> None:
    mmproj = mmprojs.mmproj_parts(ALL_KINDS[name], 1).write(tmp_path / "mm")
    shape, tensors = read_shape(mmproj, read_gguf_header(mmproj)), MmprojTensors(mmproj)
    written = []
    for as_mtmd in (False, True):
        folder = tmp_path / str(as_mtmd)
        folder.mkdir()
        write_graph(tensors, shape, bundles.N_EMBD, folder / "g.onnx", as_mtmd)
        written.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert is_read_alike(shape) == (written[0] == written[1])


@pytest.mark.parametrize("size", [56, 27])
def test_the_mosaic_holds_what_the_pictures_hold(size: int) -> None:
    mosaic, half = gate_mosaic(size), -(-size // 2)
    assert mosaic.shape == (size, size, 3)
    pictures = gate_pictures(half)
    np.testing.assert_array_equal(mosaic[:half, :half], pictures[2])
    np.testing.assert_array_equal(mosaic[half:, half:], pictures[7][: size - half, : size - half])
