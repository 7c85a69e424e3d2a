"""Graphs from mmproj files that are not built or not kept, and the command that builds them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.cli.main import run
from edgeprism.convert.mmproj import build, peer, speed_up
from edgeprism.convert.mmproj.build import build_bundle
from edgeprism.convert.mmproj.obstacles import why_no_graph
from edgeprism.convert.mmproj.speed_up import speed_up_pair
from edgeprism.convert.mmproj.tensors import MmprojTensors
from edgeprism.convert.options import PairOptions
from edgeprism.errors import ModelError, NoGraphError, ParityError
from edgeprism.progress import Progress
from edgeprism.vision.pair import write_pair
from tests.helpers import bundles, mmprojs
from tests.helpers.mmproj_graphs import graph_rows, noise, tiny_lm


def pair(folder: Path, parts: bundles.GgufParts) -> Path:
    out = folder / "pair"
    write_pair(tiny_lm().write(folder / "lm"), parts.write(folder / "mm"), out)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(change: Callable[[bundles.GgufParts], object]) -> bundles.GgufParts:
    parts = mmprojs.mmproj_parts(mmprojs.IDEFICS)
    change(parts)
    return parts


def without(name: str) -> Callable[[bundles.GgufParts], object]:
    return lambda parts: parts.tensors.pop(name, None) is None and parts.metadata.pop(name)


REFUSED = {
    "no v.blk.1.ln2.bias": without("v.blk.1.ln2.bias"),
    "no mm.model.fc.weight": without("mm.model.fc.weight"),
    "v.blk.0.attn_post_norm.weight, which the graph has no place for": lambda p: p.tensors.update(
        {"v.blk.0.attn_post_norm.weight": np.ones(mmprojs.WIDTH, np.float32)}
    ),
    "v.position_embd.weight of shape": lambda p: p.tensors.update(
        {"v.position_embd.weight": np.ones((15, mmprojs.WIDTH), np.float32)}
    ),
    "become nothing known pixels": without("clip.vision.preproc_image_size"),
    "cannot be joined by 3": lambda p: p.metadata.update(
        {"clip.vision.projector.scale_factor": ("uint32", 3)}
    ),
    "more weights than an ONNX file": lambda p: p.metadata.update(
        {
            "clip.vision.feed_forward_length": ("uint32", 1 << 20),
            "clip.vision.block_count": ("uint32", 512),
        }
    ),
    "SiLU": lambda p: p.metadata.update({"clip.use_silu": ("bool", True)}),
    "image_std is not positive": lambda p: p.metadata.update(
        {"clip.vision.image_std": ("array", [0.5, 0.0, 0.5])}
    ),
}


# of towers whose tiles have a shape of their own
REFUSED_FREE: dict[str, tuple[str, int]] = {
    "takes patches of 40 pixels": ("patch_size", 40),
    "joins 3 patches along an edge": ("spatial_merge_size", 3),
    "cannot be shared by 16 heads": ("attention.head_count", 16),
    "more weights than an ONNX file": ("feed_forward_length", 1 << 28),
}


@pytest.mark.parametrize("reason", REFUSED_FREE)
def test_no_graph_of_free_shapes_and_why(reason: str, tmp_path: Path) -> None:
    parts = mmprojs.mmproj_parts(mmprojs.QWEN25)
    name, value = REFUSED_FREE[reason]
    parts.metadata[f"clip.vision.{name}"] = ("uint32", value)
    assert reason in why_no_graph(read_gguf_header(parts.write(tmp_path / "mm")))


def test_tiles_of_other_tokens_than_the_authors(tmp_path: Path) -> None:
    parts = mmprojs.mmproj_parts(dataclasses.replace(mmprojs.LFM2, patch=32))
    why = why_no_graph(read_gguf_header(parts.write(tmp_path / "mm")))
    assert "join 2 × 2 patches of 32 pixels, of which a tile of 512 pixels has no 256" in why


def test_a_tensor_too_many_in_a_tower_of_free_shapes(tmp_path: Path) -> None:
    parts = mmprojs.mmproj_parts(mmprojs.QWEN25)
    parts.tensors["v.post_ln.bias"] = np.ones(mmprojs.WIDTH, np.float32)
    with pytest.raises(NoGraphError, match=r"v\.post_ln\.bias, which the graph has no place for"):
        graph_rows(parts.write(tmp_path / "mm"), tmp_path / "g.onnx", noise(56, 56)[None])


@pytest.mark.parametrize("reason", REFUSED)
def test_no_graph_and_why(reason: str, tmp_path: Path) -> None:
    path = changed(REFUSED[reason]).write(tmp_path / "mm")
    with pytest.raises(NoGraphError) as refused:
        graph_rows(path, tmp_path / "g.onnx", noise(28, 28)[None])
    assert reason.replace("become nothing", "becomes nothing") in refused.value.summary
    assert str(path) in refused.value.summary


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    parts = changed(lambda p: p.tensors["v.blk.1.ln1.weight"].__setitem__(3, np.nan))
    with pytest.raises(ModelError, match=r"v\.blk\.1\.ln1\.weight holds values"):
        graph_rows(parts.write(tmp_path / "mm"), tmp_path / "g.onnx", noise(28, 28)[None])


@pytest.mark.parametrize(("projector", "reason"), [
    ("qwen3vl_merger", "shape of its own"), ("glm4v", "shape of its own"),
    ("pixtral", "shape of its own"), ("ldp", "convolutions"), ("cogvlm", "none that a graph"),
])  # fmt: skip
def test_projectors_that_stay_with_libmtmd(projector: str, reason: str, tmp_path: Path) -> None:
    parts = changed(lambda p: p.metadata.update({"clip.projector_type": ("string", projector)}))
    why = why_no_graph(read_gguf_header(parts.write(tmp_path / "mm")))
    assert projector in why
    assert reason in why


def test_an_encoder_without_a_graph_stays_as_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = mmprojs.mmproj_parts(mmprojs.IDEFICS)
    del parts.metadata["clip.vision.preproc_image_size"]
    out = pair(tmp_path, parts)
    before = contents(out)
    said = speed_up_pair(out, Progress())
    assert said.startswith("llama.cpp's own encoder stays: ")
    assert "older converters" in said
    assert contents(out) == before
    files = [str(tmp_path / "lm"), str(tmp_path / "mm"), str(tmp_path / "b")]
    assert run(["convert", "mmproj", *files, "--encoder", "onnx"]) == 4
    told = capfd.readouterr().err
    assert "--encoder mtmd" in told
    assert f"{tmp_path / 'b'} holds the pair without a graph: llama.cpp encodes" in told
    assert contents(tmp_path / "b").keys() == before.keys()


@pytest.mark.parametrize("fault", ["a shifted position", "no gain"])
def test_nothing_is_written_where_the_gate_fails(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = pair(tmp_path, mmprojs.mmproj_parts(mmprojs.INTERN))
    before = contents(out)
    read = MmprojTensors.read

    def shifted(self: MmprojTensors, name: str) -> np.ndarray:
        values = read(self, name)
        return np.roll(values, 1, axis=0) if name == "v.position_embd.weight" else values

    if fault == "no gain":
        monkeypatch.setattr(peer, "seconds_per_tile", lambda *_: (1.0, 0.95))
    else:
        monkeypatch.setattr(MmprojTensors, "read", shifted)
    error = NoGraphError if fault == "no gain" else ParityError
    with pytest.raises(error) as refused:
        build_bundle(out, out, PairOptions(), Progress())
    words = "0.95 times" if fault == "no gain" else "against libmtmd: relative error"
    assert words in refused.value.message
    assert contents(out) == before
    assert {path.name for path in tmp_path.iterdir()} == {"lm", "mm", "pair"}


def test_int8_that_hurts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = pair(tmp_path, mmprojs.mmproj_parts(mmprojs.IDEFICS))
    failure = ({"relative_error": 0.5}, ["relative error 0.5 > 0.08"])
    monkeypatch.setattr(build, "write_int8", lambda *_: failure)
    with pytest.raises(ParityError, match="vision int8: relative error"):
        build_bundle(out, out, PairOptions(always=True), Progress())


def test_neither_torch_nor_transformers_is_needed(tmp_path: Path) -> None:
    out = pair(tmp_path, mmprojs.mmproj_parts(mmprojs.GEMMA))
    script = f"""
import sys
for name in ("torch", "transformers", "optimum", "onnxscript", "safetensors", "sentencepiece"):
    sys.modules[name] = None
from pathlib import Path
from edgeprism.convert.worker import _build
from edgeprism.progress import EventProgress
job = {{"pair": {str(out)!r}, "options": {{"vision_quants": ["int8"], "always": True}}}}
_build(job, Path({str(out)!r}), EventProgress(sys.stderr))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "vision.int8.onnx").is_file()


def test_converted_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    parts = mmprojs.mmproj_parts(mmprojs.IDEFICS)
    lm, mmproj = tiny_lm().write(tmp_path / "lm"), parts.write(tmp_path / "mm")
    out = tmp_path / "out"
    made = ["convert", "mmproj", str(lm), str(mmproj), str(out), "--encoder", "onnx"]
    assert run([*made, "--vision-quant", "fp32"]) == 0
    captured = capfd.readouterr()
    assert captured.out == f"{out}\n"
    assert "The encoder is an ONNX graph: a tile takes" in captured.err
    assert "vision fp32 against libmtmd: relative_error" in captured.err
    assert (out / "vision.fp32.onnx").is_file()
    assert run(made) == 2  # it exists already


def test_the_reasons_why_an_encoder_stays_are_separated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> float:
        raise ParityError("It does not agree:", details=["vision fp32: a", "vision int8: b"])

    monkeypatch.setattr(speed_up, "_replaced", refused)
    monkeypatch.setattr(speed_up, "_has_gpu", lambda: False)
    said = speed_up_pair(tmp_path, Progress())
    assert said.endswith("encoder stays: It does not agree: vision fp32: a; vision int8: b")


@pytest.mark.parametrize(
    ("ratio", "share"), [(2.5, "takes 0.40 of"), (400.0, "takes less than a hundredth of")]
)
def test_how_much_faster_a_graph_is_stands_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, share: str
) -> None:
    monkeypatch.setattr(speed_up, "_replaced", lambda *_: ratio)
    assert share in speed_up_pair(tmp_path, Progress(), PairOptions(always=True))


def test_two_engines_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, turns = [0.0], []

    def call(name: str, *seconds: float) -> Callable[[], None]:
        left = list(seconds)

        def run_once() -> None:
            turns.append(name)
            clock[0] += left.pop(0) if len(left) > 1 else left[0]

        return run_once

    monkeypatch.setattr("edgeprism.convert.mmproj.peer.time.perf_counter", lambda: clock[0])
    # another program slows the first rounds of one, and one round of the other
    medians = peer.alternate(call("a", 0.9, 0.9, 0.2), call("b", 0.1, 2.0, 0.1))
    assert medians == pytest.approx((0.2, 0.1))
    assert turns == ["a", "b"] * 7
    turns.clear()
    assert peer.alternate(call("a", 40), call("b", 20)) == pytest.approx((40, 20))
    assert turns == ["a", "b"]  # a round took longer than all are worth
    turns.clear()
    peer.alternate(call("a", 9), call("b", 4))
    assert turns == ["a", "b"] * 3
