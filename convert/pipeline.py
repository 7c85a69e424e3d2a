"""The steps from published folders to a finished bundle, the same for every family."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from edgeprism.bundle.manifest import Manifest, Parity, VisionVariant
from edgeprism.bundle.manifest_language import LanguageModelFile, RowWeights
from edgeprism.bundle.writer import BundleWriter
from edgeprism.choices import CONVERTED_QUANTS
from edgeprism.convert.discover import not_yet
from edgeprism.convert.family import Family, Value
from edgeprism.convert.gate import judge
from edgeprism.convert.gate.data import TOKENIZER_TEXTS
from edgeprism.convert.gate.int8 import VisionGate, write_auto, write_int8
from edgeprism.convert.gate.rows import logits_after_rows
from edgeprism.convert.gate.tiles import gate_tiles, reference_tokens
from edgeprism.convert.language.decoder import DecoderParts
from edgeprism.convert.language.model import LmParts, Tick
from edgeprism.convert.language.write_decoder import write_decoder
from edgeprism.convert.language.write_gguf import write_adapter, write_gguf
from edgeprism.convert.memory import give_memory_back
from edgeprism.convert.options import ConvertOptions, check_known, check_vision_quants
from edgeprism.convert.parts import (
    ROWS_FILE,
    FamilyParts,
    PublishedCaptioner,
    captioner_parts,
)
from edgeprism.convert.read.card import card_from_folder
from edgeprism.convert.vision.export import export_graph
from edgeprism.convert.vision.pack_onnx import pack_onnx
from edgeprism.convert.write_instructed import write_instructed
from edgeprism.convert.write_row_expert import measure_rows, write_row_expert
from edgeprism.errors import CheckpointError, ModelError, ParityError, UsageError
from edgeprism.language.model import LanguageModel
from edgeprism.machine.facts import available_cores
from edgeprism.progress import Progress

LM_FILE = "lm.gguf"


def convert(family: Family, out: Path, options: ConvertOptions, settings: Mapping[str, Value],
            progress: Progress) -> Manifest:  # fmt: skip
    """Convert the published folders that `settings` name into the bundle `out`.

    Args:
        family: The family of the published checkpoint.
        out: The bundle's folder; a failed conversion leaves nothing there.
        options: The options that all families share.
        settings: Values of the family's own options, by name.
        progress: Receives every stage.

    Returns:
        The manifest of the bundle.

    Raises:
        UsageError: `options`, `settings` or `out` is invalid.
        CheckpointError: A folder is not a checkpoint of the family; lists all tensor faults.
        ParityError: The gate failed, and `options.force` is not set.
    """
    # 1. check the options
    options = check_options(options, family)
    chosen = family.settings(settings)
    with BundleWriter(out, options.overwrite) as writer:
        # 2. read the configurations; only open the weights
        progress.stage("Reading the checkpoints")
        _refuse_unread(chosen.values())
        captioner = family.read(**chosen, progress=progress)
        _refuse_unneeded(family, chosen, captioner)
        # 3. read the captioner's own texts and limits (edgeprism.json)
        card = card_from_folder(captioner.folder)
        # 4. require every tensor that the configurations announce
        captioner.requirements().check()
        # 5. assemble the parts of the bundle
        parts = captioner_parts(family.name, options.name, captioner, card)
        # 6. write the vision graphs and the language model, and measure each
        verdict = judge.Verdict()
        with _faults_of(captioner.folder, writer.folder):
            variants, lm = _write(parts, writer.folder, options, verdict, progress)
        # 7. gate: does the bundle compute what the checkpoint does?
        _require_parity(verdict, options.force, family.lm_quants, progress)
        # 8. write the manifest, and move the bundle to `out`
        progress.stage("Finishing the bundle")
        lm = dataclasses.replace(lm, file=LM_FILE, quant=options.lm_quant)
        manifest = _completed(dataclasses.replace(parts.manifest, lm=lm), variants, verdict, writer)
        writer.finish(manifest)
        return manifest


def _refuse_unread(settings: Iterable[Value]) -> None:
    """Raise CheckpointError for a folder of a captioner that is known to have no family."""
    for folder in settings:
        if isinstance(folder, Path) and (refused := not_yet(folder)):
            raise CheckpointError(*refused)


def _refuse_unneeded(
    family: Family, settings: Mapping[str, Value], captioner: PublishedCaptioner
) -> None:
    """Raise UsageError for a folder that was not read: the layout has no use for it."""
    read = {source.folder for source in captioner.sources}
    for option in family.options:
        folder = settings[option.name]
        if isinstance(folder, Path) and folder not in read:
            raise UsageError(
                f"{folder}: nothing of it is needed, since {captioner.folder} is in a layout that "
                f"holds what `{option.name}` would give.",
                f"Leave `{option.name}` out.",
            )


@contextlib.contextmanager
def _faults_of(published: Path, unfinished: Path) -> Iterator[None]:
    """Raise CheckpointError for what the runtime refuses of the unfinished bundle.

    Its files come from the checkpoint, so there the fault is; they themselves are about to go.
    """
    try:
        yield
    except ModelError as error:
        fault = error.summary.replace(f"{unfinished}{os.sep}", "")
        raise CheckpointError(
            f"{published}: what it makes cannot run: {fault}",
            "The checkpoint may be damaged or not what its files say; if it is as published, "
            "please report it.",
            error.details,
        ) from error


def _write(parts: FamilyParts, folder: Path, options: ConvertOptions, verdict: judge.Verdict,
           progress: Progress) -> tuple[list[VisionVariant], LanguageModelFile]:  # fmt: skip
    """Write and measure both halves; return what the manifest says of them."""
    write = _write_vision if parts.text is None else write_instructed
    variants = write(parts, folder, options, verdict, progress)
    give_memory_back()
    if isinstance(parts.lm, DecoderParts):
        decoder = write_decoder(
            parts.lm, parts.manifest, folder, options.lm_quant, verdict, progress
        )
        return variants, dataclasses.replace(parts.manifest.lm, decoder=decoder)
    lm = _write_lm(parts, parts.lm, folder / LM_FILE, options.lm_quant, verdict, progress)
    return variants, lm


def check_options(options: ConvertOptions, family: Family) -> ConvertOptions:
    """Return the options for a family; raise UsageError for an unknown quantization."""
    check_vision_quants(options.vision_quants, CONVERTED_QUANTS)
    lm_quant = options.lm_quant or family.lm_quants[0]
    check_known((lm_quant,), family.lm_quants, "language-model quantization")
    return dataclasses.replace(options, lm_quant=lm_quant)


def _require_parity(verdict: judge.Verdict, force: bool, lm_quants: Sequence[str],
                    progress: Progress) -> None:  # fmt: skip
    """Report every figure; raise ParityError if the gate failed, unless `force`."""
    for check, figures in verdict.figures.items():
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        progress.say(f"parity {check}: {shown}")
    if verdict.failures and not force:
        raise ParityError(
            f"The bundle does not compute what its checkpoint does: "
            f"{' and '.join(judge.parts_of(verdict.failed))} failed the gate.",
            f"{judge.remedy(verdict.failed, lm_quants)} `force` writes the bundle all the same and "
            "records this.",
            verdict.failures,
        )


def _completed(manifest: Manifest, variants: list[VisionVariant], verdict: judge.Verdict,
               writer: BundleWriter) -> Manifest:  # fmt: skip
    """Return `manifest` with the fields that are known after writing and measuring."""
    return dataclasses.replace(
        manifest,
        vision=dataclasses.replace(manifest.vision, variants=variants),
        files=writer.file_entries(),
        parity=Parity(
            passed=not verdict.failures,
            forced=bool(verdict.failures),
            figures=verdict.figures,
            failures=verdict.failures,
        ),
    )


def _write_vision(parts: FamilyParts, folder: Path, options: ConvertOptions,
                  verdict: judge.Verdict, progress: Progress) -> list[VisionVariant]:  # fmt: skip
    """Write every variant as vision.<quant>.onnx and measure it against the reference."""
    work = folder / "work"
    work.mkdir()
    pixels = gate_tiles(parts.manifest)
    progress.stage("Computing the vision reference", parts.n_vision_ticks)
    reference = reference_tokens(
        lambda tiles: parts.reference_visual_tokens(tiles, progress.advance), pixels
    )
    give_memory_back()  # the reference had weights in float32
    gate = VisionGate(pixels, reference, progress)
    graphs: dict[torch.dtype, Path] = {}
    variants = []
    for quant in sorted(set(options.vision_quants), key=CONVERTED_QUANTS.index):
        dtype = torch.float16 if quant == "fp16" else torch.float32
        if dtype not in graphs:
            progress.stage(f"Exporting the vision graph ({str(dtype).removeprefix('torch.')})")
            graphs[dtype] = export_graph(
                parts.vision(dtype), parts.vision_weights, work, f"graph-{quant}"
            )
        out = folder / f"vision.{quant}.onnx"
        if quant == "auto":
            quant, measured = write_auto(graphs[dtype], folder, gate)
            out = folder / f"vision.{quant}.onnx"
        elif quant.startswith("int8"):
            measured = write_int8(graphs[dtype], out, quant, gate)
        else:
            pack_onnx(graphs[dtype], out)
            measured = gate.measure(out, quant)
        verdict.add(f"vision {quant}", *measured)
        variants.append(VisionVariant(out.name, quant))
    shutil.rmtree(work)
    return variants


def _write_lm(parts: FamilyParts, lm: LmParts, path: Path, quant: str, verdict: judge.Verdict,
              progress: Progress) -> LanguageModelFile:  # fmt: skip
    """Write the language model as a GGUF file and measure it; return what the manifest says."""
    name, said = parts.manifest.name, parts.manifest.lm
    write_gguf(path, quant, lm, name, progress)
    rows = None
    if lm.row_adapter:
        rows = path.with_name(ROWS_FILE)
        write_adapter(rows, quant, lm, name, progress)
        said = dataclasses.replace(said, rows=RowWeights("adapter", rows.name))
    give_memory_back()
    _measure_lm(parts, lm, path, rows, quant, verdict, progress)
    if lm.row_expert is not None:
        write_row_expert(lm, lm.row_expert, path.with_name(ROWS_FILE), quant, name, progress)
        give_memory_back()
        measure_rows(parts, lm, lm.row_expert, path, quant, verdict, progress)
    return said


def _measure_lm(parts: FamilyParts, lm: LmParts, path: Path, rows: Path | None, quant: str,
                verdict: judge.Verdict, progress: Progress) -> None:  # fmt: skip
    threads = available_cores()
    model = LanguageModel(path, expected=parts.manifest.lm, rows=rows, threads=threads)
    try:
        verdict.add("tokenizer", *judge.judge_tokenizer(
            [model.vocabulary.tokenize(text) for text in TOKENIZER_TEXTS],
            [lm.reference_ids(text) for text in TOKENIZER_TEXTS],
        ))  # fmt: skip
        context_length = lm.config.context_length
        first = [] if lm.vocabulary.bos is None else [lm.vocabulary.bos]
        texts = [[*first, *lm.reference_ids(text)][:context_length] for text in parts.gate_texts]
        progress.stage("Computing the language model's reference", lm.config.n_stacked)
        reference = lm.reference_logits(texts, progress.advance)
        progress.stage(f"Measuring the language model at {quant}", len(texts))
        logits = _logits(model, texts, progress.advance, encodes=lm.config.encoder is not None)
        verdict.add(f"lm {quant}", *judge.judge_lm(quant, logits, reference))
        if lm.row_adapter:
            progress.stage("Measuring what picture rows go through", lm.config.n_layers)
            both = logits_after_rows(model, lm, texts, len(first), progress.advance)
            verdict.add(f"rows {quant}", *judge.judge_lm(quant, *both))
    finally:
        model.close()


def _logits(
    model: LanguageModel, texts: list[list[int]], tick: Tick, *, encodes: bool
) -> list[np.ndarray]:
    """Return teacher-forced logits [n_tokens, n_vocab] of each text, with a float32 cache.

    With `encodes` an encoder reads the text first, and the decoder repeats it.
    """
    room = max(map(len, texts)) + int(encodes)  # for the token that every answer begins with
    context = model.context(room, kv_type="f32", flash_attention=False, all_logits=True)
    results = []
    try:
        for text in texts:
            context.clear()
            if encodes:
                context.prefill_tokens(0, text, 0)
            start = len(text) if encodes else 0
            results.append(context.logits_of_tokens(text, start=start))
            tick()
    finally:
        context.close()
    return results
