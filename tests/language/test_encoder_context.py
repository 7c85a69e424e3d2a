"""A language model with an encoder says what transformers' T5 says, alone and with others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprism.bundle.manifest_language import LanguageModelFile
from edgeprism.errors import Interrupted, ModelError, PromptTooLongError, UsageError
from edgeprism.language.context import Context
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Request, Sampling
from edgeprism.machine.cancel import Cancel
from tests.helpers import bundles
from tests.helpers.tiny_t5 import END, N_VOCAB, TinyT5, write_t5, write_t5_gguf

N_TOKENS = 32
WIDTH = 64


def expected_of(t5: TinyT5, **changes: Any) -> LanguageModelFile:
    fields = {
        "file": "t5.gguf", "quant": "F32", "architecture": "t5", "n_embd": WIDTH,
        "n_vocab": N_VOCAB, "context_length": t5.model.config.n_positions,
        "image_attention": "both-ways", "encodes": True,
    }  # fmt: skip
    return LanguageModelFile(**{**fields, **changes})


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> TinyT5:
    return write_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory, t5: TinyT5) -> Iterator[LanguageModel]:
    path = write_t5_gguf(tmp_path_factory.mktemp("gguf") / "t5.gguf", t5)
    model = LanguageModel(path, expected=expected_of(t5))
    yield model
    model.close()


def rows(seed: int, n: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, WIDTH)).astype(np.float32)


def ids(seed: int, n: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(3, N_VOCAB, n)]


def whole(t5: TinyT5, request: Request) -> np.ndarray:
    parts = [t5.embed(p) if isinstance(p, list) else p.values for p in request.prompt]
    return np.concatenate(parts)


def request(*parts: Any, **sampling: Any) -> Request:
    return Request(parts, Sampling(**{"max_tokens": N_TOKENS, "stop_at_end": False, **sampling}))


PROMPTS = [
    request(rows(1), [*ids(1, 9), END]),
    request([*ids(2, 23), END]),
    request(ids(3, 4), rows(3, 11), [*ids(4, 2), END]),
    request(rows(4), [END]),
    request(rows(5, 170), [*ids(5, 140), END]),  # past the farthest kind of relative position
]


def finished(generator: Generator, requests: list[Request]) -> list[Finished]:
    done = [event for event in generator.run(requests) if isinstance(event, Finished)]
    return sorted(done, key=lambda event: event.index)


def make(lm: LanguageModel, **options: Any) -> Generator:
    return Generator(lm, **{"kv_type": "f32", "flash_attention": False, **options})


@pytest.fixture(scope="module")
def answers(t5: TinyT5) -> list[list[int]]:
    """What transformers says to each of PROMPTS, with ggml's GELU."""
    said = [t5.as_ggml().greedy(whole(t5, prompt), N_TOKENS) for prompt in PROMPTS]
    assert len(set(map(tuple, said))) == len(said)  # the prompt is heard
    assert all(len(set(answer)) >= 8 for answer in said)
    return said


def test_greedy_text_is_transformers(lm: LanguageModel, answers: list[list[int]]) -> None:
    generator = make(lm)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        (done,) = finished(generator, [prompt])
        assert done.ids == answer
        assert done.tokens.prompt + done.tokens.visual == prompt.count()
    generator.close()


@pytest.mark.parametrize("parallel", [2, 3])
def test_together_they_say_what_each_says_alone(
    lm: LanguageModel, answers: list[list[int]], parallel: int
) -> None:
    generator = make(lm, parallel=parallel)
    done = finished(generator, PROMPTS)
    assert [each.ids for each in done] == answers
    # and once more, each in the place that another prompt left
    assert [each.ids for each in finished(generator, PROMPTS[::-1])] == answers[::-1]
    generator.close()


def test_a_half_precision_cache_is_close(
    t5: TinyT5, lm: LanguageModel, answers: list[list[int]]
) -> None:
    context = lm.context(512)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        fill(context, prompt)
        logits = context.logits_of_tokens(answer, start=prompt.count())
        expected = t5.logits(whole(t5, prompt), answer)[1:]
        assert np.abs(logits - expected).max() < 5e-3 * np.abs(expected).max()
    context.close()


def test_a_quantized_cache_is_refused(lm: LanguageModel) -> None:
    """llama.cpp would take it, and compute something else."""
    with pytest.raises(UsageError, match="q8_0"):
        lm.context(512, kv_type="q8_0")


def fill(context: Any, prompt: Request) -> None:
    """Put a prompt into sequence 0, part by part."""
    place = 0
    for i, part in enumerate(prompt.prompt):
        if isinstance(part, list):
            context.prefill_tokens(0, part, place, logits=i == len(prompt.prompt) - 1)
        else:
            context.prefill_rows(0, part.values, place, causal=part.causal)
        place += len(part)


def test_logits_are_transformers(t5: TinyT5, lm: LanguageModel, answers: list[list[int]]) -> None:
    """Teacher forced and step by step; the measured error is that of ggml's table of GELU."""
    context = lm.context(512, kv_type="f32", flash_attention=False, all_logits=True)
    prompt, answer = PROMPTS[0], answers[0]
    expected = t5.logits(whole(t5, prompt), answer)
    scale = float(np.abs(expected).max())
    fill(context, prompt)
    np.testing.assert_allclose(context.logits(), expected[0], atol=1e-3 * scale)
    for i in range(4):
        context.step([(0, answer[i], prompt.count() + i)])
        np.testing.assert_allclose(context.logits(0), expected[1 + i], atol=1e-3 * scale)
    fill(context, prompt)
    forced = context.logits_of_tokens(answer, start=prompt.count())
    np.testing.assert_allclose(forced, expected[1:], atol=1e-3 * scale)
    context.close()


# ---- what is kept, and what is not


class Encodings:
    """Counts the prompts that llama.cpp encodes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.lengths: list[int] = []
        encode = Context.encode

        def counted(context: Context, rows: np.ndarray) -> None:
            self.lengths.append(len(rows))
            encode(context, rows)

        patch.setattr(Context, "encode", counted)


def test_the_same_prompt_is_encoded_once(
    lm: LanguageModel, answers: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    encodings, generator = Encodings(monkeypatch), make(lm)
    one, other = PROMPTS[0], PROMPTS[3]
    for prompt, answer in ((one, 0), (one, 0), (other, 3), (one, 0)):
        assert finished(generator, [prompt])[0].ids == answers[answer]
    assert encodings.lengths == [one.count(), other.count(), one.count()]
    generator.close()


def test_prompts_that_begin_alike_are_encoded_whole(
    t5: TinyT5, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last word changes the encoding of the first row, so nothing of it can be kept."""
    encodings, generator = Encodings(monkeypatch), make(lm)
    for word in (7, 8):
        prompt = request(rows(1), [9, word, END])
        (done,) = finished(generator, [prompt])
        assert done.ids == t5.as_ggml().greedy(whole(t5, prompt), N_TOKENS, said=done.ids)
    assert encodings.lengths == [9, 9]
    generator.close()


def test_a_warm_generator_begins_each_answer_anew(lm: LanguageModel, t5: TinyT5) -> None:
    generator = make(lm, warm=True)
    first = request([*ids(1, 9), END])
    (said,) = finished(generator, [first])
    following = request([*ids(1, 9), END, *said.ids[:-1], *ids(2, 3), END])
    (done,) = finished(generator, [following])
    assert done.ids == t5.as_ggml().greedy(whole(t5, following), N_TOKENS, said=done.ids)
    generator.close()


def test_a_context_forgets_and_keeps_no_states(lm: LanguageModel) -> None:
    context = lm.context(512, n_seq=2, kv_type="f32")
    fill(context, PROMPTS[0])
    assert context.native is None
    assert context.state(0, limit=1 << 30) is None
    assert context.keep(0, 3)
    assert not context.keep(0, 4)  # it was forgotten
    assert not context.restore(0, b"state")
    with pytest.raises(ValueError, match="gap"):
        context.prefill_tokens(0, [5], 1)
    context.close()


# ---- what cannot be run


def test_too_long_a_prompt_is_refused_with_numbers(lm: LanguageModel) -> None:
    generator = make(lm)
    with pytest.raises(PromptTooLongError, match="600 tokens; the model reads at most 512"):
        list(generator.run([request([5] * 600)]))
    generator.close()
    context = lm.context(256, kv_type="f32")
    with pytest.raises(PromptTooLongError, match=r"300 tokens or more; .* at most 256"):
        context.prefill_tokens(0, [5] * 300, 0)
    context.prefill_rows(0, rows(1, 200), 0)
    with pytest.raises(PromptTooLongError, match="at most 256"):
        context.prefill_tokens(0, [5] * 57, 200)
    context.prefill_tokens(0, [5] * 56, 200)  # as many as there is room for
    assert np.isfinite(context.logits()).all()
    context.close()


def test_rows_that_do_not_fit_are_refused(lm: LanguageModel) -> None:
    context = lm.context(256)
    with pytest.raises(ModelError, match="width 64"):
        context.prefill_rows(0, np.zeros((3, 65), np.float32), 0)
    with pytest.raises(ModelError, match="positions of their own"):
        context.prefill_rows(0, rows(1, 2), 0, positions=np.zeros((1, 2), np.int32))
    with pytest.raises(ModelError, match="positions of their own"):
        context.prefill_rows(0, rows(1, 2), 0, positions=np.zeros((4, 2), np.int32))
    context.close()


def test_a_file_that_is_removed_in_use_is_named(tmp_path: Path, t5: TinyT5) -> None:
    path = write_t5_gguf(tmp_path / "t5.gguf", t5)
    lm = LanguageModel(path, expected=expected_of(t5))
    context = lm.context(256)
    path.unlink()
    with pytest.raises(ModelError, match="embeddings cannot be read"):
        context.prefill_tokens(0, [5], 0)
    context.close()
    lm.close()


def test_an_interrupted_prompt_ends_and_the_next_is_whole(
    tmp_path: Path, t5: TinyT5, answers: list[list[int]]
) -> None:
    cancel = Cancel()
    path = write_t5_gguf(tmp_path / "t5.gguf", t5)
    lm = LanguageModel(path, expected=expected_of(t5), cancel=cancel)
    generator = make(lm)
    events = generator.run([PROMPTS[0]])
    next(events)
    cancel.set()
    with pytest.raises(Interrupted):
        list(events)
    with pytest.raises(Interrupted):
        list(generator.run([PROMPTS[3]]))
    cancel.clear()
    assert finished(generator, [PROMPTS[0]])[0].ids == answers[0]
    generator.close()
    lm.close()


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"decoder_start_token_id": None}, "no token that begins an answer"),
    ({"decoder_start_token_id": N_VOCAB}, "no token that begins an answer"),
    ({"relative_buckets_count": 1}, "1 kinds of relative positions"),
    ({"model": "llama"}, "a vocabulary of kind 'llama'"),
    ({"precompiled_charsmap": b"\x01\x02\x03"}, "table of characters is damaged"),
    ({"precompiled_charsmap": "text"}, "it holds no bytes"),
    ({"precompiled_charsmap": [1.5]}, "it holds no bytes"),
]


@pytest.mark.parametrize(("changes", "words"), FAULTS)
def test_files_that_would_end_the_process_are_refused(
    tmp_path: Path, t5: TinyT5, changes: dict[str, Any], words: str
) -> None:
    path = write_t5_gguf(tmp_path / "t5.gguf", t5, **changes)
    with pytest.raises(ModelError, match=words):
        LanguageModel(path, expected=expected_of(t5))


def test_the_manifest_says_whether_there_is_an_encoder(
    tmp_path: Path, t5: TinyT5, lm: LanguageModel
) -> None:
    with pytest.raises(ModelError, match="through an encoder"):
        LanguageModel(lm.path)
    with pytest.raises(ModelError, match="through an encoder"):
        LanguageModel(lm.path, expected=expected_of(t5, encodes=False))
    plain = bundles.write_lm(tmp_path / "plain.gguf")
    wrong = expected_of(
        t5, architecture="llama", n_embd=bundles.N_EMBD, n_vocab=bundles.N_VOCAB,
        context_length=bundles.CONTEXT,
    )  # fmt: skip
    with pytest.raises(ModelError, match="llama, which has no encoder"):
        LanguageModel(plain, expected=wrong)


# ---- the comparison sees mistakes


def error_of(t5: TinyT5, lm: LanguageModel) -> float:
    context = lm.context(512, kv_type="f32", flash_attention=False)
    prompt, answer = PROMPTS[4], ids(9, 12)
    fill(context, prompt)
    logits = context.logits_of_tokens(answer, start=prompt.count())
    expected = t5.logits(whole(t5, prompt), answer)[1:]
    context.close()
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def test_without_a_mistake_the_error_is_small(t5: TinyT5, lm: LanguageModel) -> None:
    assert error_of(t5, lm) < 1e-3


def test_another_first_token_is_seen(tmp_path: Path, t5: TinyT5) -> None:
    path = write_t5_gguf(tmp_path / "t5.gguf", t5, decoder_start_token_id=END)
    lm = LanguageModel(path, expected=expected_of(t5))
    assert error_of(t5, lm) > 1e-2
    lm.close()


def test_the_encoders_positions_in_the_decoder_are_seen(tmp_path: Path, t5: TinyT5) -> None:
    """A decoder that looks forwards, too, halves its kinds of positions."""
    wrong = t5.as_ggml()
    decoder, encoder = (
        stack.block[0].layer[0].SelfAttention.relative_attention_bias
        for stack in (wrong.model.decoder, wrong.model.encoder)
    )
    decoder.weight.data.copy_(encoder.weight.data)
    lm = LanguageModel(write_t5_gguf(tmp_path / "t5.gguf", wrong), expected=expected_of(t5))
    assert error_of(t5, lm) > 1e-2
    lm.close()
