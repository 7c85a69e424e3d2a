"""Tiny pairs for the tests of graphs from mmproj files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnxruntime

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.convert.mmproj import peer
from edgeprism.convert.mmproj.build import build_bundle
from edgeprism.convert.mmproj.graph import write_graph
from edgeprism.convert.mmproj.shape import read_shape
from edgeprism.convert.mmproj.tensors import MmprojTensors
from edgeprism.convert.options import PairOptions
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Rows, segments_to_parts
from edgeprism.perceive.captioner import Captioner
from edgeprism.progress import Progress
from edgeprism.records import EncodedImage
from edgeprism.segments import Text
from edgeprism.vision.graph_checks import check_graph
from edgeprism.vision.pair import open_pair, write_pair
from tests.helpers import bundles, mmprojs
from tests.helpers.captions import caption_ids
from tests.helpers.llama_reference import LlamaReference, Visual
from tests.language.test_generator import multi_axis_lm


def tiny_lm(marks: Sequence[str] = (), shape: bundles.LmShape | None = None) -> bundles.GgufParts:
    """Return a language model in which the markers are tokens, as they are in published ones."""
    parts = bundles.lm_parts(4, shape=shape)
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


def float64_text(
    case: PairCase,
    pixels: np.ndarray,
    rows: np.ndarray,
    lm: bundles.GgufParts,
    n_tokens: int,
    places: np.ndarray | None = None,
) -> tuple[list[int], list[int]]:
    """Return the tokens that a graph's captioner says of a picture, and the likeliest in float64.

    Parameters:
        rows: the authors' rows of the picture, [n_rows, n_embd].
        lm: what the pair's language model was written of.
        places: of the rows in time, down and across, for a model that has them.
    """
    instruction = "what is it"
    with case.captioner() as captioner:
        encoded = captioner.encode(pixels)
        said = caption_ids(
            captioner, encoded, stop_at_end=False, instruction=instruction, caption_tokens=n_tokens
        )
    before, after = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    segments = [Text(before, True), *encoded.layout, Text(instruction), Text(after, True)]
    model = LanguageModel(case.lm)
    prompt: list[list[int] | Visual] = [
        Visual(part.values, True, places) if isinstance(part, Rows) else part
        for part in segments_to_parts(model, segments, rows.astype(np.float32), add_bos=True)
    ]
    model.close()
    logits = LlamaReference(lm).logits([*prompt, said])
    return said, logits[-n_tokens - 1 : -1].argmax(axis=-1).tolist()


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def graph_rows(
    mmproj: Path,
    out: Path,
    tiles: np.ndarray,
    as_mtmd: bool = False,
    n_embd: int = bundles.N_EMBD,
) -> np.ndarray:
    shape = read_shape(mmproj, read_gguf_header(mmproj))
    graph = write_graph(MmprojTensors(mmproj), shape, n_embd, out, as_mtmd)
    check_graph(graph, [f"{graph.name}.data"])
    rows: np.ndarray = onnxruntime.InferenceSession(str(graph)).run(None, {"pixels": tiles})[0]
    return rows.reshape(-1, n_embd)


@dataclass(frozen=True)
class PairCase:
    """A tiny pair, and its bundle with graphs in float32 and int8."""

    kind: mmprojs.Kind
    parts: bundles.GgufParts  # of the mmproj file
    lm: Path
    mmproj: Path
    bundle: Path

    def captioner(self) -> Captioner:
        """Return one that computes in float32 throughout."""
        return float32_captioner(self.bundle)

    def encode(self, pixels: np.ndarray) -> EncodedImage:
        with self.captioner() as captioner:
            return captioner.encode(pixels)


def build_case(
    folder: Path, kind: mmprojs.Kind, parts: bundles.GgufParts, lm: bundles.GgufParts
) -> PairCase:
    """Write a pair into an empty folder and build its graphs; how fast they are is not at issue."""
    case = PairCase(kind, parts, lm.write(folder / "lm"), parts.write(folder / "mm"), folder / "b")
    write_pair(case.lm, case.mmproj, case.bundle, name="tiny")
    with mock.patch.object(peer, "_ROUNDS", ((1, 0.0),)):
        options = PairOptions(("fp32", "int8"), always=True)
        build_bundle(case.bundle, case.bundle, options, Progress())
    return case


def apart(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference as a share of the largest value."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
