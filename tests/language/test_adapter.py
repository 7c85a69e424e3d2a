"""An adapter that everything goes through, against the same weights merged into the model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

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
