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
from edgeprism.vision.graph_checks import check_graph
from tests.helpers import bundles, mmprojs
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


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def graph_rows(mmproj: Path, out: Path, tiles: np.ndarray, as_mtmd: bool = False) -> np.ndarray:
    shape = read_shape(mmproj, read_gguf_header(mmproj))
    graph = write_graph(MmprojTensors(mmproj), shape, bundles.N_EMBD, out, as_mtmd)
    check_graph(graph, [f"{graph.name}.data"])
    rows: np.ndarray = onnxruntime.InferenceSession(str(graph)).run(None, {"pixels": tiles})[0]
    return rows.reshape(-1, bundles.N_EMBD)
