"""One plain decoder for two engines: both compute the same, and the page says what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.decoders import files, graph, table
from benchmarks.decoders.context import PlainContext, kept_of, open_graph
from benchmarks.page import README, marks
from edgeprism.convert.language.write_gguf import write_gguf
from edgeprism.language.model import LanguageModel
from edgeprism.progress import Progress
from tests.helpers.checkpoints import Spec, write_checkpoint
from tests.helpers.tiny_lm import write_lm

N_TOKENS = 32
PROMPTS = [[int(i) for i in np.random.default_rng(n).integers(3, 400, n)] for n in (7, 90, 41)]


def write_internlm2(folder: Path) -> Path:
    return write_checkpoint(folder, Spec(adapter="none", seed=5)).llm


def write_llama(folder: Path) -> Path:
    write_lm(folder, "vicuna", seed=6)
    return folder


def llama_texts(path: Path) -> list[list[int]]:
    """Return what llama.cpp writes after each prompt, in float32 throughout."""
    lm = LanguageModel(path)
    texts = []
    for prompt in PROMPTS:
        context = lm.context(256, kv_type="f32", flash_attention=False)
        context.prefill_tokens(0, prompt, 0)
        text = [int(context.logits().argmax())]
        while len(text) < N_TOKENS:
            context.step([(0, text[-1], len(prompt) + len(text) - 1)])
            text.append(int(context.logits(0).argmax()))
        texts.append(text)
        context.close()
    lm.close()
    return texts


def onnx_texts(path: Path, gguf: Path) -> list[list[int]]:
    """Return what ONNX Runtime writes after each prompt, all of them together."""
    context = PlainContext(open_graph(path, 1), kept_of(gguf), 256, len(PROMPTS))
    texts = []
    for seq, prompt in enumerate(PROMPTS):
        context.prefill_tokens(seq, prompt, 0)
        texts.append([int(context.logits().argmax())])
    while len(texts[0]) < N_TOKENS:
        ends = [len(prompt) + len(text) - 1 for prompt, text in zip(PROMPTS, texts, strict=True)]
        context.step([(seq, texts[seq][-1], end) for seq, end in enumerate(ends)])
        for seq, text in enumerate(texts):
            text.append(int(context.logits(seq).argmax()))
    return texts


def both(folder: Path, llm: Path, quant: str = "F32") -> tuple[list[list[int]], list[list[int]]]:
    """Return the texts of llama.cpp in float32, and those of ONNX Runtime in `quant`."""
    parts = files.open_parts(llm)
    gguf, exported = folder / "lm.gguf", folder / "lm.onnx"
    write_gguf(gguf, "F32", parts, "tiny", Progress())
    graph.export_decoder(parts, [quant], lambda _: exported)
    return llama_texts(gguf), onnx_texts(exported, gguf)


@pytest.mark.parametrize("write", [write_internlm2, write_llama])
def test_both_engines_write_the_same(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainContext, "N_BATCH", 64)  # one prompt goes in parts
    by_llama, by_onnx = both(tmp_path, write(tmp_path / "c"))
    assert by_llama == by_onnx
    assert all(len(set(text)) > 8 for text in by_llama)
    assert len({tuple(text) for text in by_llama}) == len(by_llama)


def test_a_swapped_matrix_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = {"gate": "ffn_up", "up": "ffn_gate"}
    monkeypatch.setattr(graph, "_LAYER", {**graph._LAYER, **swapped})
    by_llama, by_onnx = both(tmp_path, write_internlm2(tmp_path / "c"))
    assert by_llama != by_onnx


@pytest.mark.parametrize(
    ("quant", "nearest", "farthest"), [("8 bits", 0.001, 0.06), ("4 bits", 0.1, 0.7)]
)
def test_blocks_are_near(quant: str, nearest: float, farthest: float, tmp_path: Path) -> None:
    """And coarser with fewer bits: a wrong order of halves, or another zero, would be far."""
    parts = files.open_parts(write_checkpoint(tmp_path / "c", Spec(adapter="none", calm=True)).llm)
    gguf = tmp_path / "lm.gguf"
    write_gguf(gguf, "F32", parts, "tiny", Progress())
    graph.export_decoder(parts, ["F32", quant], lambda name: tmp_path / f"{name}.onnx")
    logits = []
    for name in ("F32", quant):
        context = PlainContext(open_graph(tmp_path / f"{name}.onnx", 1), kept_of(gguf), 128)
        context.prefill_tokens(0, PROMPTS[1], 0)
        logits.append(context.logits())
    error = np.linalg.norm(logits[1] - logits[0]) / np.linalg.norm(logits[0])
    assert nearest < error < farthest


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_lm(tmp_path, "smollm2")
    with pytest.raises(ValueError, match="no tied matrices"):
        graph.PlainDecoder(files.open_parts(tmp_path).config)


def test_the_page_has_the_kept_figures() -> None:
    text = README.read_text(encoding="utf-8")
    assert table.page_with_tables(text) == text


def test_engines_are_compared_at_equal_bits_round_by_round() -> None:
    def way(engine: str, quant: str, peak: int, *rates: float) -> dict[str, Any]:
        rounds = [dict.fromkeys(table.STAGES, rate) for rate in rates]
        return {"engine": engine, "quant": quant, "file": 10**9, "peak": peak, "rounds": rounds}

    result = {
        "schema": 1, "layers": 24, "tokens": 32, "date": "2026-01-02",
        "machine": {"cpu": "A CPU", "cores": 2, "int8_dot": True}, "versions": {},
        "ways": [way(files.ORT, "4 bits", 10**9, 10.0, 30.0), way(files.ORT, "8 bits", 10**9, 7, 7),
                 way(files.LLAMA, "Q4_0", 2 * 10**9, 20.0, 20.0),
                 way(files.LLAMA, "Q4_K_M", 10**9, 10.0, 10.0),
                 way(files.LLAMA, "Q8_0", 10**9, 14.0, 7.0)],
    }  # fmt: skip
    lines = table.table(result).splitlines()
    assert "| ONNX Runtime | 4 bits | 1,000 MB | 10 / 20 / 30 | 10 / 20 / 30 | " in lines[4]
    (against_q4_0, against_q4_k, against_q8) = lines[-3:]
    assert "4 bits / llama.cpp Q4_0: prefill of 128 0.5 / 1 / 1.5, " in against_q4_0
    assert against_q4_0.endswith("peak 0.50")
    assert "Q4_K_M: prefill of 128 1 / 2 / 3, " in against_q4_k
    assert "8 bits / llama.cpp Q8_0: prefill of 128 0.5 / 0.75 / 1, " in against_q8
    begin, end = marks("decoders")
    assert begin in README.read_text(encoding="utf-8")
    assert end in README.read_text(encoding="utf-8")
    assert json.dumps(result)


def test_a_schema_that_is_not_known_is_refused() -> None:
    with pytest.raises(SystemExit, match="schema 2"):
        table.table({"schema": 2})
