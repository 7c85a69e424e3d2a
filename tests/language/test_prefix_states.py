"""Beginnings of prompts whose KV cache is kept: same texts, less prefill, no trust in files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprism.language import gpu, prefix_states
from edgeprism.language.context import Context
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.llama import engine_build, supports_offload
from edgeprism.language.model import LanguageModel
from edgeprism.language.prefix_states import PrefixStates
from edgeprism.language.request import Request, Sampling
from tests.helpers import bundles
from tests.language.test_generator import multi_axis_lm

DIGEST = "d" * 64
EXAMPLES = [int(i) for i in np.random.default_rng(7).integers(3, bundles.N_VOCAB, 300)]
N_REQUESTS = 24


def request(number: int, prefix: list[int] = EXAMPLES) -> Request:
    rng = np.random.default_rng(number)
    rest = [int(i) for i in rng.integers(3, bundles.N_VOCAB, 4 + number % 5)]
    return Request((prefix, rest), Sampling(max_tokens=8, stop_at_end=False), keep_first=True)


def ids_of(generator: Generator, requests: list[Request]) -> list[list[int]]:
    """Return the ids of each answer, asked one after another."""
    done = [event for one in requests for event in generator.run([one])]
    return [event.ids for event in done if isinstance(event, Finished)]


@pytest.fixture
def open_generator(random_lm: LanguageModel) -> Any:
    """Make generators as separate processes would: each knows only what the data folder holds."""
    made: list[Generator] = []

    def make(
        prefixes: PrefixStates | None = None, lm: LanguageModel = random_lm, **settings: Any
    ) -> Generator:
        made.append(Generator(lm, prefixes=prefixes, **settings))
        return made[-1]

    yield make
    for generator in made:
        generator.close()


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each prefill call."""
    counts: list[int] = []
    original = Context.prefill_tokens

    def prefill(self: Context, seq: int, tokens: list[int], start: int, **options: bool) -> None:
        counts.append(len(tokens))
        original(self, seq, tokens, start, **options)

    monkeypatch.setattr(Context, "prefill_tokens", prefill)
    return counts


def saved_files() -> list[Path]:
    return sorted((Path(os.environ["EDGEPRISM_HOME"]) / prefix_states.FOLDER).glob("*"))


def save_one(open_generator: Callable[..., Generator], number: int = 0) -> Path:
    """Compute and save the state of one prefix; return its file."""
    before = set(saved_files())
    states = PrefixStates(DIGEST)
    ids_of(open_generator(states), [request(0, EXAMPLES[number:])])
    states.save()
    (new,) = set(saved_files()) - before
    return new


# ---- the same text, with less work


@pytest.mark.parametrize(
    ("kv_type", "flash_attention"),
    [("f16", None), ("f16", False), ("f32", False), ("q8_0", True)],
)
def test_texts_are_the_same_without_cold_warm_and_in_another_process(
    open_generator: Callable[..., Generator], kv_type: str, flash_attention: bool | None
) -> None:
    settings = {"kv_type": kv_type, "flash_attention": flash_attention}
    requests = [request(number) for number in range(N_REQUESTS)]
    expected = [ids_of(open_generator(None, **settings), [one])[0] for one in requests]
    assert len(set(map(tuple, expected))) > N_REQUESTS / 2  # they depend on the question
    for one, ids in zip(requests[:4], expected[:4], strict=True):  # cold: each in a new process
        assert ids_of(open_generator(PrefixStates(DIGEST), **settings), [one]) == [ids]
    first = PrefixStates(DIGEST)
    assert ids_of(open_generator(first, **settings), requests) == expected
    first.save()
    later = open_generator(PrefixStates(DIGEST), **settings)
    assert ids_of(later, requests[::-1]) == expected[::-1]


def test_the_beginning_is_prefilled_once_for_all_processes(
    open_generator: Callable[..., Generator], prefilled: list[int]
) -> None:
    states = PrefixStates(DIGEST)
    other = Request(([5, 6, 7],), Sampling(max_tokens=2, stop_at_end=False))
    ids_of(open_generator(states), [request(0), other, request(1), request(1)])
    assert prefilled == [len(EXAMPLES), 4, 3, 5, 5]  # `other` does not drive it out
    states.save()
    assert len(saved_files()) == 1
    prefilled.clear()
    ids_of(open_generator(PrefixStates(DIGEST)), [request(0)])
    assert prefilled == [4]


def test_a_context_of_another_size_takes_the_same_state(
    open_generator: Callable[..., Generator], prefilled: list[int]
) -> None:
    save_one(open_generator)
    longer = Request(request(3).parts, Sampling(max_tokens=500, stop_at_end=False), keep_first=True)
    expected = ids_of(open_generator(), [longer])
    prefilled.clear()
    assert ids_of(open_generator(PrefixStates(DIGEST)), [longer]) == expected
    assert prefilled == [len(longer.prompt[1])]


def test_the_number_of_threads_does_not_change_the_state(
    random_bundle: Path, open_generator: Callable[..., Generator]
) -> None:
    """Threads share rows among them and no sums, so the key of a state leaves them out."""
    path = save_one(open_generator)
    content = path.read_bytes()
    path.unlink()
    lm = LanguageModel(random_bundle / "lm.gguf", threads=2)
    states = PrefixStates(DIGEST)
    generator = open_generator(states, lm=lm)
    ids_of(generator, [Request(request(0).parts, Sampling(max_tokens=1), keep_first=True)])
    generator.close()
    lm.close()
    states.save()
    assert path.read_bytes() == content


def sliding_lm() -> bundles.GgufParts:
    """Return a language model of which every other layer looks back 64 positions."""
    parts = bundles.lm_parts(1)
    parts.architecture = "gemma2"
    parts.metadata = {
        key.replace("llama.", "gemma2.", 1) if key.startswith("llama.") else key: value
        for key, value in parts.metadata.items()
    }
    parts.metadata["gemma2.attention.sliding_window"] = ("uint32", 64)
    del parts.tensors["output.weight"]  # it is the embedding's transpose
    for i in range(bundles.LmShape().n_layer):
        for name in ("post_attention_norm", "post_ffw_norm"):
            parts.tensors[f"blk.{i}.{name}.weight"] = np.ones(bundles.N_EMBD, np.float32)
    return parts


@pytest.mark.parametrize("parts", [sliding_lm(), multi_axis_lm(1)], ids=lambda p: p.architecture)
def test_other_kinds_of_memory(
    open_generator: Callable[..., Generator], tmp_path: Path, parts: bundles.GgufParts
) -> None:
    """Where a cache forgets what lies behind its window, cold runs go on from the same cells."""
    lm = LanguageModel(parts.write(tmp_path / "lm.gguf"), threads=1)
    requests = [request(number) for number in range(8)]
    states = PrefixStates(DIGEST)
    first = open_generator(states, lm)
    warm = ids_of(first, requests)
    states.save()
    assert len(saved_files()) == 1
    later = open_generator(PrefixStates(DIGEST), lm)
    assert ids_of(later, requests[::-1]) == warm[::-1]
    for one, ids in zip(requests, warm, strict=True):
        alone = open_generator(PrefixStates(f"{len(ids)} new {one.prompt[1]}"), lm)
        assert ids_of(alone, [one]) == [ids]
        alone.close()
    assert len(set(map(tuple, warm))) > 4
    first.close()
    later.close()
    lm.close()


# ---- whose state it is


def test_what_changes_the_numbers_changes_the_key(
    open_generator: Callable[..., Generator], prefilled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_one(open_generator)
    n = len(EXAMPLES)

    def is_found(digest: str = DIGEST, prefix: list[int] = EXAMPLES, **settings: Any) -> bool:
        prefilled.clear()
        ids_of(open_generator(PrefixStates(digest), **settings), [request(0, prefix)])
        return len(prefix) not in prefilled

    assert is_found()
    assert not is_found(digest="e" * 64)
    assert not is_found(prefix=EXAMPLES[1:])
    assert not is_found(prefix=[*EXAMPLES[:-1], EXAMPLES[-1] ^ 1])
    assert not is_found(kv_type="f32")
    assert not is_found(flash_attention=False)
    assert not is_found(parallel=2)
    monkeypatch.setattr("edgeprism.language.context.engine_build", lambda: "another build")
    assert not is_found()
    assert n == 300


def test_a_state_belongs_to_the_gpu_and_its_layers(
    open_generator: Callable[..., Generator],
    prefilled: list[int],
    monkeypatch: pytest.MonkeyPatch,
    random_lm: LanguageModel,
) -> None:
    """No GPU is here, so what it would say of itself stands in."""
    path = save_one(open_generator)

    def is_found(form: str, layers: int) -> bool:
        prefilled.clear()
        monkeypatch.setattr("edgeprism.language.gpu.gpu_form", lambda: form)
        monkeypatch.setattr(random_lm, "gpu_layers", layers)
        states = PrefixStates(DIGEST)
        ids_of(open_generator(states), [request(0)])
        states.save()
        return len(EXAMPLES) not in prefilled

    assert is_found("", 0)
    assert is_found("", 8)  # without a GPU no layer lies there, whatever was asked for
    assert not is_found("GPU one", 0)
    assert is_found("GPU one", 0)
    assert not is_found("GPU one", 8)
    assert not is_found("GPU one, newer driver", 8)
    assert len(set(saved_files()) - {path}) == 3


def test_what_a_gpu_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["NVIDIA H200"]

    def form() -> str:
        gpu.gpu_form.cache_clear()
        return gpu.gpu_form()

    assert (form() == "") is not supports_offload()
    monkeypatch.setattr(gpu, "supports_offload", lambda: True)
    monkeypatch.setattr(gpu, "_gpus_of", lambda _: [gpu.Gpu(n, 1, 1, shared=False) for n in names])
    forms = [form()]
    names.append("NVIDIA H200")
    forms.append(form())
    monkeypatch.setattr("platform.release", lambda: "another kernel, with its drivers")
    forms.append(form())
    monkeypatch.setenv("GGML_CUDA_FORCE_MMQ", "1")
    forms.append(form())
    assert len({"", *forms}) == 5
    gpu.gpu_form.cache_clear()


def test_builds_are_told_from_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> str:
        engine_build.cache_clear()
        return engine_build()

    own = build()
    assert "ggml" in own
    library = tmp_path / "libggml-cpu.so"
    library.write_bytes(b"one")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    first = build()
    library.write_bytes(b"another")
    assert len({own, first, build()}) == 3
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "none"))
    assert build()
    engine_build.cache_clear()


def test_nothing_is_kept_of_other_prompts(
    open_generator: Callable[..., Generator],
) -> None:
    """What a person or a picture says never gets into the file."""
    states = PrefixStates(DIGEST)
    ids_of(open_generator(states), [Request((EXAMPLES, [5, 6]), Sampling(max_tokens=2))])
    states.save()
    assert saved_files() == []


# ---- files are not trusted


def damages(path: Path, other: Path) -> dict[str, Callable[[], object]]:
    """Ways in which a file can be wrong, each under the name that a later process looks for."""
    whole, size = path.read_bytes(), path.stat().st_size

    def flip(at: int) -> Callable[[], object]:
        return lambda: path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])

    def pipe() -> None:
        path.unlink()
        os.mkfifo(path)

    def folder() -> None:
        path.unlink()
        path.mkdir()

    return {
        "empty": lambda: path.write_bytes(b""),
        "cut": lambda: path.write_bytes(whole[: size // 2]),
        "grown": lambda: path.write_bytes(whole + b"\0"),
        "magic": flip(0),
        "header": flip(60),
        "last byte": flip(size - 1),
        "garbage": lambda: path.write_bytes(np.random.default_rng(1).bytes(size)),
        "another key's": lambda: path.write_bytes(other.read_bytes()),
        "pipe": pipe,
        "folder": folder,
    }


def test_a_wrong_file_is_computed_again(
    open_generator: Callable[..., Generator], prefilled: list[int]
) -> None:
    expected = ids_of(open_generator(), [request(1)])
    path, other = save_one(open_generator), save_one(open_generator, 1)
    whole = path.read_bytes()
    for name, damage in damages(path, other).items():
        damage()
        prefilled.clear()
        states = PrefixStates(DIGEST)
        assert ids_of(open_generator(states), [request(1)]) == expected, name
        assert prefilled == [len(EXAMPLES), 5], name
        states.save()
        if path.is_dir():
            path.rmdir()
            continue
        assert path.read_bytes() == whole, name  # the next process finds it


def test_a_sound_digest_over_another_state_is_no_error(
    open_generator: Callable[..., Generator], random_lm: LanguageModel
) -> None:
    """A state that llama.cpp does not take, whoever made the file, leaves an empty sequence."""
    expected = ids_of(open_generator(), [request(1)])
    generator = open_generator(PrefixStates(DIGEST))
    ids_of(generator, [request(0)])
    for wrong in (b"", b"\0" * 4000, os.urandom(4000)):
        states = PrefixStates(DIGEST)
        states.find = lambda form, tokens, wrong=wrong: wrong  # type: ignore[method-assign,misc]
        assert ids_of(open_generator(states), [request(1)]) == expected


# ---- the folder


def test_the_folder_has_a_limit(
    open_generator: Callable[..., Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (save_one(open_generator, number) for number in range(2))
    size = first.stat().st_size
    monkeypatch.setattr(prefix_states, "MOST", 3 * size)
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    ids_of(open_generator(PrefixStates(DIGEST)), [request(0)])  # uses the first
    (first.parent / f".{'0' * 64}.kv.edgeprism.partial-999999999").write_bytes(b"killed")
    third = save_one(open_generator, 2)
    assert set(saved_files()) == {first, second, third}
    fourth = save_one(open_generator, 3)
    assert set(saved_files()) == {first, third, fourth}
    assert all(path.stat().st_mode & 0o077 in (0, 0o044) for path in saved_files())


def test_a_state_that_is_too_large_is_not_kept(
    open_generator: Callable[..., Generator], prefilled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ids_of(open_generator(), [request(0), request(1)])
    monkeypatch.setattr("edgeprism.language.generator.LARGEST", 1000)
    states = PrefixStates(DIGEST)
    prefilled.clear()
    assert ids_of(open_generator(states), [request(0), request(1)]) == expected
    assert prefilled == [len(EXAMPLES), 4, 5]
    states.save()
    assert saved_files() == []


@pytest.mark.parametrize("home", ["file", "locked", "none"])
def test_without_a_folder_it_is_kept_in_this_process(
    open_generator: Callable[..., Generator], prefilled: list[int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, home: str,
) -> None:  # fmt: skip
    if home == "file":  # which root cannot write to, either
        (tmp_path / "home").write_text("")
        monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "home"))
    elif home == "locked":
        monkeypatch.setattr(prefix_states, "AtomicFile", refuse)
    else:
        monkeypatch.setattr(prefix_states, "find_data_dir", lambda: None)
    states = PrefixStates(DIGEST)
    other = Request(([5, 6, 7],), Sampling(max_tokens=2))
    generator = open_generator(states)
    for one in (request(0), other, request(1)):
        ids_of(generator, [one])
        states.save()
    assert prefilled == [len(EXAMPLES), 4, 3, 5]
    assert saved_files() == []


def refuse(path: Path, **_: bool) -> None:
    raise PermissionError(13, "Permission denied", str(path))


def test_processes_may_write_at_once(open_generator: Callable[..., Generator]) -> None:
    """Each writes a file of its own and renames it, so the last one's whole file stays."""
    states = [PrefixStates(DIGEST) for _ in range(2)]
    for each in states:
        ids_of(open_generator(each), [request(0)])
    children = []
    for each in states:
        if not (child := os.fork()):
            for _ in itertools.repeat(None, 20):
                each._new = set(each._states)
                each.save()
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    (path,) = saved_files()
    expected = ids_of(open_generator(), [request(2)])
    assert ids_of(open_generator(PrefixStates(DIGEST)), [request(2)]) == expected
    assert path.stat().st_size > 1000
