"""Damaged and forged models with an encoder are refused, or run: they never end the process.

Whatever passes the checks runs in a forked child, where a native abort fails the test.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.bundle.gguf_checks import gguf_faults
from edgeprism.bundle.manifest_language import LanguageModelFile
from edgeprism.errors import ModelError
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.llama import import_llama
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Request, Sampling
from tests.helpers.children import Outcome, in_child
from tests.helpers.tiny_t5 import END, N_VOCAB, TinyT5, write_t5, write_t5_gguf

WIDTH, CONTEXT = 64, 512
EXPECTED = LanguageModelFile(
    "t5.gguf", "F32", "t5", WIDTH, N_VOCAB, CONTEXT, "both-ways", encodes=True
)


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    import_llama()  # before the forks, so that no child loads it again


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> TinyT5:
    return write_t5(tmp_path_factory.mktemp("t5"), num_layers=1, num_decoder_layers=1)


def use(path: Path) -> list[int]:
    lm = LanguageModel(path, expected=EXPECTED, threads=1)
    ids = lm.vocabulary.tokenize("a ﬁne text №5 with é and 写\n")
    rows = np.ones((4, WIDTH), np.float32)
    generator = Generator(lm, parallel=2)
    sampling = Sampling(max_tokens=5)
    events = list(generator.run([Request((rows, [*ids, END]), sampling)] * 2))
    generator.close()
    lm.close()
    assert isinstance(events[-1], Finished)
    return events[-1].ids


def outcome(path: Path) -> Outcome:
    return in_child(functools.partial(use, path))


def test_a_sound_file_runs(tmp_path: Path, t5: TinyT5) -> None:
    ended = outcome(write_t5_gguf(tmp_path / "t5.gguf", t5))
    assert ended.returncode == 0, ended


@pytest.mark.parametrize(
    "changes",
    [
        {"key_length": 16}, {"value_length": 16}, {"head_count": 0}, {"head_count": 3},
        {"block_count": 2}, {"block_count": 0}, {"feed_forward_length": 90},
        {"relative_buckets_count": 5}, {"relative_buckets_count": 64},
        {"layer_norm_rms_epsilon": -1.0}, {"key_length": None}, {"decoder_start_token_id": 5},
        {"padding_token_id": N_VOCAB}, {"eos_token_id": N_VOCAB}, {"unknown_token_id": N_VOCAB},
        {"unknown_token_id": 9}, {"scores": [0.0]}, {"token_type": [1]}, {"token_type": [99] * 416},
        {"scores": None}, {"token_type": None}, {"scores": [float("nan")] * N_VOCAB},
        {"scores": [float("inf")] * N_VOCAB}, {"precompiled_charsmap": None}, {"tokens": ["a"]},
        {"precompiled_charsmap": [0, 0, 0, 0, 0]}, {"tokens": [f"{i}\ufffe" for i in range(416)]},
    ],
    ids=str,
)  # fmt: skip
def test_numbers_that_do_not_fit(tmp_path: Path, t5: TinyT5, changes: dict[str, Any]) -> None:
    ended = outcome(write_t5_gguf(tmp_path / "t5.gguf", t5, **changes))
    assert ended.orderly, ended


def test_a_token_that_would_fill_the_stack(tmp_path: Path, t5: TinyT5) -> None:
    """llama.cpp calls itself for each byte of a token."""
    path = tmp_path / "t5.gguf"
    tokens = [f"{i}" for i in range(N_VOCAB - 1)]
    ended = outcome(write_t5_gguf(path, t5, tokens=[*tokens, "x" * 100_000]))
    assert ended.orderly, ended
    with pytest.raises(ModelError, match="a token of 1025 bytes"):
        LanguageModel(write_t5_gguf(path, t5, tokens=[*tokens, "x" * 1025]), expected=EXPECTED)
    write_t5_gguf(path, t5, tokens=[*tokens, "x" * 1024])
    assert not gguf_faults(read_gguf_header(path, tokens=True), encodes=True)


def test_headers_damaged_at_random(tmp_path: Path, t5: TinyT5) -> None:
    path = write_t5_gguf(tmp_path / "t5.gguf", t5)
    data, header = path.read_bytes(), read_gguf_header(path, tokens=True)
    end = min(header.starts.values())
    table = data.find(header.charsmap)
    elsewhere = [i for i in range(end) if not table <= i < table + len(header.charsmap)]
    rng = np.random.default_rng(11)
    reached = 0
    for trial in range(200):
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            start = int(rng.integers(0, end) if rng.random() < 0.3 else rng.choice(elsewhere))
            if rng.random() < 0.6:
                damaged[start] ^= 1 << int(rng.integers(0, 8))
            else:
                value = int(rng.choice([0, 1, 255, 2**31, 2**32 - 1]))
                damaged[start : start + 4] = value.to_bytes(4, "little")
        path.write_bytes(damaged)
        try:
            read = read_gguf_header(path, tokens=True)
        except ModelError:
            continue
        if gguf_faults(read, encodes=True):
            continue
        reached += 1
        ended = outcome(path)
        assert ended.orderly, (trial, ended)
    assert reached > 30
