"""A decoder in ONNX among whose tokens a picture's rows stand, against the same in numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeprism.errors import Interrupted, ModelError, PromptTooLongError
from edgeprism.language import row_decoder
from edgeprism.language.embeddings import token_rows
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.request import Request, Sampling
from edgeprism.language.row_decoder import RowContext, RowDecoder
from tests.helpers import tiny_row_decoder as tiny

PROMPT = [270, 300, 281, 290, 265]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def lm(folder: Path) -> Iterator[RowDecoder]:
    lm = opened(folder)
    yield lm
    lm.close()


def opened(folder: Path, **changes: Any) -> RowDecoder:
    return RowDecoder(folder / "lm.gguf", folder / "lm.onnx", **{"expected": tiny.SPEC, **changes})


def rows_of(number: int, n: int = 9) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.standard_normal((n, tiny.WIDTH)).astype(np.float32)


def request(rows: np.ndarray, ids: list[int] = PROMPT, **sampling: Any) -> Request:
    return Request((rows, ids), Sampling(**{"max_tokens": 20, "stop_at_end": False, **sampling}))


def texts(generator: Generator, requests: list[Request]) -> list[list[int]]:
    found = [event for event in generator.run(requests) if isinstance(event, Finished)]
    return [each.ids for each in sorted(found, key=lambda each: each.index)]


def asked() -> list[Request]:
    """Prompts and pictures of different lengths."""
    return [
        request(rows_of(i, n), PROMPT[: 1 + i % 5], max_tokens=8 + 3 * (i % 3))
        for i, n in enumerate((9, 4, 9, 17, 1, 40, 12))
    ]


def expected_of(requests: list[Request]) -> list[list[int]]:
    reference = tiny.Reference()
    return [
        reference.greedy(each.prompt[0].values, each.prompt[1], each.sampling.max_tokens)  # type: ignore[union-attr,arg-type]
        for each in requests
    ]


@pytest.mark.parametrize("n_batch", [3, 512], ids=["in-chunks", "at-once"])
def test_logits_are_those_of_the_reference(
    lm: RowDecoder, n_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RowContext, "N_BATCH", n_batch)
    context = lm.context(2 * 64, n_seq=2)
    expected = tiny.Reference().logits(rows_of(0), PROMPT)
    context.prefill_rows(1, rows_of(0), 0)
    context.prefill_tokens(1, PROMPT, 9)
    np.testing.assert_allclose(context.logits(), expected[-1], atol=1e-4)
    made = context.logits_of_tokens(PROMPT, seq=1, start=9)
    np.testing.assert_allclose(made, expected, atol=1e-4)
    context.close()


def test_text_before_and_without_a_picture(lm: RowDecoder) -> None:
    reference = tiny.Reference()
    rows = np.concatenate([reference.table[PROMPT], rows_of(3)])
    around = Request((PROMPT, rows_of(3), PROMPT[1:]), Sampling(max_tokens=9, stop_at_end=False))
    alone = Request((PROMPT,), Sampling(max_tokens=9, stop_at_end=False))
    none = np.empty((0, tiny.WIDTH), np.float32)
    assert texts(Generator(lm), [around, alone]) == [
        reference.greedy(rows, PROMPT[1:], 9), reference.greedy(none, PROMPT, 9)
    ]  # fmt: skip


def test_several_at_a_time_say_what_each_says_alone(lm: RowDecoder) -> None:
    requests = asked()
    expected = expected_of(requests)
    for parallel in (1, 3):
        generator = Generator(lm, parallel=parallel)
        assert texts(generator, requests) == expected
        generator.close()
    assert len({tuple(ids) for ids in expected}) == len(expected)


def test_a_conversation_goes_on_from_what_it_holds(
    lm: RowDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator(lm, warm=True)
    (first,) = texts(generator, [request(rows_of(0), max_tokens=6)])
    prefilled: list[int] = []
    right = RowContext.prefill_rows

    def counting(self: RowContext, seq: int, rows: np.ndarray, *rest: Any, **more: Any) -> None:
        prefilled.append(len(rows))
        right(self, seq, rows, *rest, **more)

    monkeypatch.setattr(RowContext, "prefill_rows", counting)
    longer = [*PROMPT, *first, 281, 270]
    assert texts(generator, [request(rows_of(0), longer)]) == [
        tiny.Reference().greedy(rows_of(0), longer, 20)
    ]
    assert prefilled == []
    assert texts(generator, [request(rows_of(1))]) == [
        tiny.Reference().greedy(rows_of(1), PROMPT, 20)
    ]
    assert prefilled == [9]
    generator.close()


def test_a_text_ends_where_the_context_does(lm: RowDecoder) -> None:
    """The picture takes a part of it."""
    n_rows = tiny.CONTEXT - 40
    (ids,) = texts(Generator(lm), [request(rows_of(0, n_rows), max_tokens=500)])
    assert len(ids) == 40 - len(PROMPT)
    with pytest.raises(PromptTooLongError):
        texts(Generator(lm), [request(rows_of(0, tiny.CONTEXT))])


def test_a_grammar_binds_the_text(lm: RowDecoder) -> None:
    bound = request(rows_of(0), grammar='root ::= "red" | "green"', stop_at_end=True)
    (done,) = [each for each in Generator(lm).run([bound]) if isinstance(each, Finished)]
    assert done.text.strip() in ("red", "green")


def test_a_cancelled_run_ends(folder: Path) -> None:
    lm = opened(folder)
    steps = Generator(lm).run([request(rows_of(0))])
    next(steps)
    lm.cancel.set()
    with pytest.raises(Interrupted):
        list(steps)
    lm.close()


# ---- mistakes that the comparison must notice


def _rows_in_another_order(patch: pytest.MonkeyPatch) -> None:
    right = RowContext.prefill_rows

    def planted(self: RowContext, seq: int, rows: np.ndarray, start: int, **more: Any) -> None:
        right(self, seq, np.roll(rows, 1, axis=0), start, **more)

    patch.setattr(RowContext, "prefill_rows", planted)


def _cells_of_the_slot_before(patch: pytest.MonkeyPatch) -> None:
    right = RowContext._decode

    def planted(self: RowContext, first: int, *rest: Any) -> np.ndarray:
        for cells in self._keys.values():
            cells[1:] = cells[:1]
        return right(self, first, *rest)

    patch.setattr(RowContext, "_decode", planted)


def _embeddings_of_the_next_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        row_decoder, "token_rows",
        lambda path, header, ids: token_rows(path, header, [(i + 1) % tiny.N_VOCAB for i in ids]),
    )  # fmt: skip


@pytest.mark.parametrize(
    "plant", [_rows_in_another_order, _cells_of_the_slot_before, _embeddings_of_the_next_token],
    ids=lambda plant: plant.__name__.strip("_"),
)  # fmt: skip
def test_planted_mistakes_change_the_text(
    plant: Callable[[pytest.MonkeyPatch], None], lm: RowDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = asked()
    plant(monkeypatch)
    assert texts(Generator(lm, parallel=3), requests) != expected_of(requests)


# ---- hostile input


def test_rows_that_do_not_fit_are_refused(lm: RowDecoder) -> None:
    context = lm.context(64)
    refused: list[tuple[np.ndarray, dict[str, Any]]] = [
        (np.zeros((4, tiny.WIDTH + 1), np.float32), {}),
        (rows_of(0), {"causal": False}),
        (rows_of(0), {"positions": np.zeros((1, 9), np.int32)}),
    ]
    for rows, options in refused:
        with pytest.raises(ModelError, match="isual tokens"):
            context.prefill_rows(0, rows, 0, **options)
    context.close()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"n_layers": 3}, "its input is"),
        ({"n_heads": 8, "head_dim": 16}, "its input is"),
    ],
)
def test_a_graph_of_other_sizes_is_refused(
    changes: dict[str, Any], fault: str, folder: Path
) -> None:
    with pytest.raises(ModelError, match=fault):
        opened(folder, expected=tiny.spec(**changes))


def test_logits_of_another_shape_are_refused(folder: Path, tmp_path: Path) -> None:
    """Names and widths fit, but the graph returns those of the first token alone."""
    graph = onnx.load(str(folder / "lm.onnx"))
    for node in graph.graph.node:
        if node.output[0] == "logits":
            node.output[0] = "all"
    bounds = {"begin": 0, "end": 1, "axis": 1}
    graph.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array([value]), name) for name, value in bounds.items()
    )
    graph.graph.node.append(onnx.helper.make_node("Slice", ["all", *bounds], ["logits"]))
    (tmp_path / "lm.onnx").write_bytes(graph.SerializeToString())
    lm = RowDecoder(folder / "lm.gguf", tmp_path / "lm.onnx", expected=tiny.SPEC)
    context = lm.context(64)
    context.prefill_tokens(0, PROMPT, 0)
    with pytest.raises(ModelError, match=r"gave logits \[1, 1, \d+\] in place of \[1, 5, \d+\]"):
        context.logits_of_tokens(PROMPT)
    context.close()
    lm.close()


def test_a_table_that_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    """Without it, of another width, or in a kind of numbers that nobody can read."""
    from tests.helpers import bundles

    parts = bundles.lm_parts(0)
    table = parts.tensors.pop("token_embd.weight")
    for name, other in (("none", None), ("narrow", table[:, :64]), ("short", table[:-2])):
        changed = dataclasses.replace(parts, tensors=dict(parts.tensors))
        if other is not None:
            changed.tensors["token_embd.weight"] = np.ascontiguousarray(other)
        path = changed.write(tmp_path / f"{name}.gguf")
        with pytest.raises(ModelError, match="embeddings cannot be read"):
            RowDecoder(path, folder / "lm.onnx", expected=tiny.SPEC)
