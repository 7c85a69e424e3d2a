"""Image rows through a second model: what it holds of a sequence is handed over and back."""

from __future__ import annotations

import itertools
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprism.errors import Interrupted, ModelError, PromptTooLongError
from edgeprism.language import row_expert
from edgeprism.language.context import Context
from edgeprism.language.engine import LanguageContext
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Request, Rows, Sampling
from edgeprism.language.row_expert import ModelWithExpert, hand_over
from edgeprism.machine.cancel import Cancel
from tests.helpers.experts import CONTEXT, N_EMBD, write_model

BEFORE, AFTER = [1, 270, 271], [280, 281, 290]
EXACT: dict[str, Any] = {"kv_type": "f32", "flash_attention": False}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("experts")
    return write_model(folder / "lm.gguf", 1), write_model(folder / "rows.gguf", 2, n_vocab=300)


@pytest.fixture(scope="module")
def pair(files: tuple[Path, Path]) -> Iterator[ModelWithExpert]:
    lm = ModelWithExpert(*files, own_last=1)
    yield lm
    lm.close()


@pytest.fixture(scope="module")
def plain(files: tuple[Path, Path]) -> Iterator[LanguageModel]:
    lm = LanguageModel(files[0])
    yield lm
    lm.close()


def picture(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and their positions: one each at either end, one for all between."""
    rows = np.random.default_rng(seed).standard_normal((n, N_EMBD), dtype=np.float32)
    return rows, np.array([[0, *[1] * (n - 2), 2]], np.int32)


def prefill(context: LanguageContext, seq: int, n: int = 20, seed: int = 0) -> np.ndarray:
    """Prefill text, a picture and text; return the last logits."""
    rows, positions = picture(n, seed)
    context.prefill_tokens(seq, BEFORE, 0, logits=False)
    context.prefill_rows(seq, rows, len(BEFORE), positions=positions)
    context.prefill_tokens(seq, AFTER, len(BEFORE) + 3)
    return context.logits()


def alone(lm: LanguageModel, seed: int = 0, **settings: Any) -> np.ndarray:
    context = lm.context(CONTEXT, **{**EXACT, **settings})
    logits = prefill(context, 0, seed=seed)
    context.close()
    return logits


def close_to(logits: np.ndarray, expected: np.ndarray, bound: float = 1e-5) -> bool:
    return bool(np.abs(logits - expected).max() < bound * np.abs(expected).max())


def test_an_expert_with_the_same_weights_changes_nothing(
    files: tuple[Path, Path], plain: LanguageModel, tmp_path: Path
) -> None:
    same = shutil.copyfile(files[0], tmp_path / "same.gguf")
    for own_last in (0, 1, 5):
        lm = ModelWithExpert(files[0], same, own_last)
        assert close_to(alone(lm), alone(plain)), own_last
        lm.close()


def test_other_weights_count_for_the_rows_and_the_last_stay_apart(
    files: tuple[Path, Path], pair: ModelWithExpert, plain: LanguageModel
) -> None:
    seen = [alone(plain), alone(pair)]
    for own_last in (0, 2, 20):
        lm = ModelWithExpert(*files, own_last)
        seen.append(alone(lm))
        lm.close()
    assert close_to(seen[4], seen[0])  # all 20 rows through the model itself
    different = [*seen[:4]]
    for one, other in itertools.combinations(different, 2):
        assert not close_to(one, other, 1e-3)


def test_every_sequence_gets_its_own(pair: ModelWithExpert) -> None:
    context = pair.context(4 * CONTEXT, n_seq=4, **EXACT)
    # in this order a sequence is filled before, between and after others that hold cells
    for seq in (2, 0, 3, 1, 2):
        assert close_to(prefill_anew(context, seq, seed=seq), alone(pair, seed=seq)), seq
    logits = {seq: prefill_anew(context, seq, seed=seq) for seq in range(4)}
    tokens = [(seq, int(logits[seq].argmax()), len(BEFORE) + 3 + len(AFTER)) for seq in range(4)]
    context.step(tokens)
    together = [context.logits(i) for i in range(4)]
    context.close()
    for seq, token, position in tokens:
        one = pair.context(CONTEXT, **EXACT)
        prefill(one, 0, seed=seq)
        one.step([(0, token, position)])
        assert close_to(together[seq], one.logits())
        one.close()


def own_context(lm: LanguageModel, **settings: Any) -> Context:
    context = lm.context(256, **settings)
    assert isinstance(context, Context)
    return context


def prefill_anew(context: LanguageContext, seq: int, seed: int) -> np.ndarray:
    context.keep(seq, 0)
    return prefill(context, seq, seed=seed)


@pytest.mark.parametrize("n_seq", [1, 3])
@pytest.mark.parametrize(("kv_type", "flash"), [("f16", False), ("f16", True), ("q8_0", True)])
def test_other_kinds_of_cache(pair: ModelWithExpert, n_seq: int, kv_type: str, flash: bool) -> None:
    context = pair.context(n_seq * CONTEXT, n_seq=n_seq, kv_type=kv_type, flash_attention=flash)
    expected = alone(pair)
    assert close_to(prefill(context, n_seq - 1), expected, 0.1 if kv_type == "q8_0" else 0.01)
    context.close()


def test_more_rows_than_go_through_at_once(
    pair: ModelWithExpert, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pair.context(CONTEXT, **EXACT)
    expected = prefill(whole, 0, n=200)
    whole.close()
    monkeypatch.setattr(Context, "N_BATCH", 32)
    few = pair.context(CONTEXT, **EXACT)
    assert few.n_batch == 32
    assert close_to(prefill(few, 0, n=200), expected)
    few.close()


def test_what_stands_before_a_picture_is_kept(pair: ModelWithExpert) -> None:
    """The text after two pictures is replaced, then the second picture."""
    context = pair.context(CONTEXT, **EXACT)
    first, second, third = (picture(20, seed) for seed in range(3))

    def put(shown: tuple[np.ndarray, np.ndarray], start: int) -> int:
        context.prefill_rows(0, shown[0], start, positions=shown[1])
        return start + 3

    context.prefill_tokens(0, BEFORE, 0, logits=False)
    between = put(first, len(BEFORE))
    end = put(second, between)
    context.prefill_tokens(0, AFTER, end)
    expected = context.logits()
    assert context.keep(0, end)
    context.prefill_tokens(0, AFTER, end)
    assert close_to(context.logits(), expected)
    assert context.keep(0, between)
    put(third, between)
    context.prefill_tokens(0, AFTER, end)
    assert not close_to(context.logits(), expected, 1e-3)
    assert context.keep(0, between)
    put(second, between)
    context.prefill_tokens(0, AFTER, end)
    assert close_to(context.logits(), expected)
    context.close()


def test_a_picture_may_come_first(pair: ModelWithExpert) -> None:
    context = pair.context(2 * CONTEXT, n_seq=2, **EXACT)
    rows, positions = picture(20)
    seen = []
    for seq in (0, 1, 1):
        context.keep(seq, 0)
        context.prefill_rows(seq, rows, 0, positions=positions)
        context.prefill_tokens(seq, AFTER, 3)
        seen.append(context.logits())
    assert close_to(seen[1], seen[0])
    assert close_to(seen[2], seen[0])
    context.close()


def test_captions_in_turns_and_together(pair: ModelWithExpert) -> None:
    def request(seed: int) -> Request:
        rows, positions = picture(20, seed)
        parts = (BEFORE, Rows(rows, positions=positions), AFTER)
        return Request(parts, Sampling(max_tokens=12, stop_at_end=False))

    def texts(generator: Generator) -> dict[int, list[int]]:
        events = generator.run([request(seed % 5) for seed in range(7)])
        return {event.index: event.ids for event in events if isinstance(event, Finished)}

    one, three = (Generator(pair, parallel=n, **EXACT) for n in (1, 3))
    ids = texts(one)
    assert texts(three) == ids
    assert (ids[5], ids[6]) == (ids[0], ids[1])
    assert len(set(map(tuple, ids.values()))) == 5
    assert request(0).n_positions() == len(BEFORE) + 3 + len(AFTER)
    one.close()
    three.close()


def test_a_prefill_that_is_cancelled(files: tuple[Path, Path]) -> None:
    cancel = Cancel()
    lm = ModelWithExpert(*files, own_last=1, cancel=cancel)
    context = lm.context(CONTEXT, **EXACT)
    expected = prefill(context, 0)
    context.keep(0, len(BEFORE))
    rows, positions = picture(20)
    cancel.set()
    with pytest.raises(Interrupted):
        context.prefill_rows(0, rows, len(BEFORE), positions=positions)
    cancel.clear()
    context.prefill_rows(0, rows, len(BEFORE), positions=positions)
    context.prefill_tokens(0, AFTER, len(BEFORE) + 3)
    assert close_to(context.logits(), expected)
    context.close()
    lm.close()


def test_more_rows_than_the_context_holds(pair: ModelWithExpert) -> None:
    context = pair.context(256, **EXACT)
    rows, positions = picture(400)
    with pytest.raises(PromptTooLongError, match="is full"):
        context.prefill_rows(0, rows, 0, positions=positions)
    context.clear()
    assert prefill(context, 0).shape == (pair.vocabulary.size,)
    context.close()


def test_rows_that_do_not_fit(pair: ModelWithExpert) -> None:
    context = pair.context(CONTEXT)
    rows, positions = picture(20)
    for wrong, arguments, reason in (
        (rows[:, :32], {}, "do not fit a language model of width 128"),
        (rows[0], {}, "do not fit a language model of width 128"),
        (rows, {"positions": positions[:, 1:]}, "do not fit 20 visual tokens"),
        (rows, {"causal": False}, "look at each other"),
    ):
        with pytest.raises(ModelError, match=reason):
            context.prefill_rows(0, wrong, 0, **arguments)
    context.close()


def test_shared_positions_need_a_model_with_axes(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Without them llama.cpp would show every such row to all the others."""
    lm = LanguageModel(write_model(tmp_path / "one.gguf", 1, architecture="qwen2"))
    context = lm.context(CONTEXT)
    rows, positions = picture(20)
    with pytest.raises(ModelError, match="do not fit 20 visual tokens of 1 each"):
        context.prefill_rows(0, rows, 0, positions=positions)
    context.close()
    lm.close()


# ---- files that do not belong together


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layers": 3}, "qwen2vl.block_count is 3, not 2"),
        ({"kv_heads": 4}, "qwen2vl.attention.head_count_kv is 4, not 2"),
        ({"heads": 2, "kv_heads": 2}, "qwen2vl.attention.head_count is 2, not 4"),
        ({"width": 256}, "qwen2vl.embedding_length is 256, not 128"),
        ({"theta": 5e5}, "qwen2vl.rope.freq_base is 500000.0, not 10000.0"),
        ({"architecture": "qwen2"}, "its architecture is 'qwen2', not 'qwen2vl'"),
    ],
)
def test_a_foreign_expert_is_named(
    change: dict[str, Any], reason: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    other = write_model(tmp_path / "other.gguf", 3, **change)
    with pytest.raises(ModelError) as caught:
        ModelWithExpert(files[0], other, own_last=1)
    assert reason in caught.value.message
    assert "other.gguf: no expert for the image rows of lm.gguf" in caught.value.message


def test_a_damaged_expert_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    data = files[1].read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.gguf").write_text("no model")
    for name in ("cut", "text", "missing"):
        with pytest.raises(ModelError, match=rf"{name}\.gguf"):
            ModelWithExpert(files[0], tmp_path / f"{name}.gguf", own_last=1)


def test_contexts_of_unlike_models_are_told(files: tuple[Path, Path], tmp_path: Path) -> None:
    """The check before is not the only guard: llama.cpp refuses what does not fit."""
    lm = LanguageModel(files[0])
    other = LanguageModel(write_model(tmp_path / "other.gguf", 3, layers=3))
    source, target = own_context(lm), own_context(other)
    source.prefill_tokens(0, BEFORE, 0)
    with pytest.raises(ModelError, match="cannot be handed over"):
        hand_over(source, 0, target, 0)
    for context in (source, target):
        context.close()
    for kv_type in ("f32", "q8_0"):
        source, target = own_context(lm), own_context(lm, kv_type=kv_type, flash_attention=True)
        source.prefill_tokens(0, BEFORE, 0)
        with pytest.raises(ModelError, match="cannot be handed over"):
            hand_over(source, 0, target, 0)
        source.close()
        target.close()
    other.close()
    lm.close()


def test_an_unknown_form_of_states_is_told(
    pair: ModelWithExpert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_expert, "_HEAD", struct.Struct("<IiIi"))
    context = pair.context(2 * CONTEXT, n_seq=2, **EXACT)
    with pytest.raises(ModelError, match="their form is not known"):
        prefill(context, 1)
    context.close()


# ---- mistakes that the comparison must notice


def _not_handed_before(patch: pytest.MonkeyPatch) -> None:
    right = row_expert.hand_over

    def planted(source: Context, seq: int, target: Context, target_seq: int) -> None:
        if target.n_seq > source.n_seq:
            right(source, seq, target, target_seq)

    patch.setattr(row_expert, "hand_over", planted)


def _to_another_sequence(patch: pytest.MonkeyPatch) -> None:
    right = row_expert.hand_over

    def planted(source: Context, seq: int, target: Context, target_seq: int) -> None:
        right(source, seq, target, target_seq and target_seq - 1)

    patch.setattr(row_expert, "hand_over", planted)


def _language_weights_for_rows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(row_expert.ContextWithExpert, "prefill_rows", Context.prefill_rows)


def _all_rows_through_the_expert(patch: pytest.MonkeyPatch) -> None:
    right = row_expert.ModelWithExpert.__init__

    def planted(self: ModelWithExpert, path: Path, expert: Path, own_last: int) -> None:
        right(self, path, expert, 0)

    patch.setattr(row_expert.ModelWithExpert, "__init__", planted)


def _seen_both_ways(patch: pytest.MonkeyPatch) -> None:
    right = Context.on_all_axes

    def planted(self: Context, positions: np.ndarray | None, n: int) -> np.ndarray:
        return right(self, positions, n) * np.array([[1], [0], [0], [0]], np.int32)

    patch.setattr(Context, "on_all_axes", planted)


MISTAKES: list[Callable[[pytest.MonkeyPatch], None]] = [
    _not_handed_before, _to_another_sequence, _language_weights_for_rows,
    _all_rows_through_the_expert, _seen_both_ways,
]  # fmt: skip


@pytest.mark.parametrize("plant", MISTAKES, ids=lambda plant: plant.__name__.strip("_"))
def test_planted_mistakes_are_seen(
    plant: Callable[[pytest.MonkeyPatch], None],
    files: tuple[Path, Path],
    pair: ModelWithExpert,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = alone(pair)
    plant(monkeypatch)
    lm = ModelWithExpert(*files, 1)
    context = lm.context(2 * CONTEXT, n_seq=2, **EXACT)
    assert not close_to(prefill(context, 1), expected, 1e-3)
    context.close()
    lm.close()


def test_text_never_becomes_rows(pair: ModelWithExpert) -> None:
    """A text between two pictures would go through the expert."""
    assert pair.embed([1, 2]) is None
