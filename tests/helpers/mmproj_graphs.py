"""Tiny pairs for the tests of graphs from mmproj files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.convert.mmproj.graph import write_graph
from edgeprism.convert.mmproj.shape import read_shape
from edgeprism.convert.mmproj.tensors import MmprojTensors
from edgeprism.perceive.captioner import Captioner
from edgeprism.vision.graph_checks import check_graph
from edgeprism.vision.pair import open_pair
from tests.helpers import bundles, mmprojs
from tests.helpers.captions import caption_ids
from tests.language.test_generator import multi_axis_lm


def tiny_lm(marks: Sequence[str] = ()) -> bundles.GgufParts:
    """Return a language model in which the markers are tokens, as they are in published ones."""
    parts = bundles.lm_parts(4)
    parts.metadata["tokenizer.ggml.add_space_prefix"] = ("bool", False)
    # its line feed is a byte's piece
    both = [*mmprojs.MARKS, *marks]
    return mmprojs.with_marks(parts, marks=[mark for mark in both if mark != "\n"])


def tiny_multi_axis_lm() -> bundles.GgufParts:
    """Return one whose rows have positions in time, down and across (M-RoPE)."""
    parts = multi_axis_lm(4)
    parts.metadata["tokenizer.ggml.add_space_prefix"] = ("bool", False)
    return mmprojs.with_marks(parts, marks=[mark for mark in mmprojs.MARKS if mark != "\n"])


def float32_captioner(bundle: Path) -> Captioner:
    """Return a captioner that computes in float32 throughout."""
    return Captioner.load(
        bundle, device="cpu", threads=1, vision_quant="fp32", kv_type="f32", flash_attention=False
    )


def greedy_texts(
    graph: Captioner, lm: Path, mmproj: Path, sizes: Sequence[tuple[int, int]], n_tokens: int
) -> list[list[list[int]]]:
    """Return the tokens said of pictures of noise, by a captioner with a graph and by libmtmd."""
    pair = Captioner(open_pair(lm, mmproj), threads=1, kv_type="f32", flash_attention=False)
    said = []
    for captioner in (graph, pair):
        with captioner:
            said.append([
                caption_ids(captioner, noise(*size), stop_at_end=False, caption_tokens=n_tokens)
                for size in sizes
            ])  # fmt: skip
    return said


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def graph_rows(mmproj: Path, out: Path, tiles: np.ndarray, as_mtmd: bool = False) -> np.ndarray:
    shape = read_shape(mmproj, read_gguf_header(mmproj))
    graph = write_graph(MmprojTensors(mmproj), shape, bundles.N_EMBD, out, as_mtmd)
    check_graph(graph, [f"{graph.name}.data"])
    rows: np.ndarray = onnxruntime.InferenceSession(str(graph)).run(None, {"pixels": tiles})[0]
    return rows.reshape(-1, bundles.N_EMBD)
