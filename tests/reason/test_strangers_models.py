"""Reasoners from strangers: none ends, hangs or fills the process that asks it."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeprism import Reasoner
from edgeprism.cli.main import run
from edgeprism.errors import ModelError
from edgeprism.files.home import data_dir
from edgeprism.language.chat import Message
from edgeprism.machine import child
from tests.helpers import bundles
from tests.helpers.children import Outcome, in_child
from tests.helpers.strangers import of_architecture, write_in_parts


def answer_of(path: Path) -> str:
    reasoner = Reasoner.load(path, device="cpu", threads=1)
    try:
        return reasoner.complete([Message("user", "one red dog")], max_tokens=4).text
    finally:
        reasoner.close()


def outcome(path: Path) -> Outcome:
    return in_child(lambda: answer_of(path), seconds=100)


def fused_phi3(odd: bool) -> bundles.GgufParts:
    """A phi3 model, whose tensors are fused; if `odd`, its feed-forward part has one half only."""
    parts = of_architecture(bundles.lm_parts(1), "phi3")
    for i in range(2):
        own = {
            name: parts.tensors.pop(f"blk.{i}.{name}.weight")
            for name in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")
        }
        qkv = np.concatenate([own["attn_q"], own["attn_k"], own["attn_v"]])
        parts.tensors[f"blk.{i}.attn_qkv.weight"] = qkv
        up = own["ffn_up"] if odd else np.concatenate([own["ffn_gate"], own["ffn_up"]])
        parts.tensors[f"blk.{i}.ffn_up.weight"] = up
    return parts


def gemma3(rotary: int) -> bundles.GgufParts:
    parts = of_architecture(bundles.lm_parts(1), "gemma3")
    parts.metadata["gemma3.rope.dimension_count"] = ("uint32", rotary)
    for i in range(2):
        for name in ("post_attention_norm", "post_ffw_norm"):
            parts.tensors[f"blk.{i}.{name}.weight"] = np.ones(bundles.N_EMBD, np.float32)
        for name in ("attn_q_norm", "attn_k_norm"):
            parts.tensors[f"blk.{i}.{name}.weight"] = np.ones(32, np.float32)
    return parts


HOSTILE = {
    "no rotary dimensions": lambda: gemma3(0),
    "a feed-forward part of one half": lambda: fused_phi3(odd=True),
    "heads of another width": lambda: dataclasses.replace(
        of_architecture(bundles.lm_parts(1), "smollm3"),
        metadata={
            **of_architecture(bundles.lm_parts(1), "smollm3").metadata,
            "smollm3.attention.key_length": ("uint32", 3),
        },
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_model_that_ends_or_hangs_llama_cpp(name: str, tmp_path: Path) -> None:
    path = HOSTILE[name]().write(tmp_path / "lm.gguf")
    result = outcome(path)
    assert (result.error, result.returncode) == ("ModelError", 4), result
    assert str(path) in result.text


@pytest.mark.parametrize("make", [lambda: gemma3(32), lambda: fused_phi3(odd=False)])
def test_sound_models_of_the_same_architectures(make: object, tmp_path: Path) -> None:
    assert callable(make)
    result = outcome(make().write(tmp_path / "lm.gguf"))
    assert result.returncode == 0, result


@pytest.mark.parametrize(
    ("architecture", "causal", "words"),
    [
        ("llama", False, "does not write text word by word"),
        ("dream", None, "writes by diffusion"),
        ("llada", None, "writes by diffusion"),
        ("gemma-embedding", None, "made for embeddings"),
        ("modern-bert", None, "made for embeddings"),
        ("t5", None, "through an encoder"),
    ],
)
def test_models_that_do_not_write(
    architecture: str, causal: bool | None, words: str, tmp_path: Path
) -> None:
    parts = of_architecture(bundles.lm_parts(1), architecture)
    if causal is not None:
        parts.metadata[f"{architecture}.attention.causal"] = ("bool", causal)
    result = outcome(parts.write(tmp_path / "lm.gguf"))
    assert (result.error, result.returncode) == ("ModelError", 4), result
    assert words in result.text
    assert architecture in result.text


# ---- sound models in odd forms


def with_experts() -> bundles.GgufParts:
    """A model of four experts in one group, as converters write it."""
    parts = of_architecture(bundles.lm_parts(1), "qwen3moe")
    counts = {"count": 4, "used_count": 2, "group_count": 1, "group_used_count": 1,
              "feed_forward_length": 32}  # fmt: skip
    for key, value in counts.items():
        parts.metadata[f"qwen3moe.expert_{key}"] = ("uint32", value)
    rng = np.random.default_rng(0)
    for i in range(2):
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            del parts.tensors[f"blk.{i}.{name}.weight"]
            shape = (4, bundles.N_EMBD, 32) if name == "ffn_down" else (4, 32, bundles.N_EMBD)
            values = rng.standard_normal(shape).astype(np.float32)
            parts.tensors[f"blk.{i}.{name}_exps.weight"] = values
        router = rng.standard_normal((4, bundles.N_EMBD)).astype(np.float32)
        parts.tensors[f"blk.{i}.ffn_gate_inp.weight"] = router
        for name in ("attn_q_norm", "attn_k_norm"):
            parts.tensors[f"blk.{i}.{name}.weight"] = np.ones(32, np.float32)
    return parts


def test_one_group_of_experts_is_no_grouping(tmp_path: Path) -> None:
    result = outcome(with_experts().write(tmp_path / "lm.gguf"))
    assert result.returncode == 0, result


def test_a_model_in_parts(tmp_path: Path) -> None:
    parts = bundles.lm_parts(3)
    whole = parts.write(tmp_path / "whole.gguf")
    first, second = write_in_parts(parts, tmp_path / "lm")
    assert answer_of(first) == answer_of(whole)
    before = Reasoner.load(first).model.digest
    assert Reasoner.load(first).model_bytes() == first.stat().st_size + second.stat().st_size
    second.write_bytes(second.read_bytes()[:-100] + bytes(100))
    assert Reasoner.load(first).model.digest != before


def test_the_list_of_models_counts_a_model_in_parts_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data_dir() / "models"
    folder.mkdir()
    parts = write_in_parts(bundles.lm_parts(3), folder / "lm")
    size = sum(part.stat().st_size for part in parts)
    name = parts[0].stem
    assert run(["models", "list", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    entries = lines["models"] if isinstance(lines, dict) else lines
    assert [e["size"] for e in entries if e["name"].startswith("lm-")] == [size]
    assert run(["models", "verify", name]) == 0
    printed = capsys.readouterr().out
    assert all(part.name in printed for part in parts)
    assert run(["models", "show", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == Reasoner.load(parts[0]).model.digest


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    first, second = write_in_parts(bundles.lm_parts(3), tmp_path / "lm")
    good = second.read_bytes()
    with pytest.raises(ModelError, match=r"lm-00002-of-00002\.gguf: not the first part") as caught:
        answer_of(second)
    assert "lm-00001-of-00002.gguf" in caught.value.hint
    second.write_bytes(first.read_bytes())
    result = outcome(first)
    assert (result.error, "lm-00002" in result.text) == ("ModelError", True), result
    parts = bundles.lm_parts(3)
    odd = {name: values.astype(np.int8) for name, values in parts.tensors.items()}
    parts.tensors = {**parts.tensors, "output.weight": odd["output.weight"]}
    write_in_parts(parts, tmp_path / "lm")
    result = outcome(first)
    assert (result.error, "I8 values" in result.text) == ("ModelError", True), result
    second.write_bytes(good)
    renamed = first.rename(tmp_path / "alone.gguf")
    result = outcome(renamed)
    assert (result.error, result.returncode) == ("ModelError", 4), result
    second.unlink()
    with pytest.raises(ModelError, match="lm-00002-of-00002"):
        answer_of(renamed.rename(first))


# ---- memory and time


def test_a_kv_cache_that_does_not_fit_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    wide, head = 1 << 14, 1 << 14
    parts = bundles.lm_parts(1)
    parts.metadata |= {
        "llama.attention.head_count": ("uint32", 1),
        "llama.attention.head_count_kv": ("uint32", 1),
        "llama.attention.key_length": ("uint32", head),
        "llama.attention.value_length": ("uint32", head),
        "llama.context_length": ("uint32", 1 << 26),
    }
    parts.metadata["llama.rope.dimension_count"] = ("uint32", head)
    for i in range(2):
        for name in ("attn_q", "attn_k", "attn_v"):
            parts.tensors[f"blk.{i}.{name}.weight"] = np.zeros((wide, bundles.N_EMBD), np.float32)
        parts.tensors[f"blk.{i}.attn_output.weight"] = np.zeros((bundles.N_EMBD, wide), np.float32)
    path = parts.write(tmp_path / "lm.gguf")
    reasoner = Reasoner.load(path, device="cpu", threads=1)
    with pytest.raises(ModelError, match=r"KV cache for .* tokens takes .* GB of memory") as caught:
        reasoner.complete([Message("user", "one")], max_tokens=40_000_000)
    assert "`answer_tokens`" in caught.value.hint
    reasoner.close()


def test_a_reasoner_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data_dir() / "tried.json").unlink(missing_ok=True)
    path = bundles.write_lm(tmp_path / "lm.gguf", int.from_bytes(os.urandom(3), "big"))
    text = answer_of(path)
    monkeypatch.setattr(child, "Child", lambda *_, **__: pytest.fail("tried again"))
    assert answer_of(path) == text
    (data_dir() / "tried.json").write_text("[" * 100_000)
    with pytest.raises(pytest.fail.Exception):
        answer_of(path)


def test_what_is_no_file_is_never_read(tmp_path: Path) -> None:
    pipe = tmp_path / "lm.gguf"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        result = in_child(functools.partial(answer_of, path), seconds=10)
        assert (result.error, result.returncode) == ("ModelError", 4), result


def test_no_debugger_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an assertion fails, ggml would start a debugger from PATH in the main process."""
    monkeypatch.delenv("GGML_NO_BACKTRACE", raising=False)
    path = bundles.write_lm(tmp_path / "lm.gguf", 5)
    program = (
        "import os, edgeprism, edgeprism.language.chat as chat\n"
        f"reasoner = edgeprism.Reasoner.load({str(path)!r}, device='cpu')\n"
        "reasoner.complete([chat.Message('user', 'one')], max_tokens=1)\n"
        "print(os.environ.get('GGML_NO_BACKTRACE'))\n"
    )
    ended = child.run([sys.executable, "-P", "-c", program])
    assert ended.output == "1\n", ended
