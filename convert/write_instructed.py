"""Write and measure the two vision graphs of a captioner that reads the instruction."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgeprism.bundle.manifest import VisionVariant
from edgeprism.choices import CONVERTED_QUANTS
from edgeprism.convert.gate import judge
from edgeprism.convert.gate.data import TOKENIZER_TEXTS, gate_pictures, instruction_of
from edgeprism.convert.gate.instructed import SHARE, ConnectorGate, TowerGate
from edgeprism.convert.gate.int8 import AUTO_ERROR, Measured, write_auto, write_int8
from edgeprism.convert.memory import give_memory_back
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.parts import FamilyParts
from edgeprism.convert.vision.export import export_graph
from edgeprism.convert.vision.instructed import TextSide
from edgeprism.convert.vision.pack_onnx import pack_onnx
from edgeprism.progress import Progress
from edgeprism.vision.wordpiece import WordPiece


@dataclass(frozen=True)
class _Job:
    """What all variants share: the gate's pictures and instructions, and the expected rows."""

    folder: Path
    pixels: np.ndarray
    ids: Sequence[np.ndarray]
    reference: np.ndarray
    progress: Progress

    def tower_gate(self, connector: Path) -> TowerGate:
        return TowerGate(
            self.pixels, self.reference, self.progress, connector=connector, ids=self.ids
        )

    def connector_gate(self, tower: Path, quant: str) -> ConnectorGate:
        made = judge.run_vision(tower, self.pixels, quant == "int8-full", Progress())
        return ConnectorGate(
            self.pixels, self.reference, self.progress, features=made.tokens, ids=self.ids
        )


def write_instructed(
    parts: FamilyParts,
    folder: Path,
    options: ConvertOptions,
    verdict: judge.Verdict,
    progress: Progress,
) -> list[VisionVariant]:
    """Write each variant as vision.<quant>.onnx and connector.<quant>.onnx, and the vocabulary."""
    text, published = parts.text, parts.manifest.vision.text
    if text is None or published is None:
        raise ValueError("the instruction has no part in the visual tokens")
    tokenizer = _write_vocabulary(text, folder / published.vocabulary)
    verdict.add("instruction tokenizer", *judge.judge_tokenizer(
        [tokenizer.ids(each) for each in TOKENIZER_TEXTS],
        [_cut(text, text.reference_ids(each)) for each in TOKENIZER_TEXTS],
    ))  # fmt: skip
    work = folder / "work"
    work.mkdir()
    pixels = gate_pictures(parts.manifest.image.size)
    progress.stage("Computing the vision reference", parts.n_vision_ticks)
    reference = parts.reference_visual_tokens(pixels, progress.advance)
    give_memory_back()  # the reference had all weights in float32
    ids = [np.array([tokenizer.ids(instruction_of(i))], np.int64) for i in range(len(pixels))]
    job = _Job(folder, pixels, ids, reference, progress)
    graphs: dict[torch.dtype, tuple[Path, Path]] = {}
    variants = []
    for asked in sorted(set(options.vision_quants), key=CONVERTED_QUANTS.index):
        dtype = torch.float16 if asked == "fp16" else torch.float32
        if dtype not in graphs:
            progress.stage(f"Exporting the vision graphs ({str(dtype).removeprefix('torch.')})")
            modules = {"tower": parts.vision(dtype), "connector": text.connector(dtype)}
            tower, connector = (
                export_graph(module, parts.vision_weights, work, f"{stem}-{asked}")
                for stem, module in modules.items()
            )
            graphs[dtype] = (tower, connector)
        variant, measured = _write_variant(job, asked, *graphs[dtype])
        verdict.add(f"vision {variant.quant}", *measured)
        variants.append(variant)
    shutil.rmtree(work)
    return variants


def _write_vocabulary(text: TextSide, out: Path) -> WordPiece:
    """Write the vocabulary into the bundle; return its tokenizer, read from there."""
    lines = "".join(f"{piece}\n" for piece in text.pieces)
    out.write_bytes(lines.encode("utf-8"))
    return WordPiece.from_file(out, max_ids=text.max_ids, truncation=text.truncation)


def _cut(text: TextSide, ids: list[int]) -> list[int]:
    """Cut the published tokenizer's ids at the side that the manifest says."""
    inner, room = ids[1:-1], text.max_ids - 2
    cut = inner[-room:] if text.truncation == "left" else inner[:room]
    return [ids[0], *cut, ids[-1]]


def _write_variant(
    job: _Job, asked: str, tower: Path, connector: Path
) -> tuple[VisionVariant, Measured]:
    """Write both graphs in one quantization; return their names, and what was measured of both."""
    if asked == "auto":
        return _write_auto(job, tower, connector)
    out, second = (job.folder / f"{name}.{asked}.onnx" for name in ("vision", "connector"))
    if asked.startswith("int8"):
        first, _ = write_int8(tower, out, asked, job.tower_gate(connector))
        gate = job.connector_gate(out, asked)
        figures, failures = write_int8(connector, second, asked, gate)
        figures["float_matrices"] += first["float_matrices"]
    else:
        pack_onnx(tower, out)
        pack_onnx(connector, second)
        figures, failures = job.connector_gate(out, asked).measure(second, asked)
    return VisionVariant(out.name, asked, second.name), (figures, failures)


def _write_auto(job: _Job, tower: Path, connector: Path) -> tuple[VisionVariant, Measured]:
    """As many matrices of both graphs in int8 as the bound of "auto" allows."""
    gate = job.tower_gate(connector)
    quant, (first, _) = write_auto(tower, job.folder, gate, share=SHARE)
    out = job.folder / f"vision.{quant}.onnx"
    if quant == "fp32":
        second = job.folder / "connector.fp32.onnx"
        pack_onnx(connector, second)
        figures, failures = job.connector_gate(out, quant).measure(second, quant)
        return VisionVariant(out.name, quant, second.name), (
            {**figures, "error_bound": AUTO_ERROR}, failures
        )  # fmt: skip
    kind, (figures, failures) = write_auto(
        connector, job.folder, job.connector_gate(out, quant), name="connector", whole=quant
    )
    in_float = first["float_matrices"] + figures.get("float_matrices", 0.0)
    figures = {**figures, "float_matrices": in_float}
    return VisionVariant(out.name, quant, f"connector.{kind}.onnx"), (figures, failures)
