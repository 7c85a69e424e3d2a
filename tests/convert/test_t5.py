"""T5 from its published files to the GGUF, against transformers and SentencePiece."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentencepiece import sentencepiece_model_pb2

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.bundle.manifest_language import LanguageModelFile
from edgeprism.convert.gate.data import TOKENIZER_TEXTS
from edgeprism.convert.gate.judge import judge_lm
from edgeprism.convert.language import t5 as t5_tensors
from edgeprism.convert.language.config import LmConfig, LmTensor
from edgeprism.convert.language.model import LmParts, open_language_model
from edgeprism.convert.language.vocabulary import TokenRules
from edgeprism.convert.language.write_gguf import write_gguf
from edgeprism.convert.pipeline import _logits
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.errors import CheckpointError
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Request, Sampling
from edgeprism.progress import Progress
from tests.convert.test_convert_tokenizer import strings
from tests.helpers.tiny_t5 import END, N_VOCAB, TinyT5, write_t5

N_TOKENS = 32
TEXTS = [[5, 200, 31, 8, 90, 300, END], [17] * 40 + [60, 4, END]]


@dataclasses.dataclass
class Published:
    """A tiny T5 and the folder of its files."""

    t5: TinyT5
    folder: Path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("t5")
    return Published(write_t5(folder, seed=3), folder)


def parts_of(folder: Path, **changes: Any) -> LmParts:
    path = folder / "config.json"
    data = {**json.loads(path.read_text()), **changes}
    rules = TokenRules(needed=("</s>",))
    return open_language_model(Checkpoint(folder, "language model"), data, str(path), folder, rules)


def opened(parts: LmParts, path: Path, quant: str = "F32") -> LanguageModel:
    write_gguf(path, quant, parts, "tiny", Progress())
    config = parts.config
    expected = LanguageModelFile(
        path.name, quant, config.architecture, config.n_embd, config.n_vocab,
        config.context_length, "both-ways", encodes=True,
    )  # fmt: skip
    return LanguageModel(path, expected=expected)


@pytest.fixture(scope="module")
def lm(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    parts = parts_of(published.folder)
    parts.checkpoint.require(parts.shapes)
    model = opened(parts, tmp_path_factory.mktemp("gguf") / "lm.gguf")
    yield model
    model.close()


def test_the_gguf_says_what_transformers_says(published: Published, lm: LanguageModel) -> None:
    generator = Generator(lm, kv_type="f32", flash_attention=False)
    for text in TEXTS:
        request = Request((text,), Sampling(max_tokens=N_TOKENS, stop_at_end=False))
        (*_, done) = generator.run([request])
        assert isinstance(done, Finished)
        t5 = published.t5.as_ggml()
        assert done.ids == t5.greedy(t5.embed(text), N_TOKENS, said=done.ids)
        assert len(set(done.ids)) >= 8
    generator.close()


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_the_gates_reference_is_transformers(
    published: Published, tmp_path: Path, activation: str
) -> None:
    t5 = write_t5(tmp_path, seed=3, dense_act_fn=activation)
    assert t5.model.config.dense_act_fn == activation
    ticks: list[None] = []
    made = parts_of(tmp_path).reference_logits(TEXTS, lambda: ticks.append(None))
    assert len(ticks) == parts_of(tmp_path).config.n_stacked
    for text, logits in zip(TEXTS, made, strict=True):
        expected = t5.logits(t5.embed(text), text)[1:]
        np.testing.assert_allclose(logits, expected, atol=2e-4 * np.abs(expected).max())


def test_the_tokenizer_is_sentencepiece(published: Published, lm: LanguageModel) -> None:
    reference = parts_of(published.folder).reference_ids
    for text in (*TOKENIZER_TEXTS, *strings()):
        assert lm.vocabulary.tokenize(text) == reference(text), text
    assert lm.vocabulary.tokenize("</s>", parse_special=True) == [END]
    assert END not in lm.vocabulary.tokenize("a</s>b")
    assert lm.vocabulary.is_end(END)
    assert lm.vocabulary.bos() == []
    for reserved in ("<extra_id_0>", "[PAD410]", "<pad>"):  # their ids match in no text
        assert max(lm.vocabulary.tokenize(reserved)) < 400


# ---- the gate


def failures(published: Published, path: Path, quant: str = "F32", **changes: Any) -> list[str]:
    """Convert and measure as the pipeline does; `changes` of the configuration are a mistake."""
    parts = parts_of(published.folder, **changes)
    model = opened(parts, path / "lm.gguf", quant)
    logits = _logits(model, TEXTS, lambda: None, encodes=True)
    model.close()
    reference = parts_of(published.folder).reference_logits(TEXTS, lambda: None)
    return judge_lm(quant, logits, reference)[1]


@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0", "Q4_0"])
def test_the_gate_passes(published: Published, tmp_path: Path, quant: str) -> None:
    assert failures(published, tmp_path, quant) == []


def _replaced(patch: pytest.MonkeyPatch, own: str, source: Callable[[str], str]) -> None:
    """Have the tensors of a name made of other published ones."""
    result = t5_tensors.gguf_tensors

    def planted(config: LmConfig, lead: str) -> Iterator[LmTensor]:
        for tensor in result(config, lead):
            if own in tensor.name:
                tensor = dataclasses.replace(tensor, source=source(tensor.source))
            yield tensor

    patch.setattr(t5_tensors, "gguf_tensors", planted)


def _positions_of_the_encoder(patch: pytest.MonkeyPatch) -> None:
    _replaced(patch, "dec.blk.0.attn_rel_b", lambda name: name.replace("decoder", "encoder"))


def _gate_and_up_swapped(patch: pytest.MonkeyPatch) -> None:
    _replaced(patch, "ffn_gate", lambda name: name.replace("wi_0", "wi_1"))


def _keys_for_queries(patch: pytest.MonkeyPatch) -> None:
    _replaced(patch, "cross_attn_q", lambda name: name.replace(".q.", ".k."))


def _embeddings_for_the_head(patch: pytest.MonkeyPatch) -> None:
    _replaced(patch, "output.weight", lambda name: name.replace("lm_head", "shared"))


@pytest.mark.parametrize(
    "plant",
    [_positions_of_the_encoder, _gate_and_up_swapped, _keys_for_queries, _embeddings_for_the_head],
)
def test_planted_mistakes_fail_the_gate(
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    plant(monkeypatch)
    assert failures(published, tmp_path)


def test_another_first_token_fails_the_gate(published: Published, tmp_path: Path) -> None:
    assert failures(published, tmp_path, decoder_start_token_id=END)


def test_half_precision_leaves_what_overflows_it_in_float32(
    published: Published, tmp_path: Path
) -> None:
    opened(parts_of(published.folder), tmp_path / "lm.gguf", "F16").close()
    types = read_gguf_header(tmp_path / "lm.gguf").tensor_types
    wide = {name for name, kind in types.items() if kind == 0}
    assert all(name.endswith(("ffn_down.weight", "norm.weight", "rel_b.weight")) for name in wide)
    assert sum(name.endswith("ffn_down.weight") for name in wide) == 6


# ---- what is not understood


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feed_forward_proj": "relu"}, "feed_forward_proj = 'relu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings = True"),
        ({"num_decoder_layers": 4}, "num_decoder_layers = 4 (expected 3)"),
        ({"relative_attention_max_distance": 64}, "relative_attention_max_distance = 64"),
        ({"dense_act_fn": "silu"}, "dense_act_fn = 'silu'"),
        ({"decoder_start_token_id": N_VOCAB}, f"decoder_start_token_id = {N_VOCAB}"),
        ({"d_kv": "64"}, "d_kv = '64'"),
        ({"rotary": True}, "rotary = True (a field that is not understood)"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder = False"),
        ({"model_type": "mt5"}, "model_type is 'mt5'"),
    ],
)
def test_other_variants_are_refused(
    published: Published, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        parts_of(published.folder, **changes)
    assert words in caught.value.message


def test_silence_means_transformers_defaults(published: Published, tmp_path: Path) -> None:
    config = json.loads((published.folder / "config.json").read_text())
    for name in ("decoder_start_token_id", "num_decoder_layers", "dense_act_fn", "n_positions",
                 "layer_norm_epsilon", "relative_attention_num_buckets"):  # fmt: skip
        config.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for file in published.folder.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    assert parts_of(tmp_path).config == parts_of(published.folder).config


def _bpe(model: Any) -> None:
    model.trainer_spec.model_type = 2


def _suffixes(model: Any) -> None:
    model.trainer_spec.treat_whitespace_as_suffix = True


def _bytes(model: Any) -> None:
    model.pieces[30].type = 6


@pytest.mark.parametrize(
    ("change", "words"), [(_bpe, "not unigram"), (_suffixes, "spaces"), (_bytes, "pieces of bytes")]
)
def test_other_tokenizers_are_refused(
    published: Published, tmp_path: Path, change: Callable[[Any], None], words: str
) -> None:
    for file in published.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((tmp_path / "spiece.model").read_bytes())
    change(model)
    (tmp_path / "spiece.model").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=words):
        parts_of(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        parts_of(tmp_path)


def test_tensors_that_are_missing_or_of_no_use_are_known(published: Published) -> None:
    parts = parts_of(published.folder)
    assert torch.is_tensor(parts.read("shared.weight"))
    names = ["encoder.embed_tokens.weight", "language_model.decoder.embed_tokens.weight"]
    assert all(any(re.search(pattern, name) for pattern in parts.unused) for name in names)
