"""Write and measure a language model that ONNX Runtime runs: two graphs and a vocabulary."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np

from edgeprism.bundle.manifest import Manifest
from edgeprism.bundle.manifest_language import Decoder, LanguageModelFile
from edgeprism.convert.gate import data, judge
from edgeprism.convert.language.decoder import CLEAN_UP, CrossGraph, DecoderGraph, DecoderParts
from edgeprism.convert.language.quantize_blocks import quantize_blocks
from edgeprism.convert.language.vocabulary import write_vocabulary
from edgeprism.convert.memory import give_memory_back
from edgeprism.convert.vision.export import export_graph
from edgeprism.convert.vision.pack_onnx import pack_onnx
from edgeprism.language.onnx_decoder import OnnxDecoder
from edgeprism.machine.facts import available_cores
from edgeprism.progress import Progress

DECODER_QUANTS = ("Q8_0", "F32")  # the default first
GRAPH, CROSS, VOCABULARY = "lm.onnx", "lm.cross.onnx", "lm.gguf"


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
    _write_vocabulary(parts, folder / VOCABULARY, manifest.name)
    work = folder / "work"
    work.mkdir()
    for module, weights, name in (
        (DecoderGraph(config), parts.decoder, GRAPH),
        (CrossGraph(config), parts.cross, CROSS),
    ):
        progress.stage(f"Exporting the language model ({name})")
        graph = export_graph(module, weights, work, name.removesuffix(".onnx"))
        write = pack_onnx if quant == "F32" else quantize_blocks
        write(graph, folder / name)
        give_memory_back()
    shutil.rmtree(work)
    decoder = Decoder(GRAPH, CROSS, config.n_layers, config.n_heads, config.head_dim, CLEAN_UP)
    spec = LanguageModelFile(
        VOCABULARY, quant, config.architecture, config.n_embd, config.n_vocab,
        config.context_length, "causal", decoder=decoder,
    )  # fmt: skip
    _measure(parts, spec, folder, manifest, verdict, progress)
    return decoder


def _write_vocabulary(parts: DecoderParts, path: Path, name: str) -> None:
    """Write a GGUF file with the vocabulary and the sizes that the manifest says, and no tensor."""
    config = parts.config
    writer = gguf.GGUFWriter(str(path), config.architecture)
    writer.add_name(name)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.n_embd)
    writer.add_vocab_size(config.n_vocab)
    write_vocabulary(writer, parts.vocabulary)
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
    model = OnnxDecoder(
        folder / VOCABULARY, folder / GRAPH, folder / CROSS, expected=spec,
        row_width=parts.row_width, threads=available_cores(),
    )  # fmt: skip
    try:
        verdict.add("tokenizer", *judge.judge_tokenizer(
            [model.vocabulary.tokenize(text) for text in data.TOKENIZER_TEXTS],
            [parts.reference_ids(text) for text in data.TOKENIZER_TEXTS],
        ))  # fmt: skip
        first = [] if parts.vocabulary.bos is None else [parts.vocabulary.bos]
        most = parts.config.context_length
        texts = [[*first, *parts.reference_ids(text)][:most] for text in data.TEXTS]
        shape = (manifest.vision.tokens_per_tile, parts.row_width)
        rows = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        progress.stage("Computing the language model's reference", len(texts))
        reference = parts.reference_logits(texts, rows, progress.advance)
        progress.stage(f"Measuring the language model at {spec.quant}", len(texts))
        context = model.context(most)
        context.prefill_rows(0, rows, 0)
        logits = []
        for text in texts:
            logits.append(context.logits_of_tokens(text))
            progress.advance()
        context.close()
    finally:
        model.close()
    verdict.add(f"lm {spec.quant}", *judge.judge_lm(spec.quant, logits, reference))
