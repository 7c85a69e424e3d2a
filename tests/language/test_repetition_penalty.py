"""The penalty on what a text says already: transformers' processor chooses the same tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from edgeprism.language.generator import Finished, Generator
from edgeprism.language.llama import import_llama
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Request, Sampling
from edgeprism.language.sampler import Sampler
from edgeprism.perceive.captioner import Captioner
from tests.helpers import bundles
from tests.helpers.llama_reference import LlamaReference, Visual

N_TOKENS = 24


def expected_ids(reference: LlamaReference, rows: np.ndarray, penalty: float) -> list[int]:
    """Return the likeliest tokens; the processor sees those of the answer, as behind embeddings."""
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    ids: list[int] = []
    for _ in range(N_TOKENS):
        prompt: list[list[int] | Visual] = [[1], Visual(rows), [7, 8], ids]
        logits = torch.from_numpy(reference.logits([part for part in prompt if len_of(part)])[-1:])
        if ids:
            logits = processor(torch.tensor([ids]), logits)
        ids.append(int(logits[0].argmax()))
    return ids


def len_of(part: list[int] | Visual) -> int:
    return len(part if isinstance(part, list) else part.values)


def test_as_transformers_counts_it(tmp_path: Path) -> None:
    model = bundles.lm_parts(5)
    lm = LanguageModel(model.write(tmp_path / "lm.gguf"))
    rows = np.random.default_rng(5).standard_normal((6, bundles.N_EMBD)).astype(np.float32)
    sampling = Sampling(max_tokens=N_TOKENS, stop_at_end=False)
    penalties = (1.0, 1.3, 1.5)
    requests = [
        Request(([1], rows, [7, 8]), dataclasses.replace(sampling, repetition_penalty=penalty))
        for penalty in penalties
    ]
    generator = Generator(lm, kv_type="f32", flash_attention=False, parallel=2)
    events = generator.run(requests)
    made = {event.index: event.ids for event in events if isinstance(event, Finished)}
    generator.close()
    lm.close()
    reference = LlamaReference(model)
    assert [made[i] for i in range(3)] == [expected_ids(reference, rows, p) for p in penalties]
    assert len(set(made[2])) > len(set(made[0]))


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_a_captioner_takes_its_models(penalty: float, tmp_path: Path) -> None:
    plain = bundles.write_bundle(tmp_path / "plain")
    prompts = bundles.make_manifest({}).prompts
    changed = dataclasses.replace(prompts, repetition_penalty=penalty)
    other = bundles.write_bundle(tmp_path / "other", prompts=changed)
    picture = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
    texts = []
    for bundle in (plain, other):
        with Captioner.load(bundle, device="cpu") as captioner:
            texts.append(captioner.caption(picture, caption_tokens=40).text)
    assert (texts[0] == texts[1]) == (penalty == 1)


def test_a_caption_without_end_reserves_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp has a place for each token that it may count: 8 GB for two billion."""
    counted: list[int] = []
    llama = import_llama()
    real = llama.llama_sampler_init_penalties

    def recorded(n_vocab: int, last: int, *penalties: float) -> object:
        counted.append(last)
        return real(n_vocab, last, *penalties)

    monkeypatch.setattr(llama, "llama_sampler_init_penalties", recorded)
    lm = LanguageModel(bundles.lm_parts(5).write(tmp_path / "lm.gguf"))
    generator = Generator(lm)
    sampling = Sampling(max_tokens=10**12, repetition_penalty=1.5)
    generator.sampler(Request(([1],), sampling)).close()
    generator.close()
    lm.close()
    assert counted == [lm.n_ctx_train]


@dataclasses.dataclass
class FixedContext:
    """A context of another engine, which has always the same logits."""

    values: np.ndarray
    native: None = None

    def logits(self, index: int = -1) -> np.ndarray:
        return self.values.copy()


@pytest.mark.parametrize("grammar", ["", "root ::= [a-z]+"])
def test_a_penalty_may_make_another_token_the_likeliest(
    grammar: str, scripted_lm: LanguageModel
) -> None:
    """Also where the sampler first looks at the likeliest token alone, as with a grammar."""
    vocabulary = scripted_lm.vocabulary
    pieces = [vocabulary.token_to_bytes(token) for token in range(vocabulary.size)]
    a, b = [token for token, piece in enumerate(pieces) if piece.isalpha() and piece.islower()][:2]
    logits = np.full(vocabulary.size, -100, np.float32)
    logits[a], logits[b] = 10, 9
    context: Any = FixedContext(logits)
    sampler = Sampler(grammar=grammar, vocabulary=vocabulary, repetition_penalty=2.0, max_tokens=8)
    assert [sampler.sample(context) for _ in range(3)] == [a, b, a]
    sampler.close()
