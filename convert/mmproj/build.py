"""A pair of GGUF and mmproj → a bundle with an ONNX graph in the mmproj's place, in steps.

Everything that runs here needs the extra `pairs` and no torch. `supervise.py` runs it in a child.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgeprism.bundle.manifest import Manifest, Parity, Vision, VisionVariant
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.bundle.writer import BundleWriter
from edgeprism.convert.gate import judge
from edgeprism.convert.gate.data import gate_pictures
from edgeprism.convert.gate.int8 import measure_vision, write_int8
from edgeprism.convert.memory import give_memory_back
from edgeprism.convert.mmproj import peer
from edgeprism.convert.mmproj.graph import write_graph
from edgeprism.convert.mmproj.layout import image_policy, picture_markers
from edgeprism.convert.mmproj.shape import LEAVE_IT, EncoderShape, read_shape
from edgeprism.convert.mmproj.tensors import MmprojTensors
from edgeprism.convert.mmproj.text import compare_text
from edgeprism.convert.options import PairOptions
from edgeprism.convert.vision.pack_onnx import pack_onnx
from edgeprism.convert.vision.quantize import INPUT, OUTPUT
from edgeprism.errors import ModelError, NoGraphError, OutputError, ParityError
from edgeprism.language.model import LanguageModel
from edgeprism.machine.facts import available_cores
from edgeprism.picture.layout import picture_to_layout
from edgeprism.picture.read import Picture
from edgeprism.progress import Progress
from edgeprism.vision.mmproj_checks import check_mmproj
from edgeprism.vision.pair import MMPROJ_FILE

LEAST_GAIN = 1.1  # times libmtmd's speed: less is within what two such measurements differ
_MANY_PATCHES = 2048  # of a tile: then the gate takes every other picture


@dataclass(frozen=True)
class _Job:
    """What the steps share."""

    mmproj: Path
    shape: EncoderShape
    tensors: MmprojTensors
    manifest: Manifest  # of the bundle to be; variants, files and parity are still missing
    work: Path
    progress: Progress
    verdict: judge.Verdict


def build_bundle(pair: Path, out: Path, options: PairOptions, progress: Progress) -> float:
    """Write a bundle with an ONNX graph in the place of a pair's encoder.

    Args:
        pair: The bundle of a pair, which `vision.pair.write_pair` wrote.
        out: The new bundle; it may be `pair`, which it then replaces when it is complete.
        options: Which graphs to write.
        progress: Receives every stage.

    Returns:
        How many times as fast as libmtmd the first graph encodes a tile on this machine.

    Raises:
        NoGraphError: The encoder has no graph; or, unless `options.always`, libmtmd is as fast.
        ParityError: The gate failed. Nothing is written then either.
        ModelError: A file is damaged, or `pair` is another kind of bundle.
    """
    # 1. read the pair's manifest and the encoder's header
    base = manifest_from_bundle(pair)
    lm, mmproj = pair / base.lm.file, pair / MMPROJ_FILE
    if base.vision.mmproj is None or not mmproj.is_file():
        raise ModelError(f"{pair}: not the bundle of a pair.", "Name one that has an mmproj file.")
    shape = read_shape(mmproj, check_mmproj(mmproj, base.vision.n_embd))
    with BundleWriter(out, overwrite=True) as writer:
        work = writer.folder / "work"
        work.mkdir()
        manifest, verdict = _bundle_manifest(base, shape), judge.Verdict()
        job = _Job(mmproj, shape, MmprojTensors(mmproj), manifest, work, progress, verdict)
        model = LanguageModel(lm, threads=available_cores())
        try:
            # 2. libmtmd's layouts and rows, and the float32 graph's against them
            encoded = _compare_with_mtmd(job, model)
            # 3. the variants against the float32 graph
            variants = _write_variants(job, writer.folder, options.vision_quants)
            _require_parity(job)
            _compare_text(job, model, writer.folder / variants[0].file, encoded[0].size)
            # 4. is it worth it?
            ratio = _measure_speed(job, model, writer.folder / variants[0].file, encoded)
        finally:
            model.close()
        if ratio < LEAST_GAIN and not options.always:
            raise NoGraphError(
                f"{mmproj}: a graph gains nothing on this CPU: a tile takes it "
                f"{1 / ratio:.2f} times as long as llama.cpp.",
                LEAVE_IT,
            )
        # 5. the two files, the manifest, and the bundle's own name
        progress.stage("Finishing the bundle")
        shutil.rmtree(work)
        for name in base.files:
            _put(pair / name, writer.folder / name, writer.out)
        writer.finish(_completed(manifest, variants, writer, verdict))
        return ratio


def _completed(manifest: Manifest, variants: list[VisionVariant], writer: BundleWriter,
               verdict: judge.Verdict) -> Manifest:  # fmt: skip
    """Return `manifest` with the fields that are known after writing and measuring."""
    return dataclasses.replace(
        manifest,
        vision=dataclasses.replace(manifest.vision, variants=variants),
        files=writer.file_entries(),
        parity=Parity(True, False, verdict.figures, []),
    )


def _bundle_manifest(pair: Manifest, shape: EncoderShape) -> Manifest:
    """Return the pair's manifest with a graph's vision half, before anything is measured."""
    side = shape.side
    return dataclasses.replace(
        pair,
        image=image_policy(shape),
        vision=Vision(
            variants=[],
            input=INPUT,
            output=OUTPUT,
            grid=[side, side],
            drop_first_patch=False,
            tokens_per_tile=shape.free_tokens[1] if shape.is_free else side**2,
            n_embd=pair.vision.n_embd,
        ),
        lm=dataclasses.replace(
            pair.lm, image_positions="down-across" if _is_multi_axis(pair) else "one-by-one"
        ),
        prompts=dataclasses.replace(pair.prompts, markers=picture_markers(shape)),
        notice="",
    )


def _is_multi_axis(pair: Manifest) -> bool:
    """Return whether the rows of a pair have positions in time, down and across."""
    return pair.vision.mmproj is not None and pair.vision.mmproj.multi_axis


def _gate_tiles(shape: EncoderShape, manifest: Manifest) -> judge.Pixels:
    """Return the tiles that variants are measured on: one array, or one for each shape of tile."""
    if not shape.is_free:
        step = 2 if shape.grid**2 > _MANY_PATCHES else 1
        return gate_pictures(shape.size)[::step]
    layouts = [picture_to_layout(size, manifest) for size in peer.picture_sizes(shape)]
    sizes = [layout.shapes[0] for layout in layouts]
    pictures = gate_pictures(max(map(max, sizes)))
    alone = [
        picture[None, :height, :width]
        for picture, (height, width) in zip(pictures, sizes, strict=False)
    ]
    height, width = sizes[1]
    return [*alone, pictures[len(alone) :, :height, :width]]  # the last ones as one batch


def _compare_with_mtmd(job: _Job, lm: LanguageModel) -> list[peer.MtmdRows]:
    """Compare layouts and rows; return the pictures that libmtmd encoded."""
    manifest = peer.as_mtmd(job.manifest, job.shape)
    job.progress.stage("Encoding with llama.cpp")
    encoded, faults = peer.encode_by_mtmd(lm, job.mmproj, manifest, job.shape)
    figures: dict[str, float] = {}
    if encoded:
        job.progress.stage("Building the graph as llama.cpp runs it")
        graph = write_graph(
            job.tensors, job.shape, manifest.vision.n_embd, job.work / "peer.onnx", as_mtmd=True
        )
        give_memory_back()
        job.progress.stage("Comparing with llama.cpp")
        figures, failures = peer.judge_rows(encoded, graph, manifest, lm.threads)
        faults += failures
        graph.unlink()
        graph.with_name(f"{graph.name}.data").unlink()
    job.verdict.add("vision fp32 against libmtmd", figures, faults)
    _require_parity(job)
    return encoded


def _write_variants(job: _Job, folder: Path, quants: tuple[str, ...]) -> list[VisionVariant]:
    """Write each variant as vision.<quant>.onnx, and measure it against the float32 graph."""
    progress, shape = job.progress, job.shape
    progress.stage("Building the graph")
    graph = write_graph(job.tensors, shape, job.manifest.vision.n_embd, job.work / "graph.onnx")
    give_memory_back()
    pixels = _gate_tiles(shape, job.manifest)
    progress.stage("Computing the vision reference", sum(map(len, judge.batches(pixels))))
    reference = judge.run_vision(graph, pixels, False, progress)
    if not np.isfinite(reference).all():
        job.verdict.add("vision fp32", {}, ["it gives values that are not finite"])
        return []
    variants = []
    for quant in quants:
        out = folder / f"vision.{quant}.onnx"
        if quant.startswith("int8"):
            measured = write_int8(graph, out, quant, pixels, reference, progress)
        else:
            pack_onnx(graph, out)
            measured = measure_vision(out, quant, pixels, reference, progress)
        job.verdict.add(f"vision {quant}", *measured)
        variants.append(VisionVariant(out.name, quant))
        give_memory_back()
    return variants


def _compare_text(job: _Job, lm: LanguageModel, variant: Path, size: tuple[int, int]) -> None:
    """Record how long the first variant's greedy text is the float32 graph's."""
    job.progress.stage("Comparing greedy text")
    pixels = gate_pictures(max(size))[4, : size[1], : size[0]]
    picture = Picture(Image.fromarray(pixels), "", "", size, (), 0.0)
    graphs = job.work / "graph.onnx", variant
    job.verdict.add("greedy text", compare_text(lm, job.manifest, graphs, picture), [])


def _require_parity(job: _Job) -> None:
    """Raise ParityError if a comparison failed."""
    if job.verdict.failures:
        raise ParityError(
            f"{job.mmproj}: its graph does not compute what the file holds:",
            LEAVE_IT,
            job.verdict.failures,
        )


def _measure_speed(
    job: _Job, lm: LanguageModel, graph: Path, encoded: list[peer.MtmdRows]
) -> float:
    """Measure both engines on a few tiles; record and say the figures, return their ratio."""
    job.progress.stage("Measuring both encoders")
    manifest = peer.as_mtmd(job.manifest, job.shape)
    picture = encoded[-1 if job.shape.is_free else 0]
    theirs, ours = peer.seconds_per_tile(lm, job.mmproj, graph, manifest, picture)
    figures = {"libmtmd_seconds_per_tile": theirs, "graph_seconds_per_tile": ours,
               "times_as_fast": theirs / ours, "threads": float(lm.threads)}  # fmt: skip
    job.verdict.add("speed on the converting machine", figures, [])
    for check, values in job.verdict.figures.items():
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        job.progress.say(f"{check}: {shown}")
    return theirs / ours


def _put(source: Path, target: Path, out: Path) -> None:
    """Put a file of the pair into the bundle that becomes `out`: as a link where that is safe.

    A symbolic link into the folder that `out` replaces would lead nowhere.
    """
    real = source.resolve()
    with contextlib.suppress(OSError):
        os.link(real, target)
        return
    if source.is_symlink() and not real.is_relative_to(out.resolve()):
        with contextlib.suppress(OSError):
            target.symlink_to(real)
            return
    try:
        shutil.copyfile(real, target)
    except OSError as error:
        raise OutputError(
            f"{target}: cannot be written: {error.strerror}.", "Free some space."
        ) from error
