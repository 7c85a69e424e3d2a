"""Tokens as rows: a prompt of tiles and marks goes through the model in one run."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edgeprism.language.generator import Finished, Generator
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Request, Rows, Sampling, segments_to_parts
from edgeprism.segments import ImageRows, Segment, Tokens
from tests.helpers import bundles

SHAPE = bundles.LmShape(n_embd=256, n_head=4, n_layer=2, n_ff=64)
IDS = [5, 300, 7, 5]
Kind = gguf.GGMLQuantizationType


def table(kind: Kind) -> np.ndarray:
    """Return a table of token embeddings as `kind` stores it, small numbers of both signs."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((bundles.N_VOCAB, SHAPE.n_embd)).astype(np.float32)
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:  # gguf reads this type only: any bytes are numbers
        _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        packed = rng.integers(0, 256, (bundles.N_VOCAB, block_bytes), dtype=np.uint8)
        scales = rng.uniform(0.001, 0.01, (bundles.N_VOCAB, 2)).astype(np.float16).view(np.uint8)
        first = kind not in (Kind.Q2_K, Kind.Q3_K, Kind.Q6_K)  # where a block has its scales
        packed[:, :4] = scales if first else packed[:, :4]
        packed[:, -4:] = packed[:, -4:] if first else scales
        return packed


def model(path: Path, kind: Kind = Kind.F32, architecture: str = "llama") -> LanguageModel:
    parts = bundles.lm_parts(shape=SHAPE)
    parts.metadata = {
        key.replace("llama.", f"{architecture}.", 1) if key.startswith("llama.") else key: value
        for key, value in parts.metadata.items()
    }
    parts.architecture = architecture
    parts.tensors["token_embd.weight"] = table(kind)
    if architecture == "qwen3":
        for name in ("blk.0.attn_q_norm", "blk.0.attn_k_norm", "blk.1.attn_q_norm",
                     "blk.1.attn_k_norm"):  # fmt: skip
            parts.tensors[f"{name}.weight"] = np.ones(SHAPE.n_embd // SHAPE.n_head, np.float32)
    if kind != Kind.F32:
        parts.quants["token_embd.weight"] = kind
    return LanguageModel(parts.write(path / "lm.gguf"))


@pytest.mark.parametrize(
    "kind",
    [Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0,
     Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K],
)  # fmt: skip
def test_rows_are_what_the_file_holds(tmp_path: Path, kind: Kind) -> None:
    lm = model(tmp_path, kind)
    rows = lm.embed(IDS)
    assert rows is not None
    np.testing.assert_allclose(rows, gguf.quants.dequantize(table(kind), kind)[IDS], rtol=1e-6)
    lm.close()


def tiles() -> list[Segment]:
    """Return a prompt of three tiles, each behind a mark, and a question."""
    marks = [Tokens((5, 6)), Tokens((7,)), Tokens((300, 5, 8))]
    runs = [ImageRows(4 * i, 4 * i + 4) for i in range(3)]
    return [*(each for pair in zip(marks, runs, strict=True) for each in pair), Tokens((9, 10))]


def visual_tokens() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((12, SHAPE.n_embd)).astype(np.float32)


def greedy(lm: LanguageModel, parts: tuple[list[int] | Rows, ...]) -> Finished:
    generator = Generator(lm, kv_type="f32", flash_attention=False)
    request = Request(parts, Sampling(max_tokens=32, stop_at_end=False))
    *_, finished = generator.run([request])
    generator.close()
    assert isinstance(finished, Finished)
    return finished


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "internlm2"])
def test_one_run_gives_the_text_of_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    lm = model(tmp_path, architecture=architecture)
    joined = segments_to_parts(lm, tiles(), visual_tokens(), add_bos=True)
    assert [len(part) for part in joined] == [3, 12 + 1 + 3, 2]
    one = greedy(lm, joined)
    monkeypatch.setattr(LanguageModel, "embed", lambda *_: None)
    many = greedy(lm, segments_to_parts(lm, tiles(), visual_tokens(), add_bos=True))
    assert one.ids == many.ids
    assert one.tokens == many.tokens
    assert (one.tokens.visual, one.tokens.prompt) == (12, 9)
    lm.close()


def test_embeddings_that_are_scaled_stay_with_llama_cpp(tmp_path: Path) -> None:
    lm = model(tmp_path)
    for header in (
        {"general.architecture": "gemma"},
        {"llama.embedding_scale": 12.0},
    ):
        lm.header.metadata.update(header)
        assert lm.embed(IDS) is None
        assert len(segments_to_parts(lm, tiles(), visual_tokens(), add_bos=True)) == 7
    lm.close()


def test_a_file_that_is_removed_in_use_leaves_tokens_to_llama_cpp(tmp_path: Path) -> None:
    lm = model(tmp_path)
    lm.path.unlink()
    assert lm.embed(IDS) is None
    lm.close()


def test_only_short_texts_between_plain_rows_are_joined(tmp_path: Path) -> None:
    lm = model(tmp_path)
    rows = ImageRows(0, 4), ImageRows(4, 8)
    seen = ImageRows(4, 8, causal=False)
    for between, second in ((Tokens((5,) * 17), rows[1]), (Tokens((5,)), seen)):
        segments: list[Segment] = [rows[0], between, second, Tokens((9,))]
        assert len(segments_to_parts(lm, segments, visual_tokens(), add_bos=False)) == 4
    wider = np.zeros((12, SHAPE.n_embd + 1), np.float32)
    assert len(segments_to_parts(lm, tiles(), wider, add_bos=False)) == 7
    lm.close()
