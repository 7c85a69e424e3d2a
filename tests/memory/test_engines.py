"""What is counted for a language model against what llama.cpp says that it allocates."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from pathlib import Path

import pytest

from benchmarks.memory.plan import compare
from edgeprism.bundle.gguf_parts import read_model_header
from edgeprism.language.llama import import_llama, repacked_types
from edgeprism.memory.language import LanguageUse, language_parts
from tests.helpers.hollow_lm import Shape, Type, write_hollow_lm

MIB = 1 << 20
_BUFFER = re.compile(r"(compute|output) buffer size\s*=\s*([\d.]+) MiB")
_CACHE = re.compile(r"kv_cache: size =\s+([\d.]+) MiB")
# name → (architecture, dimensions as published, vocabularies shortened where they decide nothing)
SHAPES = {
    "SmolLM2-135M": ("llama", Shape(30, 576, 1536, 9, 3, 64, kind=Type.Q8_0, table=Type.Q8_0,
                                    output=False)),
    "LLaVA-1.5-7B": ("llama", Shape(32, 4096, 11008, 32, 32, 128)),
    "InternLM2-1.8B": ("llama", Shape(24, 2048, 8192, 16, 8, 128)),
    "Qwen3-1.7B": ("qwen3", Shape(28, 2048, 6144, 16, 8, 128, output=False)),
    "Gemma3-4B": ("gemma3", Shape(34, 2560, 10240, 8, 4, 256, output=False)),
}  # fmt: skip
USES = {
    "a caption": LanguageUse(2048),
    "a long context": LanguageUse(8192),
    "whole pictures": LanguageUse(2048, rows_at_once=1024),
    "four texts": LanguageUse(8192, sequences=4),
    "scores kept": LanguageUse(2048, flash_attention=False),
}


def reported(path: Path, use: LanguageUse, outputs: int | None = None) -> dict[str, float]:
    """Let llama.cpp count what it would allocate, without allocating; return bytes by kind."""
    llama, lines = import_llama(), list[str]()
    log = llama.llama_log_callback(lambda _, text, __: lines.append(text.decode()))
    llama.llama_log_set(log, ctypes.c_void_p(0))
    try:
        params = llama.llama_model_default_params()
        params.no_alloc, params.load_mode, params.n_gpu_layers = True, 0, 0
        model = llama.llama_model_load_from_file(os.fsencode(path), params)
        context_params = llama.llama_context_default_params()
        context_params.n_ctx, context_params.n_seq_max = use.cells, use.sequences
        context_params.n_batch = context_params.n_ubatch = use.rows_at_once
        context_params.n_outputs_max = outputs or use.sequences
        context_params.flash_attn_type = -1 if use.flash_attention else 0
        context_params.kv_unified = False
        context = llama.llama_init_from_model(model, context_params)
        weights = float(llama.llama_model_size(model))
        llama.llama_free(context)
        llama.llama_model_free(model)
    finally:
        from edgeprism.language import llama as module

        llama.llama_log_set(module._keep_alive[0], ctypes.c_void_p(0))
    text = "".join(lines)
    sizes = {"model": weights, "KV": sum(map(float, _CACHE.findall(text))) * MIB}
    for kind, mib in _BUFFER.findall(text):
        sizes[kind] = sizes.get(kind, 0.0) + float(mib) * MIB
    return sizes


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hollow")
    return {
        name: write_hollow_lm(folder / f"{name}.gguf", shape, architecture)
        for name, (architecture, shape) in SHAPES.items()
    }


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", SHAPES)
def test_buffers_are_those_of_llama_cpp(hollow: dict[str, Path], name: str, use: str) -> None:
    path, how = hollow[name], USES[use]
    theirs = reported(path, how)
    header = read_model_header(path)
    how = LanguageUse(**{**vars(how), "repacked": repacked_types()})
    parts = language_parts(header, path.stat().st_size, how)
    ours = {part.what: part.size for part in parts if part.needed}
    weights = ours["language weights"] + ours.get("repacked weights", 0)
    assert weights == pytest.approx(theirs["model"], rel=0.001)
    assert ours["KV cache"] == pytest.approx(theirs["KV"], rel=0.001)
    assert ours["compute buffer"] == pytest.approx(theirs["compute"], rel=0.1)
    whole = weights + ours["KV cache"] + ours["compute buffer"] + ours["scores"]
    assert whole == pytest.approx(sum(theirs.values()), rel=0.03)


@pytest.mark.parametrize("cells", [512, 1024])
def test_buffers_of_an_encoder_are_those_of_llama_cpp(tmp_path: Path, cells: int) -> None:
    """FlanT5-XL, as `EncoderContext` has it: a prompt in one batch, every row of it an output."""
    shape = Shape(24, 2048, 5120, 32, 32, 64, vocabulary=32128, context=512)
    path = write_hollow_lm(tmp_path / "t5.gguf", shape, "t5")
    how = LanguageUse(cells, rows_at_once=cells, flash_attention=False, repacked=repacked_types())
    theirs = reported(path, how, outputs=cells)
    parts = language_parts(read_model_header(path), path.stat().st_size, how)
    ours = {part.what: part.size for part in parts if part.needed}
    weights = ours["language weights"] + ours.get("repacked weights", 0)
    assert weights == pytest.approx(theirs["model"], rel=0.001)
    assert ours["KV cache"] == pytest.approx(theirs["KV"], rel=0.001)
    assert ours["compute buffer"] == pytest.approx(theirs["compute"], rel=0.1)


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="what libraries take was measured there",
)
def test_a_caption_takes_what_the_plan_says() -> None:
    """Everything together, in a process of its own: Python, libraries, both engines."""
    for step in compare("nano", None):
        assert abs(step.error) < 0.1, step
