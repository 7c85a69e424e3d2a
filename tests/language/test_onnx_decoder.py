"""A decoder in ONNX that attends to a picture's rows, against the same in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprism.errors import Interrupted, ModelError, PromptTooLongError, UsageError
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.onnx_decoder import OnnxContext, OnnxDecoder
from edgeprism.language.request import Request, Rows, Sampling
from tests.helpers import tiny_decoder as tiny

PROMPT = [tiny.START, 120, 150, 130, 141]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def lm(folder: Path) -> Iterator[OnnxDecoder]:
    lm = opened(folder)
    yield lm
    lm.close()


def opened(folder: Path, **changes: Any) -> OnnxDecoder:
    files = [folder / name for name in ("lm.gguf", "lm.onnx", "lm.cross.onnx")]
    return OnnxDecoder(*files, expected=tiny.SPEC, row_width=tiny.ROW_WIDTH, **changes)


def rows_of(number: int, n: int = 9) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.standard_normal((n, tiny.ROW_WIDTH)).astype(np.float32)


def request(rows: np.ndarray, ids: list[int] = PROMPT, **sampling: Any) -> Request:
    sampling = {"max_tokens": 20, "stop_at_end": False, **sampling}
    return Request((Rows(rows, apart=True), ids), Sampling(**sampling))


def texts(generator: Generator, requests: list[Request]) -> list[Finished]:
    found = [event for event in generator.run(requests) if isinstance(event, Finished)]
    return sorted(found, key=lambda each: each.index)


@pytest.mark.parametrize("n_batch", [3, 512], ids=["in-chunks", "at-once"])
def test_logits_are_those_of_the_reference(
    lm: OnnxDecoder, n_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxContext, "N_BATCH", n_batch)
    context = lm.context(2 * 64, n_seq=2)
    expected = tiny.Reference().logits(rows_of(0), PROMPT)
    context.prefill_rows(1, rows_of(0), 0)
    context.prefill_tokens(1, PROMPT, 0)
    np.testing.assert_allclose(context.logits(), expected[-1], atol=1e-4)
    made = context.logits_of_tokens(PROMPT, seq=1)
    np.testing.assert_allclose(made, expected, atol=1e-4)
    context.close()


def test_rows_may_come_in_parts(lm: OnnxDecoder) -> None:
    context = lm.context(64)
    for part in np.split(rows_of(0), 3):
        context.prefill_rows(0, part, 0)
    made = context.logits_of_tokens(PROMPT)
    np.testing.assert_allclose(made, tiny.Reference().logits(rows_of(0), PROMPT), atol=1e-4)
    context.close()


def test_several_at_a_time_say_what_each_says_alone(lm: OnnxDecoder) -> None:
    """Prompts and pictures of different lengths, more than there is room for at a time."""
    asked = [
        request(rows_of(i, n), PROMPT[: 1 + i % 5], max_tokens=8 + 3 * (i % 3))
        for i, n in enumerate((9, 4, 9, 17, 1, 9, 12))
    ]
    expected = [
        tiny.Reference().greedy(each.prompt[0].values, each.prompt[1], each.sampling.max_tokens)  # type: ignore[union-attr,arg-type]
        for each in asked
    ]
    for parallel in (1, 3):
        generator = Generator(lm, parallel=parallel)
        assert [each.ids for each in texts(generator, asked)] == expected
        generator.close()
    assert len({tuple(ids) for ids in expected}) == len(expected)


def test_a_kept_picture_is_not_computed_again(
    lm: OnnxDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another picture replaces it, with the same text before and behind."""
    runs = []
    right = OnnxContext.prefill_rows

    def counting(self: OnnxContext, seq: int, rows: np.ndarray, *rest: Any, **more: Any) -> None:
        runs.append(len(rows))
        right(self, seq, rows, *rest, **more)

    monkeypatch.setattr(OnnxContext, "prefill_rows", counting)
    generator = Generator(lm)
    for number, n, seen in ((0, 9, 1), (0, 9, 1), (1, 5, 2), (0, 9, 3)):
        (done,) = texts(generator, [request(rows_of(number, n))])
        assert done.ids == tiny.Reference().greedy(rows_of(number, n), PROMPT, 20)
        assert len(runs) == seen
    generator.close()


def test_a_conversation_goes_on_from_what_it_holds(lm: OnnxDecoder) -> None:
    generator = Generator(lm, warm=True)
    (first,) = texts(generator, [request(rows_of(0), max_tokens=6)])
    longer = [*PROMPT, *first.ids, 133, 140]
    (second,) = texts(generator, [request(rows_of(0), longer)])
    assert second.ids == tiny.Reference().greedy(rows_of(0), longer, 20)
    generator.close()


def test_the_tokens_of_prompt_and_picture_are_counted(lm: OnnxDecoder) -> None:
    (done,) = texts(Generator(lm), [request(rows_of(0, 300), max_tokens=4)])
    assert (done.tokens.visual, done.tokens.prompt, done.tokens.generated) == (300, 5, 4)


def test_a_text_ends_where_the_context_does(lm: OnnxDecoder) -> None:
    """The picture takes nothing of it."""
    (done,) = texts(Generator(lm), [request(rows_of(0, 300), max_tokens=500)])
    assert len(done.ids) == tiny.CONTEXT - len(PROMPT)
    with pytest.raises(PromptTooLongError):
        texts(Generator(lm), [request(rows_of(0), PROMPT * 20)])


def test_text_without_a_picture_is_refused(lm: OnnxDecoder) -> None:
    with pytest.raises(UsageError, match="picture"):
        texts(Generator(lm), [Request((PROMPT,), Sampling(max_tokens=2))])


def test_a_seed_decides_what_is_drawn(lm: OnnxDecoder) -> None:
    generator = Generator(lm)

    def drawn(seed: int) -> list[int]:
        (done,) = texts(generator, [request(rows_of(0), temperature=1.2, seed=seed)])
        return done.ids

    assert drawn(3) == drawn(3) != drawn(4)


def test_a_grammar_binds_the_text(lm: OnnxDecoder) -> None:
    asked = request(rows_of(0), grammar='root ::= " red boat" | " green tree"', stop_at_end=True)
    (done,) = texts(Generator(lm), [asked])
    assert done.text in ("red boat", "green tree")


def test_pieces_become_text_as_bert_writes_it(lm: OnnxDecoder) -> None:
    ids = lm.vocabulary.tokenize("Man's photo, isn't it there? two-boats. [SEP]")
    pieces = [tiny.PIECES[i] for i in ids]
    assert pieces[:10] == ["man", "'", "s", "photo", ",", "isn", "'", "t", "i", "##t"]
    assert tiny.SEP not in ids  # a marker in a person's text stays text
    from edgeprism.language.stop_text import StoppingText

    text = StoppingText([], lm.vocabulary.clean_up)
    said = [text.feed(lm.vocabulary.token_to_bytes(i)) for i in ids]
    said.append(text.end())
    assert text.whole.startswith("man's photo, isn't it there? two - boats.")
    assert "".join(said) == text.whole


def test_a_cancelled_run_ends(folder: Path) -> None:
    lm = opened(folder)
    generator = Generator(lm)
    steps = generator.run([request(rows_of(0))])
    next(steps)
    lm.cancel.set()
    with pytest.raises(Interrupted):
        list(steps)
    lm.cancel.clear()
    (done,) = texts(generator, [request(rows_of(1))])  # and the engine is as before
    assert done.ids == tiny.Reference().greedy(rows_of(1), PROMPT, 20)
    lm.close()


def test_rows_of_another_width_are_refused(lm: OnnxDecoder) -> None:
    with pytest.raises(ModelError, match="do not fit"):
        texts(Generator(lm), [request(np.zeros((4, tiny.ROW_WIDTH + 1), np.float32))])
