"""How likely texts are after a prompt, against a forward pass in numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    ranking = generator.rank(request(prompt), TEXTS)
    assert ranking is not None
    assert ranking.prefill_ms > 0
    assert ranking.decode_ms > 0
    return [(likely.total, likely.mean) for likely in ranking.likelihoods]


def check(found: list[tuple[float, float]], prompt: list[int] = PROMPT) -> None:
    """Compare with the reference: what cannot be the likeliest may be told too high."""
    known = [expected(prompt, ids) for ids in TEXTS]
    best = [max(column) for column in zip(*known, strict=True)]
    for likely, (total, mean) in zip(found, known, strict=True):
        exact = abs(likely[0] - total) < 2e-3 and abs(likely[1] - mean) < 2e-4
        assert exact or (total < likely[0] < best[0] and mean < likely[1] < best[1])
    for column in (0, 1):
        order = [likely[column] for likely in found]
        assert order.index(max(order)) == [likely[column] for likely in known].index(best[column])


def test_the_likeliest_are_those_of_the_reference(generator: Generator) -> None:
    check(scores(generator))


def test_one_text_is_read_whole(generator: Generator) -> None:
    for ids in TEXTS:
        ranking = generator.rank(request(), [ids])
        assert ranking is not None
        (likely,) = ranking.likelihoods
        np.testing.assert_allclose((likely.total, likely.mean), expected(PROMPT, ids), rtol=1e-4)


def test_what_cannot_win_is_not_read(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    likeliest = LlamaReference(bundles.lm_parts(SEED)).greedy([PROMPT], 3)
    unlikely = [*TEXTS[4], *TEXTS[1], *TEXTS[4], *TEXTS[1]]
    steps: list[int] = []
    step = Context.step

    def counted(self: Context, tokens: Sequence[tuple[int, int, int]]) -> None:
        steps.extend(token for _, token, _ in tokens)
        step(self, tokens)

    monkeypatch.setattr(Context, "step", counted)
    assert generator.rank(request(max_tokens=16), [likeliest, unlikely]) is not None
    assert steps[:3] == likeliest
    assert len(steps) < 3 + len(unlikely)


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
    assert generator.rank(request(), TEXTS) is None
    monkeypatch.undo()
    assert scores(generator) == whole


def _forget(context: Context, seq: int, length: int, rows: int = 0) -> bool:
    context._llama.llama_memory_seq_rm(context._memory, seq, -1, -1)
    return length == 0
