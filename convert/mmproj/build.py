"""A pair of GGUF and mmproj → a bundle with an ONNX graph in the mmproj's place, in steps.

Everything that runs here needs the extra `pairs` and no torch. `supervise.py` runs it in a child.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgeprism.bundle.manifest import Manifest, Parity, Vision, VisionVariant
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.bundle.writer import BundleWriter, manifest_digest
from edgeprism.choices import PAIR_QUANTS
from edgeprism.convert.gate import judge
from edgeprism.convert.gate.data import (
    N_PICTURES,
    SHOWN,
    gate_mosaic,
    gate_picture,
    gate_pictures,
)
from edgeprism.convert.gate.int8 import VisionGate, write_auto, write_int8
from edgeprism.convert.memory import give_memory_back
from edgeprism.convert.mmproj import peer
from edgeprism.convert.mmproj.graph import is_read_alike, write_graph
from edgeprism.convert.mmproj.layout import image_policy, picture_index, picture_markers
from edgeprism.convert.mmproj.reuse import take_files
from edgeprism.convert.mmproj.shape import LEAVE_IT, EncoderShape, read_shape
from edgeprism.convert.mmproj.tensors import MmprojTensors
from edgeprism.convert.mmproj.text import compare_text, picture_rows
from edgeprism.convert.options import LEAST_GAIN, PairOptions, check_vision_quants
from edgeprism.convert.vision.pack_onnx import pack_onnx
from edgeprism.convert.vision.quantize import INPUT, OUTPUT
from edgeprism.errors import EdgePrismError, ModelError, NoGraphError, OutputError, ParityError
from edgeprism.language.model import LanguageModel
from edgeprism.machine.facts import available_cores
from edgeprism.picture.layout import picture_to_layout
from edgeprism.picture.read import Picture
from edgeprism.progress import Progress
from edgeprism.vision.mmproj_checks import check_mmproj
from edgeprism.vision.pair import MMPROJ_FILE

_AGAINST_MTMD = "vision fp32 against libmtmd"
_WORTH_SAYING_S = 45  # how long the gate may take without a word about it


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

    @property
    def is_large(self) -> bool:
        """Whether a pass through the tower serves several checks, see `peer.is_large`."""
        return peer.is_large(self.shape)


@dataclass(frozen=True)
class _Compared:
    """What the float32 graph made, as libmtmd runs it, of the pictures that libmtmd encoded."""

    encoded: list[peer.MtmdRows]
    rows: list[np.ndarray]  # [n_rows, n_embd] of each
    graph: Path | None  # where the model itself is run in the same way


@dataclass(frozen=True)
class _Variants:
    """The graphs that were written, and what the first one's gate saw."""

    entries: list[VisionVariant]
    first: Path
    graph: Path  # the float32 graph that they are made of
    reference: np.ndarray  # its visual tokens
    run: judge.VisionRun  # the first one's


def build_bundle(
    pair: Path, out: Path, options: PairOptions, progress: Progress, digest: str | None = None
) -> float:
    """Write a bundle with an ONNX graph in the place of a pair's encoder.

    Args:
        pair: The bundle of a pair, which `vision.pair.write_pair` wrote.
        out: The new bundle; it may be `pair`, which it then replaces when it is complete.
        options: Which graphs to write.
        progress: Receives every stage.
        digest: Of the pair's manifest when it was written; by default now.

    Returns:
        How many times as fast as libmtmd the first graph encodes a tile on this machine.

    Raises:
        NoGraphError: The encoder has no graph; or, unless `options.always`, libmtmd is as fast.
        ParityError: The gate failed. Nothing is written then either.
        UsageError: `options` names quantizations that are not known, or that exclude each other.
        ModelError: A file is damaged, or `pair` is another kind of bundle.
        OutputError: Another program has changed `pair` or `out` meanwhile; what it wrote stays.
    """
    check_vision_quants(options.vision_quants, PAIR_QUANTS)
    # 1. read the pair's manifest and the encoder's header
    digest = digest or manifest_digest(pair)
    base, mmproj = manifest_from_bundle(pair), pair / MMPROJ_FILE
    if base.vision.mmproj is None or not mmproj.is_file():
        raise ModelError(f"{pair}: not the bundle of a pair.", "Name one that has an mmproj file.")
    shape = read_shape(mmproj, check_mmproj(mmproj, base.vision.n_embd))
    with BundleWriter(out, overwrite=True) as writer, _named_after(pair, writer):
        # the files as they are now: what another program puts at `pair` later is not mixed in
        take_files(pair, digest, base.files, writer)
        lm, mmproj = writer.folder / base.lm.file, writer.folder / MMPROJ_FILE
        work = writer.folder / "work"
        work.mkdir()
        manifest, verdict = _bundle_manifest(base, shape), judge.Verdict()
        job = _Job(mmproj, shape, MmprojTensors(mmproj), manifest, work, progress, verdict)
        model = LanguageModel(lm, threads=available_cores())
        try:
            # 2. libmtmd's layouts and rows, and the float32 graph's against them
            encoded = _encode_by_mtmd(job, model)
            pixels = _gate_tiles(job, encoded)
            _say_how_long(job, encoded, pixels, options.vision_quants)
            compared = _compare_rows(job, model, encoded)
            # 3. the variants against the float32 graph
            gate, graph = _vision_gate(job, pixels, compared)
            variants = _write_variants(job, gate, graph, writer.folder, options.vision_quants)
            _require_parity(job)
            _compare_text(job, model, variants, encoded[0])
            # 4. is it worth it?
            ratio = _measure_speed(job, model, variants, encoded)
        finally:
            model.close()
        _require_gain(job, ratio, options)
        # 5. the manifest, and the bundle's own name
        progress.stage("Finishing the bundle")
        shutil.rmtree(work)
        writer.finish(_completed(manifest, variants.entries, writer, verdict))
        return ratio


def _require_gain(job: _Job, ratio: float, options: PairOptions) -> None:
    """Raise NoGraphError if the graph is not faster, and only a faster one is wanted."""
    if ratio < LEAST_GAIN and not options.always:
        raise NoGraphError(
            f"{job.mmproj}: a graph gains nothing on this CPU: a tile takes it "
            f"{1 / ratio:.2f} times as long as llama.cpp.",
            LEAVE_IT,
        )


@contextlib.contextmanager
def _named_after(pair: Path, writer: BundleWriter) -> Iterator[None]:
    """Let errors name a file by its place in the bundle, not in the writer's temporary folder."""
    try:
        yield
    except EdgePrismError as error:
        named = str(writer.out if isinstance(error, OutputError) else pair)
        error.summary = error.summary.replace(str(writer.folder), named)
        error.details = tuple(text.replace(str(writer.folder), named) for text in error.details)
        raise


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
    grid = [1, shape.queries] if shape.queries else [shape.side, shape.side]
    return dataclasses.replace(
        pair,
        image=image_policy(shape),
        vision=Vision(
            variants=[],
            input=INPUT,
            output=OUTPUT,
            grid=grid,
            drop_first_patch=False,
            tokens_per_tile=shape.queries or shape.free_tokens[1] or shape.side**2,
            n_embd=pair.vision.n_embd,
        ),
        lm=dataclasses.replace(
            pair.lm, image_positions="down-across" if _is_multi_axis(pair) else "one-by-one"
        ),
        prompts=dataclasses.replace(
            pair.prompts,
            markers=picture_markers(shape),
            several=pair.prompts.several
            and dataclasses.replace(pair.prompts.several, index=picture_index(shape)),
        ),
        notice="",
    )


def _is_multi_axis(pair: Manifest) -> bool:
    """Return whether the rows of a pair have positions in time, down and across."""
    return pair.vision.mmproj is not None and pair.vision.mmproj.multi_axis


def _encode_by_mtmd(job: _Job, lm: LanguageModel) -> list[peer.MtmdRows]:
    """Return the pictures that libmtmd encoded; raise ParityError if layouts differ."""
    more = ": its time shows how long the rest takes" if job.is_large else ""
    job.progress.stage(f"Encoding with llama.cpp{more}")
    manifest = peer.as_mtmd(job.manifest, job.shape)
    encoded, faults = peer.encode_by_mtmd(lm, job.mmproj, manifest, job.shape)
    if faults:
        job.verdict.add(_AGAINST_MTMD, {}, faults)
        _require_parity(job)
    return encoded


def _gate_tiles(job: _Job, encoded: list[peer.MtmdRows]) -> judge.Pixels:
    """Return the tiles that variants are measured on: one array, or one for each shape of tile.

    Of a large tower they are those that libmtmd encoded, so that one pass through the graph serves
    every check, and one in which all that the gate's pictures hold is side by side.
    """
    if job.is_large:
        return [tile[None] for tile in (*encoded[0].tiles, gate_mosaic(job.shape.size))]
    if not job.shape.is_free:
        return gate_pictures(job.shape.size)
    layouts = [picture_to_layout(size, job.manifest) for size in peer.picture_sizes(job.shape)]
    sizes = [layout.shapes[0] for layout in layouts]
    together = range(len(sizes), N_PICTURES)  # the last ones, as one batch
    tiles = [_gate_tile(i, shape)[None] for i, shape in enumerate(sizes)]
    return [*tiles, np.stack([_gate_tile(i, sizes[1]) for i in together])]


def _gate_tile(i: int, shape: tuple[int, int]) -> np.ndarray:
    """Return a part [height, width, 3] of a picture of the gate."""
    return gate_picture(max(shape), i)[: shape[0], : shape[1]]


def _say_how_long(
    job: _Job, encoded: list[peer.MtmdRows], pixels: judge.Pixels, quants: tuple[str, ...]
) -> None:
    """Say how long the gate will take if it is long, from the time that libmtmd took."""
    done, first = sum(picture.pixels for picture in encoded), encoded[0].pixels
    tiles = sum(batch.size // 3 for batch in judge.batches(pixels))
    to_come = done + (1 + len(quants)) * tiles
    if not job.is_large:
        to_come += 2 * first + 8 * _timed(job, encoded).pixels  # the text, and some rounds
    elif is_read_alike(job.shape):
        to_come -= first
    seconds = to_come * sum(picture.seconds for picture in encoded) / done
    if seconds >= _WORTH_SAYING_S:
        minutes = max(1, round(seconds / 60))
        least = "at least" if "auto" in quants else "about"  # it searches by trying
        job.progress.say(
            f"Comparing a faster encoder with llama.cpp's takes {least} {minutes} "
            f"{'minute' if minutes == 1 else 'minutes'} on this machine, once for this model."
        )


def _compare_rows(job: _Job, lm: LanguageModel, encoded: list[peer.MtmdRows]) -> _Compared:
    """Compare the float32 graph's rows with libmtmd's; raise ParityError if they differ."""
    job.progress.stage("Building the graph as llama.cpp runs it")
    manifest = peer.as_mtmd(job.manifest, job.shape)
    graph = write_graph(
        job.tensors, job.shape, manifest.vision.n_embd, job.work / "peer.onnx", as_mtmd=True
    )
    give_memory_back()
    job.progress.stage("Comparing with llama.cpp")
    rows = peer.graph_rows(encoded, graph, manifest, lm.threads)
    job.verdict.add(_AGAINST_MTMD, *peer.judge_rows(encoded, rows))
    _require_parity(job)
    if is_read_alike(job.shape):
        return _Compared(encoded, rows, graph)
    graph.unlink()
    graph.with_name(f"{graph.name}.data").unlink()
    return _Compared(encoded, rows, None)


def _vision_gate(job: _Job, pixels: judge.Pixels, compared: _Compared) -> tuple[VisionGate, Path]:
    """Return the tiles with the float32 graph's visual tokens, and this graph."""
    graph = compared.graph
    if graph is None:
        job.progress.stage("Building the graph")
        n_embd = job.manifest.vision.n_embd
        graph = write_graph(job.tensors, job.shape, n_embd, job.work / "graph.onnx")
        give_memory_back()
    known = None
    picture, left = compared.encoded[0], pixels
    if job.is_large and compared.graph is not None:
        known = np.empty_like(compared.rows[0])
        known[picture.layout.rows] = compared.rows[0]  # as the tiles have them
        left = pixels[picture.layout.n_tiles :]
    job.progress.stage("Computing the vision reference", sum(map(len, judge.batches(left))))
    reference = judge.run_vision(graph, left, False, job.progress).tokens
    if known is not None:
        reference = np.concatenate([known[None], reference], axis=1)
    if not np.isfinite(reference).all():
        job.verdict.add("vision fp32", {}, ["it gives values that are not finite"])
        _require_parity(job)
    return VisionGate(pixels, reference, job.progress), graph


def _write_variants(
    job: _Job, gate: VisionGate, graph: Path, folder: Path, quants: tuple[str, ...]
) -> _Variants:
    """Write each variant as vision.<quant>.onnx, and measure it against the float32 graph."""
    entries, runs = [], []
    for chosen in quants:
        quant = chosen
        out = folder / f"vision.{quant}.onnx"
        if quant == "auto":
            quant, measured = write_auto(graph, folder, gate)
            out = folder / f"vision.{quant}.onnx"
        elif quant.startswith("int8"):
            measured = write_int8(graph, out, quant, gate)
        else:
            pack_onnx(graph, out)
            measured = gate.measure(out, quant)
        job.verdict.add(f"vision {quant}", *measured)
        entries.append(VisionVariant(out.name, quant))
        runs.append(gate.last)
        give_memory_back()
    return _Variants(entries, folder / entries[0].file, graph, gate.reference, runs[0])


def _compare_text(
    job: _Job, lm: LanguageModel, variants: _Variants, picture: peer.MtmdRows
) -> None:
    """Record how long the first variant's greedy text is the float32 graph's."""
    job.progress.stage("Comparing greedy text")
    size, layout = picture.size, picture.layout
    if job.is_large:  # the gate's first tiles are this picture's
        ours, theirs = (
            tokens[0][layout.rows] for tokens in (variants.reference, variants.run.tokens)
        )
    else:
        pixels = gate_picture(max(size), SHOWN)[: size[1], : size[0]]
        rgb = Picture(Image.fromarray(pixels), "", "", size, (), 0.0)
        layout = picture_to_layout(size, job.manifest)
        ours, theirs = (
            picture_rows(graph, job.manifest, rgb, layout)
            for graph in (variants.graph, variants.first)
        )
    job.verdict.add("greedy text", compare_text(lm, job.manifest, layout, (ours, theirs)), [])


def _require_parity(job: _Job) -> None:
    """Raise ParityError if a comparison failed."""
    if job.verdict.failures:
        raise ParityError(
            f"{job.mmproj}: its graph does not compute what the file holds:",
            LEAVE_IT,
            job.verdict.failures,
        )


def _timed(job: _Job, encoded: list[peer.MtmdRows]) -> peer.MtmdRows:
    """Return the picture that both engines are timed on."""
    return encoded[-1 if job.shape.is_free else 0]


def _measure_speed(
    job: _Job, lm: LanguageModel, variants: _Variants, encoded: list[peer.MtmdRows]
) -> float:
    """Measure both engines on a few tiles; record and say the figures, return their ratio."""
    job.progress.stage("Measuring both encoders")
    picture = _timed(job, encoded)
    # the gate runs "int8-full" so that its products are exact, which is slow
    if job.is_large and variants.entries[0].quant != "int8-full":
        theirs, ours = peer.seconds_of_passes(lm, job.mmproj, picture, variants.run.seconds)
    else:
        manifest = peer.as_mtmd(job.manifest, job.shape)
        theirs, ours = peer.seconds_per_tile(lm, job.mmproj, variants.first, manifest, picture)
    figures = {"libmtmd_seconds_per_tile": theirs, "graph_seconds_per_tile": ours,
               "times_as_fast": theirs / ours, "threads": float(lm.threads)}  # fmt: skip
    job.verdict.add("speed on the converting machine", figures, [])
    for check, values in job.verdict.figures.items():
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        job.progress.say(f"{check}: {shown}")
    return theirs / ours
