"""An adapter that is on for a picture's rows and off for text, and files that are no adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgeprism.bundle.adapter_checks import adapter_faults
from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.errors import Interrupted, ModelError
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Request, Sampling, segments_to_parts
from edgeprism.machine.cancel import Cancel
from edgeprism.segments import ImageRows, Segment, Tokens
from tests.helpers import bundles
from tests.helpers.adapters import AdapterReference, adapter_parts
from tests.helpers.bundles import GgufParts
from tests.helpers.children import in_child
from tests.helpers.llama_reference import Visual

N_TOKENS = 12
LM = bundles.lm_parts(2)
ADAPTER = adapter_parts(LM)
Prompt = list[list[int] | Visual]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapter")
    return LM.write(folder / "lm.gguf"), ADAPTER.write(folder / "lm.rows.gguf")


@pytest.fixture(scope="module")
def lm(files: tuple[Path, Path]) -> Iterator[LanguageModel]:
    it = LanguageModel(files[0], rows=files[1], threads=1)
    yield it
    it.close()


def rows(seed: int, n: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, bundles.N_EMBD)).astype(np.float32)


def ids(seed: int, n: int = 6) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(3, bundles.N_VOCAB, n)]


def request(prompt: Prompt) -> Request:
    parts = tuple(part if isinstance(part, list) else part.values for part in prompt)
    return Request(parts, Sampling(max_tokens=N_TOKENS, stop_at_end=False))


def texts(lm: LanguageModel, prompts: list[Prompt], parallel: int = 1) -> list[list[int]]:
    generator = Generator(lm, parallel=parallel, kv_type="f32", flash_attention=False)
    events = list(generator.run([request(prompt) for prompt in prompts]))
    generator.close()
    done = {event.index: event.ids for event in events if isinstance(event, Finished)}
    return [done[i] for i in range(len(prompts))]


PROMPTS: dict[str, Prompt] = {
    "one picture": [[1, *ids(1)], Visual(rows(1)), ids(2)],
    "text between two": [[1], Visual(rows(3, 4)), ids(4, 20), Visual(rows(5, 7)), ids(6, 1)],
    "more rows than a batch": [[1, *ids(7)], Visual(rows(8, 530)), ids(9)],
    "text alone": [[1, *ids(10, 12)]],
}


@pytest.mark.parametrize("name", PROMPTS)
def test_rows_alone_go_through_the_adapter(lm: LanguageModel, name: str) -> None:
    prompt = PROMPTS[name]
    n = 3 if "more" in name else N_TOKENS  # the reference computes the whole prompt for each
    assert texts(lm, [prompt])[0][:n] == AdapterReference(LM, ADAPTER).greedy(prompt, n)


@pytest.mark.parametrize("is_picture", [True, False])
def test_the_comparison_notices_an_adapter_on_the_wrong_rows(
    lm: LanguageModel, is_picture: bool
) -> None:
    """Off for rows, or on for all: both change the text."""
    prompt = PROMPTS["one picture"]
    wrong = AdapterReference(LM, ADAPTER, lambda picture: picture and not is_picture)
    if not is_picture:
        wrong = AdapterReference(LM, ADAPTER, lambda _: True)
    assert texts(lm, [prompt])[0] != wrong.greedy(prompt, N_TOKENS)


def test_several_at_once_read_rows_while_others_write(lm: LanguageModel) -> None:
    prompts = [PROMPTS[name] for name in ("one picture", "text alone", "text between two")] * 2
    prompts += [[[1], Visual(rows(20 + i)), ids(30 + i)] for i in range(3)]
    alone = [texts(lm, [prompt])[0] for prompt in prompts]
    assert texts(lm, prompts, parallel=3) == alone
    assert len(set(map(tuple, alone))) == 6


def test_tiles_are_not_joined_with_the_text_between_them(lm: LanguageModel) -> None:
    """Text that enters as rows would go through the adapter."""
    assert lm.embed([5]) is None
    marks = [Tokens((5, 6)), Tokens((7,))]
    segments: list[Segment] = [marks[0], ImageRows(0, 4), marks[1], ImageRows(4, 9), Tokens((8,))]
    values = rows(11)
    parts = segments_to_parts(lm, segments, values, add_bos=True)
    assert [len(part) for part in parts] == [3, 4, 1, 5, 1]
    prompt: Prompt = [[1, 5, 6], Visual(values[:4]), [7], Visual(values[4:]), [8]]
    generator = Generator(lm, kv_type="f32", flash_attention=False)
    *_, last = generator.run([Request(parts, Sampling(max_tokens=N_TOKENS, stop_at_end=False))])
    generator.close()
    assert isinstance(last, Finished)
    assert last.ids == AdapterReference(LM, ADAPTER).greedy(prompt, N_TOKENS)


def test_text_after_rows_that_were_interrupted_is_plain(files: tuple[Path, Path]) -> None:
    cancel = Cancel()
    lm = LanguageModel(files[0], rows=files[1], threads=1, cancel=cancel)
    context = lm.context(256, kv_type="f32", flash_attention=False)
    cancel.set()
    with pytest.raises(Interrupted):
        context.prefill_rows(0, rows(1), 0)
    cancel.clear()
    context.clear()
    context.prefill_tokens(0, [1, *ids(1)], 0)
    logits = context.logits()
    context.close()
    lm.close()
    plain = LanguageModel(files[0], threads=1)
    context = plain.context(256, kv_type="f32", flash_attention=False)
    context.prefill_tokens(0, [1, *ids(1)], 0)
    np.testing.assert_array_equal(logits, context.logits())
    context.close()
    plain.close()


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_adapters_in_fewer_bits(files: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    target = gguf.GGMLQuantizationType[kind]
    narrow = GgufParts(ADAPTER.metadata, {}, quants={})
    for name, values in ADAPTER.tensors.items():
        if kind == "Q8_0" and values.shape[1] % 32 == 0:
            narrow.quants[name] = target
            narrow.tensors[name] = gguf.quants.quantize(values, target)
        else:
            narrow.tensors[name] = values.astype(np.float16)
    lm = LanguageModel(files[0], rows=narrow.write(tmp_path / "narrow.gguf"), threads=1)
    context = lm.context(256, kv_type="f32", flash_attention=False)
    context.prefill_rows(0, rows(1), 0)
    context.prefill_tokens(0, ids(2), 9)
    expected = AdapterReference(LM, ADAPTER).logits([Visual(rows(1)), ids(2)])[-1]
    error = np.linalg.norm(context.logits() - expected) / np.linalg.norm(expected)
    context.close()
    lm.close()
    assert error < {"F16": 2e-3, "Q8_0": 3e-2}[kind]


def test_closing_twice(files: tuple[Path, Path]) -> None:
    lm = LanguageModel(files[0], rows=files[1])
    context = lm.context(256)
    context.prefill_rows(0, rows(1), 0)
    for _ in range(2):
        context.close()
    for _ in range(2):
        lm.close()


# ---- files that are no adapter of this model

QUERY = "blk.0.attn_q.weight"
Change = Callable[[GgufParts], object]


def put(name: str, values: np.ndarray) -> Change:
    return lambda parts: parts.tensors.update({name: values})


def tell(key: str, kind: str, value: object) -> Change:
    return lambda parts: parts.metadata.update({key: (kind, value)})


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


FAULTS: dict[str, tuple[Change, str]] = {
    "another architecture": (lambda p: setattr(p, "architecture", "qwen2"),
                             "general.architecture is 'qwen2', not 'llama'"),
    "a model": (tell("general.type", "string", "model"), "general.type is 'model'"),
    "a type that is a number": (tell("general.type", "uint32", 7), "general.type is 7"),
    "another kind": (tell("adapter.type", "string", "dora"), "adapter.type is 'dora'"),
    "no alpha": (lambda p: p.metadata.pop("adapter.lora.alpha"), "adapter.lora.alpha is None"),
    "alpha in 64 bits": (tell("adapter.lora.alpha", "float64", 12.0), "adapter.lora.alpha is 12.0"),
    "alpha 0": (tell("adapter.lora.alpha", "float32", 0.0), "adapter.lora.alpha is 0.0"),
    "alpha without end": (tell("adapter.lora.alpha", "float32", float("inf")),
                          "adapter.lora.alpha is inf"),
    "after certain tokens": (tell("adapter.alora.invocation_tokens", "array", [1, 2]),
                             "acts only after certain tokens"),
    "tensors at odd places": (tell("general.alignment", "uint32", 8), "alignment 8"),
    "half a pair": (lambda p: p.tensors.pop(f"{QUERY}.lora_b"), f"{QUERY}.lora_b is missing"),
    "the other half": (lambda p: p.tensors.pop(f"{QUERY}.lora_a"), f"{QUERY}.lora_a is missing"),
    "another width": (put(f"{QUERY}.lora_a", zeros(6, 96)), f"the halves of {QUERY}, [96, 6]"),
    "another height": (put(f"{QUERY}.lora_b", zeros(64, 6)), "[6, 64], do not fit its [128, 128]"),
    "another rank": (put(f"{QUERY}.lora_b", zeros(128, 4)), "[128, 6] and [4, 128], do not fit"),
    "three dimensions": (put(f"{QUERY}.lora_a", zeros(2, 6, 128)), "[128, 6, 2]"),
    "whole numbers": (put(f"{QUERY}.lora_a", np.zeros((6, 128), np.int8)), "an unknown type (24)"),
    "no half": (put("blk.0.attn_q.bias", zeros(128)), "blk.0.attn_q.bias is no half of a matrix"),
    "a layer more": (put("blk.2.attn_q.weight.lora_a", zeros(6, 128)),
                     "blk.2.attn_q.weight is no matrix of the language model"),
    "a norm": (put("blk.0.attn_norm.weight.lora_a", zeros(6, 128)),
               "blk.0.attn_norm.weight is no matrix"),
    "embeddings": (put("token_embd.weight.lora_a", zeros(6, 128)),
                   "token_embd.weight is no matrix of the language model that can"),
    "the scores": (put("output.weight.lora_b", zeros(bundles.N_VOCAB, 6)),
                   "output.weight is no matrix of the language model that can"),
    "nothing": (lambda p: p.tensors.clear(), "it holds no matrix"),
    "what llama.cpp alone refuses": (tell("general.alignment", "uint64", 32),
                                     "llama.cpp cannot load it"),
}  # fmt: skip


def changed(change: Change) -> GgufParts:
    parts = GgufParts(dict(ADAPTER.metadata), dict(ADAPTER.tensors), ADAPTER.architecture)
    change(parts)
    return parts


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_no_adapter_of_this_model_is_refused(
    files: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    change, fault = FAULTS[name]
    path = changed(change).write(tmp_path / "bad.gguf")
    with pytest.raises(ModelError) as caught:
        LanguageModel(files[0], rows=path, threads=1)
    assert caught.value.message.startswith(f"{path}: ")
    assert fault in caught.value.message


def test_many_faults_are_counted(files: tuple[Path, Path], tmp_path: Path) -> None:
    def lose_halves(parts: GgufParts) -> None:
        for name in list(parts.tensors)[::2]:
            del parts.tensors[name]

    path = changed(lose_halves).write(tmp_path / "bad.gguf")
    with pytest.raises(ModelError, match="11 faults more"):
        LanguageModel(files[0], rows=path, threads=1)


@pytest.mark.parametrize("length", [0, 3, 40, 700, -1])
def test_a_file_that_was_cut_short_is_refused(
    files: tuple[Path, Path], tmp_path: Path, length: int
) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(files[1].read_bytes()[:length])
    with pytest.raises(ModelError, match=r"short\.gguf: not a whole GGUF adapter"):
        LanguageModel(files[0], rows=path, threads=1)


def test_random_damage_to_the_header_never_ends_the_process(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    data, path = files[1].read_bytes(), tmp_path / "damaged.gguf"
    end = min(read_gguf_header(files[1]).starts.values())
    model, rng = read_gguf_header(files[0]), np.random.default_rng(3)

    def use() -> None:
        lm = LanguageModel(files[0], rows=path, threads=1)
        lm.context(256).prefill_rows(0, rows(1), 0)

    reached = 0
    for trial in range(600):
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 3))):
            at = int(rng.integers(0, end))
            if rng.random() < 0.5:
                damaged[at] ^= 1 << int(rng.integers(0, 8))
            else:
                value = int(rng.choice([0, 1, 255, 2**31, 2**32 - 1]))
                damaged[at : at + 4] = value.to_bytes(4, "little")
        path.write_bytes(damaged)
        try:
            header = read_gguf_header(path)
        except ModelError:
            continue
        if adapter_faults(header, model, of_rows=True):
            continue
        reached += 1  # the checks found no fault, so llama.cpp gets this file
        ended = in_child(use)
        assert ended.orderly, (trial, ended)
    assert reached > 10


def test_threads_have_contexts_of_their_own(lm: LanguageModel) -> None:
    """One adapter, on in the one thread's context while it is off in the other's."""
    prompts = [PROMPTS[name] for name in ("one picture", "text between two", "text alone")]
    alone = [texts(lm, [prompt])[0] for prompt in prompts]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda prompt: texts(lm, [prompt] * 3), prompts))
    assert together == [[text] * 3 for text in alone]


def test_a_missing_file_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.gguf"):
        LanguageModel(files[0], rows=tmp_path / "gone.gguf", threads=1)
