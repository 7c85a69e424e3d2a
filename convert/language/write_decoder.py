"""Write and measure a language model that ONNX Runtime runs: its graphs and its GGUF file."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np

from edgeprism.bundle.manifest import Manifest
from edgeprism.bundle.manifest_language import Decoder, LanguageModelFile
from edgeprism.convert.gate import data, judge
from edgeprism.convert.language.decoder import DecoderParts
from edgeprism.convert.language.quantize_blocks import quantize_blocks
from edgeprism.convert.language.vocabulary import write_vocabulary
from edgeprism.convert.language.write_gguf import DIRECT, write_tensors
from edgeprism.convert.memory import give_memory_back
from edgeprism.convert.vision.export import export_graph
from edgeprism.convert.vision.pack_onnx import pack_onnx
from edgeprism.language.onnx_decoder import OnnxDecoder
from edgeprism.language.row_decoder import RowDecoder
from edgeprism.machine.facts import available_cores
from edgeprism.progress import Progress

DECODER_QUANTS = ("Q8_0", "F32")  # the default first
GRAPH, CROSS, VOCABULARY = "lm.onnx", "lm.cross.onnx", "lm.gguf"
_FEW_ROWS = 64  # of a picture whose rows stand among the tokens


def write_decoder(
    parts: DecoderParts,
    manifest: Manifest,
    folder: Path,
    quant: str,
    verdict: judge.Verdict,
    progress: Progress,
) -> Decoder:
    """Write the language model into `folder` and measure it; return what the manifest says of it.

    Args:
        parts: The language model.
        manifest: The bundle's manifest so far.
        folder: The bundle's folder.
        quant: One of DECODER_QUANTS.
        verdict: Receives the figures.
        progress: Receives the stages.
    """
    config = parts.config
    _write_vocabulary(parts, folder / VOCABULARY, manifest.name, quant, progress)
    work = folder / "work"
    work.mkdir()
    graphs = [(config.graph(), parts.decoder, GRAPH)]
    if parts.cross:
        graphs.append((parts.cross.graph, parts.cross.weights, CROSS))
    for module, weights, name in graphs:
        progress.stage(f"Exporting the language model ({name})")
        graph = export_graph(module, weights, work, name.removesuffix(".onnx"))
        write = pack_onnx if quant == "F32" else quantize_blocks
        write(graph, folder / name)
        give_memory_back()
    shutil.rmtree(work)
    decoder = Decoder(
        GRAPH, CROSS if parts.cross else "", config.n_layers, config.n_heads, config.head_dim,
        config.clean_up,
    )  # fmt: skip
    spec = LanguageModelFile(
        VOCABULARY, quant, config.architecture, config.n_embd, config.n_vocab,
        config.context_length, "causal", decoder=decoder,
    )  # fmt: skip
    _measure(parts, spec, folder, manifest, verdict, progress)
    return decoder


def _write_vocabulary(
    parts: DecoderParts, path: Path, name: str, quant: str, progress: Progress
) -> None:
    """Write a GGUF file: the vocabulary, the manifest's sizes, and the embeddings if it has any."""
    config = parts.config
    writer = gguf.GGUFWriter(str(path), config.architecture)
    writer.add_name(name)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.n_embd)
    writer.add_vocab_size(config.n_vocab)
    write_vocabulary(writer, parts.vocabulary)
    if parts.embedding is not None:
        checkpoint, (target, _) = parts.checkpoint, DIRECT[quant]
        write_tensors(
            writer, [parts.embedding], target, checkpoint.folder, checkpoint.read_float32,
            "embeddings", progress,
        )  # fmt: skip
        return
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _measure(
    parts: DecoderParts,
    spec: LanguageModelFile,
    folder: Path,
    manifest: Manifest,
    verdict: judge.Verdict,
    progress: Progress,
) -> None:
    """Compare tokenizer and logits with the published ones, for rows that are drawn at random."""
    model = _open(parts, spec, folder)
    try:
        verdict.add("tokenizer", *judge.judge_tokenizer(
            [model.vocabulary.tokenize(text) for text in parts.tokenizer_texts],
            [parts.reference_ids(text) for text in parts.tokenizer_texts],
        ))  # fmt: skip
        first = [] if parts.vocabulary.bos is None else [parts.vocabulary.bos]
        n_rows = manifest.vision.tokens_per_tile
        n_rows = n_rows if model.rows_apart else min(n_rows, _FEW_ROWS)
        start = 0 if model.rows_apart else n_rows
        most = parts.config.context_length - start
        texts = [[*first, *parts.reference_ids(text)][:most] for text in data.TEXTS]
        shape = (n_rows, parts.row_width)
        rows = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        progress.stage("Computing the language model's reference", parts.n_ticks or len(texts))
        reference = parts.reference_logits(texts, rows, progress.advance)
        progress.stage(f"Measuring the language model at {spec.quant}", len(texts))
        context = model.context(start + max(map(len, texts)))
        context.prefill_rows(0, rows, 0)
        logits = []
        for text in texts:
            logits.append(context.logits_of_tokens(text, start=start))
            progress.advance()
        context.close()
    finally:
        model.close()
    verdict.add(f"lm {spec.quant}", *judge.judge_lm(spec.quant, logits, reference))


def _open(parts: DecoderParts, spec: LanguageModelFile, folder: Path) -> OnnxDecoder:
    path, graph, threads = folder / VOCABULARY, folder / GRAPH, available_cores()
    if parts.cross is None:
        return RowDecoder(path, graph, expected=spec, threads=threads)
    return OnnxDecoder(
        path, graph, folder / CROSS, expected=spec, row_width=parts.row_width, threads=threads
    )
