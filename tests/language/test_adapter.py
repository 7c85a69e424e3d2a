"""An adapter that everything goes through, against the same weights merged into the model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgeprism.bundle.adapter_values import value_faults
from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.errors import ModelError
from edgeprism.language.adapter import Adapter
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Request, Sampling
from tests.helpers import bundles
from tests.helpers.adapters import RANK, adapter_parts, merged_parts
from tests.helpers.bundles import GgufParts
from tests.helpers.llama_reference import LlamaReference

LM = bundles.lm_parts(2)
PROMPT = [1, *map(int, np.random.default_rng(1).integers(3, bundles.N_VOCAB, 20))]
N_TOKENS = 12


def with_tables() -> GgufParts:
    """An adapter that changes the embeddings and the scores, too."""
    parts, rng = adapter_parts(LM), np.random.default_rng(9)

    def half(*shape: int) -> np.ndarray:
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)

    n_embd, n_vocab = bundles.N_EMBD, bundles.N_VOCAB
    parts.tensors |= {
        "token_embd.weight.lora_a": half(n_vocab, RANK),
        "token_embd.weight.lora_b": half(n_embd, RANK),
        "output.weight.lora_a": half(RANK, n_embd),
        "output.weight.lora_b": half(n_vocab, RANK),
    }
    return parts


def few_matrices() -> GgufParts:
    parts = adapter_parts(LM)
    kept = {n: v for n, v in parts.tensors.items() if "blk.1.ffn_up" in n or "attn_v" in n}
    return GgufParts(parts.metadata, kept, parts.architecture)


def narrow(kind: str) -> GgufParts:
    """The adapter in fewer bits; halves whose rows are no multiple of 32 stay in 16."""
    target, parts = gguf.GGMLQuantizationType[kind], adapter_parts(LM)
    made = GgufParts(parts.metadata, {}, parts.architecture)
    for name, values in parts.tensors.items():
        if kind == "Q8_0" and values.shape[1] % 32 == 0:
            made.quants[name] = target
            made.tensors[name] = gguf.quants.quantize(values, target)
        else:
            made.tensors[name] = values.astype(np.float16)
    return made


def opened(tmp_path: Path, lm: GgufParts, adapter: GgufParts | None) -> LanguageModel:
    path = lm.write(tmp_path / "lm.gguf")
    own = None if adapter is None else adapter.write(tmp_path / "adapter.gguf")
    return LanguageModel(path, adapter=own, threads=1)


def logits(lm: LanguageModel) -> np.ndarray:
    context = lm.context(256, kv_type="f32", flash_attention=False, all_logits=True)
    made = context.logits_of_tokens(PROMPT)
    context.close()
    return made


def texts(lm: LanguageModel, parallel: int = 1) -> list[list[int]]:
    generator = Generator(lm, parallel=parallel, kv_type="f32", flash_attention=False)
    sampling = Sampling(max_tokens=N_TOKENS, stop_at_end=False)
    prompts = [PROMPT, PROMPT[:9], PROMPT[:4]]
    events = list(generator.run([Request((prompt,), sampling) for prompt in prompts]))
    generator.close()
    done = {event.index: event.ids for event in events if isinstance(event, Finished)}
    return [done[i] for i in range(len(prompts))]


@pytest.mark.parametrize("made", [lambda: adapter_parts(LM), with_tables, few_matrices])
def test_logits_are_those_of_merged_weights(tmp_path: Path, made: Callable[[], GgufParts]) -> None:
    adapter = made()
    lm = opened(tmp_path, LM, adapter)
    found, expected = logits(lm), LlamaReference(merged_parts(LM, adapter)).logits([PROMPT])
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-4
    plain = LlamaReference(LM).logits([PROMPT])
    assert np.linalg.norm(plain - expected) / np.linalg.norm(expected) > 0.1
    lm.close()


def test_texts_are_those_of_merged_weights(tmp_path: Path) -> None:
    adapter = adapter_parts(LM)
    lm = opened(tmp_path, LM, adapter)
    alone, together = texts(lm), texts(lm, parallel=3)
    lm.close()
    (tmp_path / "merged").mkdir()
    merged = opened(tmp_path / "merged", merged_parts(LM, adapter), None)
    assert alone == together == texts(merged)
    merged.close()
    (tmp_path / "plain").mkdir()
    plain = opened(tmp_path / "plain", LM, None)
    assert all(a != b for a, b in zip(alone, texts(plain), strict=True))
    plain.close()


@pytest.mark.parametrize(("kind", "most"), [("F16", 2e-3), ("Q8_0", 3e-2)])
def test_adapters_in_fewer_bits(tmp_path: Path, kind: str, most: float) -> None:
    lm = opened(tmp_path, LM, narrow(kind))
    expected = LlamaReference(merged_parts(LM, adapter_parts(LM))).logits([PROMPT])
    assert np.linalg.norm(logits(lm) - expected) / np.linalg.norm(expected) < most
    lm.close()


def test_an_adapter_that_is_off_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Adapter, "switch_on", lambda *_: None)
    lm = opened(tmp_path, LM, adapter_parts(LM))
    expected = LlamaReference(merged_parts(LM, adapter_parts(LM))).logits([PROMPT])
    assert np.linalg.norm(logits(lm) - expected) / np.linalg.norm(expected) > 0.1
    lm.close()


def test_embeddings_that_are_the_scores_too_are_refused(tmp_path: Path) -> None:
    """llama.cpp would end the process: it multiplies scores with the halves of the embeddings."""
    tied, adapter = bundles.lm_parts(2), with_tables()
    del tied.tensors["output.weight"]
    for half in "ab":
        del adapter.tensors[f"output.weight.lora_{half}"]
    with pytest.raises(ModelError, match=r"token_embd\.weight is no matrix .* that can have"):
        opened(tmp_path, tied, adapter)


def test_halves_of_the_embeddings_that_lie_as_others_are_refused(tmp_path: Path) -> None:
    adapter = with_tables()
    for half in "ab":
        name = f"token_embd.weight.lora_{half}"
        adapter.tensors[name] = np.ascontiguousarray(adapter.tensors[name].T)
    with pytest.raises(ModelError, match=r"the halves of token_embd\.weight"):
        opened(tmp_path, LM, adapter)


@pytest.mark.parametrize("value", [2, 0])
def test_prompts_of_another_version_are_refused(tmp_path: Path, value: int) -> None:
    adapter = adapter_parts(LM)
    adapter.metadata["edgeprism.reader"] = ("uint32", value)
    with pytest.raises(ModelError, match=rf"edgeprism\.reader is {value}: this EdgePrism knows 1"):
        opened(tmp_path, LM, adapter)


def test_a_model_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter\.gguf: a model, not a LoRA adapter"):
        opened(tmp_path, LM, LM)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lm\.gguf: a LoRA adapter, not a model") as caught:
        opened(tmp_path, adapter_parts(LM), None)
    assert "MODEL.gguf+lm.gguf" in caught.value.hint


def of_type(kind: str) -> GgufParts:
    """An adapter of one matrix of the language model, whose halves have values of one type."""
    target = gguf.GGMLQuantizationType[kind]
    a, b = bundles.N_EMBD, bundles.N_EMBD
    rng, parts = np.random.default_rng(3), adapter_parts(LM)
    made = GgufParts(parts.metadata, {}, parts.architecture)
    for half, shape in (("a", (32, a)), ("b", (b, 32))):
        name = f"blk.0.attn_q.weight.lora_{half}"
        values = (0.01 * rng.standard_normal(shape)).astype(np.float32)
        if kind in ("F32", "F16"):
            made.tensors[name] = values.astype(np.float32 if kind == "F32" else np.float16)
        else:
            made.quants[name] = target
            made.tensors[name] = gguf.quants.quantize(values, target)
    return made


# type → the bytes of NaN, and where they can stand in its first bytes
NOT_FINITE = {
    "F32": (b"\x00\x00\xc0\x7f", 8), "F16": (b"\x00\x7c", 6), "BF16": (b"\x80\xff", 6),
    "Q4_0": (b"\x01\x7e", 18), "Q4_1": (b"\x00\xfc", 2), "Q5_0": (b"\x01\x7e", 22),
    "Q5_1": (b"\x01\x7e", 24 + 2), "Q8_0": (b"\x01\x7e", 34),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_FINITE)
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, kind: str) -> None:
    opened(tmp_path, LM, of_type(kind)).close()
    path, (bits, offset) = tmp_path / "adapter.gguf", NOT_FINITE[kind]
    data = bytearray(path.read_bytes())
    start = read_gguf_header(path).starts["blk.0.attn_q.weight.lora_b"] + offset
    data[start : start + len(bits)] = bits
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        LanguageModel(tmp_path / "lm.gguf", adapter=path, threads=1)
    assert caught.value.message == (
        f"{path}: is damaged: blk.0.attn_q.weight.lora_b holds values that are no finite numbers."
    )
    assert "Name an adapter" in caught.value.hint


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_scales_of_every_block_are_looked_at(tmp_path: Path, kind: str) -> None:
    target = gguf.GGMLQuantizationType[kind]
    per_block, n_bytes = gguf.GGML_QUANT_SIZES[target]
    found = []
    for at in range(0, n_bytes - 1, 2):
        block = np.zeros((1, n_bytes), np.uint8)
        block[0, at : at + 2] = (0x01, 0x7E)  # NaN in 16 bits
        two = np.concatenate([np.zeros_like(block), block])
        finite = np.isfinite(gguf.quants.dequantize(two, target)).all()
        parts = GgufParts(
            {"general.type": ("string", "adapter")}, {"m": two}, "llama", {"m": target}
        )
        path = parts.write(tmp_path / f"{at}.gguf")
        found.append((value_faults(path, read_gguf_header(path)) == []) == bool(finite))
    assert per_block in (32, 256)
    assert all(found)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -1.0, 0.0, 1e30, 10_001.0])
def test_an_alpha_that_no_adapter_has_is_refused(tmp_path: Path, alpha: float) -> None:
    adapter = adapter_parts(LM)
    adapter.metadata["adapter.lora.alpha"] = ("float32", alpha)
    with pytest.raises(ModelError, match=r"adapter\.gguf: no adapter .* adapter\.lora\.alpha is"):
        opened(tmp_path, LM, adapter)


def test_errors_stay_short_whatever_the_file_holds(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    named = adapter_parts(LM)
    named.tensors[f"{long}.weight.lora_a"] = np.zeros((2, 2), np.float32)
    typed = adapter_parts(LM)
    typed.metadata["adapter.type"] = ("string", long)
    foreign = adapter_parts(LM)
    foreign.architecture = long
    for adapter in (named, typed, foreign):
        with pytest.raises(ModelError) as caught:
            opened(tmp_path, LM, adapter)
        assert len(caught.value.message) < 500 + len(str(tmp_path))
        assert "adapter" in caught.value.message
    with pytest.raises(ModelError, match="a tensor's name has 1000014 bytes"):
        opened(tmp_path, LM, named)


def test_a_damaged_adapter_is_told_as_an_adapter(tmp_path: Path) -> None:
    path = adapter_parts(LM).write(tmp_path / "adapter.gguf")
    lm, whole = LM.write(tmp_path / "lm.gguf"), path.read_bytes()
    for data in (b"", b"GGUF", b"no file of a model", whole[:200], whole[:-64]):
        path.write_bytes(data)
        with pytest.raises(ModelError, match=r"not a whole GGUF adapter: ") as caught:
            LanguageModel(lm, adapter=path, threads=1)
        assert caught.value.hint == "Copy or convert the adapter again."
