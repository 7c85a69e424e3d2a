"""How likely texts are after a prompt, against a forward pass in numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgeprism.language.context import Context
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Request, Sampling
from tests.helpers import bundles
from tests.helpers.llama_reference import LlamaReference

SEED = 3
PROMPT = [1, bundles.IM_START, *bundles.piece_ids("▁a", "▁boat"), bundles.LINE_FEED]
TEXTS = [
    bundles.piece_ids("▁red"),
    bundles.piece_ids("▁a", "▁red", "▁dog"),
    bundles.piece_ids("▁a", "▁red", "▁boat"),
    bundles.piece_ids("▁a"),
    bundles.piece_ids("▁on", "▁the", "▁sea"),
    bundles.piece_ids("▁a", "▁red", "▁dog"),
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    path = bundles.write_lm(tmp_path_factory.mktemp("ranking") / "lm.gguf", SEED)
    it = LanguageModel(path, threads=1)
    yield it
    it.close()


@pytest.fixture
def generator(lm: LanguageModel) -> Iterator[Generator]:
    it = Generator(lm, kv_type="f32", flash_attention=False)
    yield it
    it.close()


def request(prompt: list[int] = PROMPT, max_tokens: int = 8) -> Request:
    return Request((prompt,), Sampling(max_tokens=max_tokens))


def expected(prompt: list[int], ids: list[int]) -> tuple[float, float]:
    """Return the log-probability of a text and the end behind it: whole, and on average."""
    logits = LlamaReference(bundles.lm_parts(SEED)).logits([[*prompt, *ids]])
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = [*ids, bundles.IM_END]
    each = [logs[len(prompt) - 1 + i][token] for i, token in enumerate(wanted)]
    return float(np.sum(each)), float(np.mean(each))


def scores(generator: Generator, prompt: list[int] = PROMPT) -> list[tuple[float, float]]:
    ranking = generator.rank(request(prompt), [[ids] for ids in TEXTS])
    assert ranking is not None
    assert ranking.prefill_ms > 0
    assert ranking.decode_ms > 0
    return [(likely.total, likely.mean) for likely in ranking.likelihoods]


def check(found: list[tuple[float, float]], prompt: list[int] = PROMPT) -> None:
    known = [expected(prompt, ids) for ids in TEXTS]
    np.testing.assert_allclose(found, known, atol=2e-3, rtol=1e-4)


def test_the_likelihoods_are_those_of_the_reference(generator: Generator) -> None:
    check(scores(generator))


def test_what_texts_begin_with_alike_is_read_once(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = Context.logits_of_tokens

    def counted(self: Context, tokens: list[int], *, seq: int = 0, start: int = 0) -> np.ndarray:
        read.extend(tokens)
        return original(self, tokens, seq=seq, start=start)

    monkeypatch.setattr(Context, "logits_of_tokens", counted)
    assert generator.rank(request(), [[ids] for ids in TEXTS[1:4]]) is not None
    assert read == [*TEXTS[1], TEXTS[2][-1]]


def test_a_text_longer_than_what_is_read_at_once(generator: Generator) -> None:
    ids = bundles.piece_ids("▁a", "▁red", "▁dog", "▁on", "▁the", "▁sea") * 3
    ranking = generator.rank(request(max_tokens=24), [[TEXTS[0]], [ids]])
    assert ranking is not None
    likely = ranking.likelihoods[1]
    np.testing.assert_allclose((likely.total, likely.mean), expected(PROMPT, ids), rtol=1e-4)


def test_of_several_spellings_the_one_that_begins_likelier_counts(generator: Generator) -> None:
    ranking = generator.rank(request(), [TEXTS[:1], TEXTS[:2], [TEXTS[4], TEXTS[1]], TEXTS[1:2]])
    assert ranking is not None
    red, either, other, dog = ranking.likelihoods
    assert red != dog
    assert either in (red, dog)
    logits = LlamaReference(bundles.lm_parts(SEED)).logits([PROMPT])[-1]
    assert (either == red) == (logits[TEXTS[0][0]] > logits[TEXTS[1][0]])
    assert (other == dog) == (logits[TEXTS[1][0]] > logits[TEXTS[4][0]])


def test_each_prompt_has_its_own_scores_and_answers_are_not_disturbed(
    lm: LanguageModel, generator: Generator
) -> None:
    other = [*PROMPT, *bundles.piece_ids("▁sea")]

    def answer(it: Generator) -> str:
        (done,) = (e for e in it.run([request()]) if isinstance(e, Finished))
        return done.text

    first = scores(generator)
    text = answer(generator)
    check(scores(generator, other), other)
    assert scores(generator) == first
    alone = Generator(lm, kv_type="f32", flash_attention=False)
    assert answer(alone) == text == answer(generator)
    alone.close()


def test_a_model_that_cannot_go_back_ranks_nothing(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scores(generator)
    monkeypatch.setattr(Context, "keep", _forget)
    assert generator.rank(request(), [[ids] for ids in TEXTS]) is None
    monkeypatch.undo()
    assert scores(generator) == whole


def _forget(context: Context, seq: int, length: int, rows: int = 0) -> bool:
    context._llama.llama_memory_seq_rm(context._memory, seq, -1, -1)
    return length == 0
