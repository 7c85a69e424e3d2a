"""EdgePrism refuses a damaged or forged language model; the model never ends the process.

Whatever could reach llama.cpp runs in a forked child, where a native abort fails the test.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
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
from tests.helpers import bundles
from tests.helpers.children import Outcome, in_child
from tests.helpers.strangers import of_architecture

DIMENSIONS = LanguageModelFile(
    "lm.gguf", "F32", "llama", bundles.N_EMBD, bundles.N_VOCAB, bundles.CONTEXT, "causal"
)
Change = Callable[[bundles.GgufParts], None]


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    import_llama()  # before the forks, so that no child loads it again


def use(path: Path, expected: LanguageModelFile | None = DIMENSIONS) -> list[int]:
    """Use a language model in all the ways that a caption does."""
    lm = LanguageModel(path, expected=expected, threads=1)
    before = lm.vocabulary.bos() + lm.vocabulary.tokenize("<|im_start|>user\n", parse_special=True)
    after = lm.vocabulary.tokenize("hello <|im_end|> é 写 \n") + lm.vocabulary.tokenize(
        "<|im_end|>", parse_special=True
    )
    rows = np.ones((4, bundles.N_EMBD), np.float32)
    generator = Generator(lm)
    events = list(generator.run([Request((before, rows, after), Sampling(max_tokens=5))]))
    generator.close()
    lm.close()
    assert isinstance(events[-1], Finished)
    return events[-1].ids


def outcome(path: Path, expected: LanguageModelFile | None = DIMENSIONS) -> Outcome:
    return in_child(functools.partial(use, path, expected))


def test_the_header_tells_what_was_written(scripted_gguf: Path) -> None:
    header = read_gguf_header(scripted_gguf, tokens=True)
    assert (header.architecture, header.n_embd, header.n_vocab) == (
        "llama", bundles.N_EMBD, bundles.N_VOCAB,
    )  # fmt: skip
    assert header.chat_template == bundles.CHATML
    assert [token.decode() for token in header.tokens] == bundles.PIECES
    assert header.tensors["token_embd.weight"] == (bundles.N_EMBD, bundles.N_VOCAB)
    assert header.metadata["llama.block_count"] == 2
    assert gguf_faults(header) == []
    assert read_gguf_header(scripted_gguf).tokens == ()


def test_a_good_model_passes_the_same_way(scripted_gguf: Path) -> None:
    assert outcome(scripted_gguf).returncode == 0


# ---- cut short


def test_cut_short_anywhere(scripted_gguf: Path, tmp_path: Path) -> None:
    data = scripted_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    rng = np.random.default_rng(1)
    lengths = [*range(64), *rng.integers(64, len(data), 300), len(data) - 1]
    for length in lengths:
        path.write_bytes(data[: int(length)])
        with pytest.raises(ModelError, match=r"cut\.gguf: not a whole GGUF model") as caught:
            read_gguf_header(path)
        assert caught.value.exit_code == 4


@pytest.mark.parametrize("data", [b"", b"GGUF", b"GGUF" * 100, b"\0" * 5000, b"not a model"])
def test_not_a_gguf_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=r"x\.gguf: not a whole GGUF model"):
        LanguageModel(tmp_path / "x.gguf")


def test_a_folder_or_nothing_is_no_model(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.gguf"):
        with pytest.raises(ModelError):
            read_gguf_header(path)


# ---- other than the manifest says


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("architecture", "qwen2", "architecture is 'llama', not 'qwen2'"),
        ("n_embd", 64, "n_embd is 128, not 64"),
        ("n_vocab", 7, "not 7"),
    ],
)
def test_other_dimensions(scripted_gguf: Path, field: str, value: Any, message: str) -> None:
    expected = dataclasses.replace(DIMENSIONS, **{field: value})
    with pytest.raises(ModelError, match="not the manifest's model") as caught:
        LanguageModel(scripted_gguf, expected=expected)
    assert message in caught.value.message


# ---- one fault each: llama.cpp ends the process at every one of them


def meta(key: str, kind: str, value: Any) -> tuple[str, Change]:
    shown = str(value)[:20]
    return f"{key}={shown}", lambda parts: parts.metadata.__setitem__(key, (kind, value))


def tensor(name: str, kind: str) -> tuple[str, Change]:
    def change(parts: bundles.GgufParts) -> None:
        parts.tensors[name] = parts.tensors[name].astype(kind)

    return f"{name} as {kind}", change


def heads(n: int, n_kv: int) -> tuple[str, Change]:
    def change(parts: bundles.GgufParts) -> None:
        width = bundles.N_EMBD // n
        for key, value in (("attention.head_count", n), ("attention.head_count_kv", n_kv),
                           ("rope.dimension_count", width)):  # fmt: skip
            parts.metadata[f"llama.{key}"] = ("uint32", value)
        for i in range(2):
            for name in ("attn_k", "attn_v"):
                full = np.ones((n_kv * width, bundles.N_EMBD), np.float32)
                parts.tensors[f"blk.{i}.{name}.weight"] = full

    return f"{n} heads, {n_kv} for keys", change


FATAL = [
    *(meta("llama.block_count", "uint32", n) for n in (0, 513, 2**20, 2**31, 2**32 - 1)),
    meta("llama.nextn_predict_layers", "uint32", 3),
    *(meta("llama.expert_count", "uint32", n) for n in (1, 8, 1000)),
    *(meta("llama.expert_used_count", "uint32", n) for n in (1, 8)),
    meta("llama.attention.layer_norm_rms_epsilon", "float32", -1.0),
    meta("llama.attention.layer_norm_rms_epsilon", "float32", float("nan")),
    meta("llama.rope.scaling.type", "string", "spiral"),
    meta("llama.attention.head_count_kv", "array", [4, 2]),
    meta("llama.attention.head_count_kv", "array", [4, 0]),
    heads(1, 2),
    heads(2, 4),
    heads(128, 128),
    heads(128, 1),
    meta("general.alignment", "uint32", 1),
    *(meta("tokenizer.ggml.model", "string", kind) for kind in ("none", "no_vocab", "bert", "t5")),
    meta("tokenizer.ggml.tokens", "array", ["a"] * bundles.N_VOCAB),
    meta("tokenizer.ggml.tokens", "array", [""] * bundles.N_VOCAB),
    meta("tokenizer.ggml.tokens", "array", [f"t{i}" for i in range(bundles.N_VOCAB)]),
    *(tensor("token_embd.weight", kind) for kind in ("int8", "int16", "int32", "int64", "float64")),
    *(tensor("output.weight", kind) for kind in ("int8", "float64")),
    *(tensor("blk.0.attn_q.weight", kind) for kind in ("int8", "int64")),
    *(tensor("output_norm.weight", kind) for kind in ("float16", "int8", "float64")),
    tensor("blk.0.attn_norm.weight", "float16"),
]


@pytest.mark.parametrize(("what", "change"), FATAL, ids=[what for what, _ in FATAL])
def test_what_would_abort_llama_cpp_is_refused(tmp_path: Path, what: str, change: Change) -> None:
    parts = bundles.lm_parts()
    change(parts)
    ended = outcome(parts.write(tmp_path / "fatal.gguf"))
    assert (ended.returncode, ended.error) == (4, "ModelError"), ended
    assert "fatal.gguf" in ended.text


# ---- many other faults: any outcome is right except a dead process


def odd_models() -> Iterator[tuple[str, bundles.GgufParts]]:
    """Models with one field or tensor missing, of another type, or with an odd value or shape."""
    odd: dict[str, list[tuple[str, Any]]] = {
        "uint32": [("uint32", 0), ("uint32", 3), ("uint32", 2**31), ("uint32", 2**32 - 1),
                   ("string", "x"), ("float32", 1.0), ("int32", -1), ("array", [1, 2])],
        "float32": [("float32", 0.0), ("float32", float("inf")), ("string", "x")],
        "string": [("string", ""), ("string", "x" * 5000), ("uint32", 1), ("array", ["a", "b"])],
        "bool": [("bool", False), ("uint32", 7), ("string", "x")],
    }  # fmt: skip
    for key, (kind, value) in bundles.lm_parts().metadata.items():
        changes = odd[kind] if kind != "array" else [
            ("string", "x"), ("array", value[:-1]), ("array", value[:10]),
            ("array", [0] * len(value)), ("array", list(reversed(value))),
        ]  # fmt: skip
        parts = bundles.lm_parts()
        del parts.metadata[key]
        yield f"no {key}", parts
        for change in changes:
            parts = bundles.lm_parts()
            parts.metadata[key] = change
            yield f"{key} = {str(change)[:40]}", parts
    for name in ("token_embd.weight", "output_norm.weight", "blk.1.ffn_down.weight"):
        for what in ("missing", "transposed", "short", "flat", "three"):
            parts = bundles.lm_parts()
            values = parts.tensors.pop(name)
            if what != "missing":
                parts.tensors[name] = {
                    "transposed": np.ascontiguousarray(values.T), "short": values[:-1].copy(),
                    "flat": values.reshape(-1).copy(), "three": values[None].copy(),
                }[what]  # fmt: skip
            yield f"{name} {what}", parts


def test_odd_models_never_end_the_process(tmp_path: Path) -> None:
    refused = 0
    for what, parts in odd_models():
        ended = outcome(parts.write(tmp_path / "odd.gguf"))
        assert ended.orderly, (what, ended)
        refused += ended.returncode == 4
    assert refused > 50


def test_random_damage_to_the_header_never_ends_the_process(
    scripted_gguf: Path, tmp_path: Path
) -> None:
    data = scripted_gguf.read_bytes()
    end = data.find(bundles.lm_parts(script=[1]).tensors["token_embd.weight"].tobytes()[:64])
    tokens = data.find(b"tokenizer.ggml.tokens"), data.find(b"tokenizer.ggml.bos_token_id")
    elsewhere = [i for i in range(end) if not tokens[0] < i < tokens[1]]
    assert 0 < tokens[0] < tokens[1] < end
    rng = np.random.default_rng(3)
    path = tmp_path / "damaged.gguf"
    reached = 0
    for trial in range(400):
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            # most of the header is vocabulary, where damage changes only a token's text
            start = int(rng.integers(0, end) if rng.random() < 0.2 else rng.choice(elsewhere))
            if rng.random() < 0.5:
                damaged[start] ^= 1 << int(rng.integers(0, 8))
            else:
                value = int(rng.choice([0, 1, 255, 2**31, 2**32 - 1]))
                damaged[start : start + 4] = value.to_bytes(4, "little")
        path.write_bytes(damaged)
        expected = DIMENSIONS if trial % 2 else None
        try:
            header = read_gguf_header(path, tokens=True)
        except ModelError:
            continue
        if gguf_faults(header):
            continue
        reached += 1  # the checks found no fault, so llama.cpp gets this file
        ended = outcome(path, expected)
        assert ended.orderly, (trial, ended)
    assert reached > 50


def test_any_architecture_of_a_reasoner_is_an_error_or_works(tmp_path: Path) -> None:
    """A reasoner may be any GGUF file, so also one whose tensors do not fit its architecture."""
    for name in ("bert", "t5", "mamba", "rwkv6", "qwen2", "gemma2", "phi2", "gpt2", "clip",
                 "deepseek2", "wavtokenizer-dec", "nonsense", ""):  # fmt: skip
        parts = bundles.lm_parts()
        parts.architecture = name
        parts.metadata = {
            key.replace("llama.", f"{name}.", 1) if key.startswith("llama.") else key: value
            for key, value in parts.metadata.items()
        }
        ended = outcome(parts.write(tmp_path / "other.gguf"), None)
        assert ended.orderly, (name, ended)


@pytest.mark.parametrize(("width", "fits"), [(16, True), (24, False)])
def test_layers_with_a_sliding_window_may_have_heads_of_their_own_width(
    width: int, fits: bool, tmp_path: Path
) -> None:
    parts = of_architecture(bundles.lm_parts(1), "gemma4")
    parts.metadata |= {
        "gemma4.attention.key_length": ("uint32", 32),
        "gemma4.attention.key_length_swa": ("uint32", 16),
        "gemma4.attention.head_count_kv": ("array", [2, 1]),
    }
    for i, rows in enumerate((2 * width, 32)):
        shape = (rows, bundles.N_EMBD)
        parts.tensors[f"blk.{i}.attn_k.weight"] = np.zeros(shape, np.float32)
    header = read_gguf_header(parts.write(tmp_path / "lm.gguf"), tokens=True)
    faults = [fault for fault in gguf_faults(header) if "key/value heads" in fault]
    assert bool(faults) != fits
