"""Every kind of language model, from its published files to the GGUF, against transformers."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.convert.gate import language as reference_language
from edgeprism.convert.language import llama, rope
from edgeprism.convert.language.model import LmParts, open_language_model
from edgeprism.convert.language.read_vocabulary import vocabulary_from_folder
from edgeprism.convert.language.vocabulary import TokenRules, write_vocabulary
from edgeprism.convert.language.write_gguf import write_gguf
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.errors import CheckpointError
from edgeprism.language.model import LanguageModel
from edgeprism.progress import Progress
from tests.convert.test_convert_tokenizer import strings
from tests.helpers.tiny_lm import BYTE_LEVEL, KINDS, TinyModel, write_any_tokenizer, write_lm

N_TOKENS = 32


@dataclasses.dataclass
class TinyCheckpoint:
    """A tiny model, its folder, and a prompt of ids."""

    folder: Path
    model: TinyModel
    prompt: list[int]

    def greedy(self) -> list[int]:
        given = torch.tensor([self.prompt])
        done = self.model.generate(
            given, max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS, do_sample=False,
            eos_token_id=None, pad_token_id=0, attention_mask=torch.ones_like(given),
        )  # fmt: skip
        ids: list[int] = done[0, len(self.prompt) :].tolist()
        return ids


@pytest.fixture(scope="module")
def made_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyCheckpoint]:
    cached: dict[str, TinyCheckpoint] = {}

    def get(kind: str) -> TinyCheckpoint:
        if kind not in cached:
            folder = tmp_path_factory.mktemp("lm") / kind
            model = write_lm(folder, kind)
            prompt = np.random.default_rng(1).integers(3, 400, 90).tolist()
            cached[kind] = TinyCheckpoint(folder, model, prompt)
        return cached[kind]

    return get


def parts_of(folder: Path, **changes: Any) -> LmParts:
    path = folder / "config.json"
    data = {**json.loads(path.read_text()), **changes}
    return open_language_model(
        Checkpoint(folder, "language model"), data, str(path), folder, TokenRules()
    )


def greedy_of(gguf: Path, prompt: list[int]) -> list[int]:
    lm = LanguageModel(gguf)
    context = lm.context(512, kv_type="f32", flash_attention=False, all_logits=True)
    ids: list[int] = []
    try:
        step = context.logits_of_tokens(prompt)[-1]
        for i in range(N_TOKENS):
            ids.append(int(step.argmax()))
            step = context.logits_of_tokens(ids[-1:], start=len(prompt) + i)[-1]
    finally:
        context.close()
        lm.close()
    return ids


def written(folder: Path, out: Path, **changes: Any) -> Path:
    write_gguf(out, "F32", parts_of(folder, **changes), "tiny", Progress())
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_the_gguf_says_what_transformers_says(
    kind: str, made_of: Callable[[str], TinyCheckpoint], tmp_path: Path
) -> None:
    tiny = made_of(kind)
    parts = parts_of(tiny.folder)
    Checkpoint(tiny.folder, "language model").require(parts.shapes)
    expected = tiny.greedy()
    assert len(set(expected)) >= 8
    assert greedy_of(written(tiny.folder, tmp_path / "lm.gguf"), tiny.prompt) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_gates_reference_is_transformers(
    kind: str, made_of: Callable[[str], TinyCheckpoint]
) -> None:
    tiny = made_of(kind)
    with torch.inference_mode():
        expected = tiny.model(torch.tensor([tiny.prompt])).logits[0].numpy()
    (actual,) = parts_of(tiny.folder).reference_logits([tiny.prompt], lambda: None)
    np.testing.assert_allclose(actual, expected, atol=2e-4)


def _unpermuted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(llama, "permute_for_rope", lambda rows, n_heads: rows)


def _heads_for_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(llama, "permute_for_rope", lambda rows, n_heads: rope.permute_for_rope(rows, 4))


def _unscaled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(llama, "llama3_factors", lambda scaling, theta, dim: [1.0] * (dim // 2))


def _norms_as_published(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(llama, "_plus_one", lambda weight: weight)


def _gate_and_up_swapped(patch: pytest.MonkeyPatch) -> None:
    result = llama.gguf_tensors
    swap = {"ffn_gate": "ffn_up", "ffn_up": "ffn_gate"}

    def swapped(*arguments: Any) -> Any:
        for tensor in result(*arguments):
            _, _, part = tensor.name.removesuffix(".weight").rpartition(".")
            name = tensor.name.replace(part, swap[part]) if part in swap else tensor.name
            yield dataclasses.replace(tensor, name=name)

    patch.setattr(llama, "gguf_tensors", swapped)


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("vicuna", _unpermuted),
        ("mistral", _heads_for_keys),
        ("llama3", _unscaled),
        ("qwen2", _gate_and_up_swapped),
        ("biased", _unpermuted),
        ("gemma", _norms_as_published),
    ],
)
def test_planted_mistakes_are_seen(
    kind: str,
    plant: Callable[[pytest.MonkeyPatch], None],
    made_of: Callable[[str], TinyCheckpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)
    tiny = made_of(kind)
    assert greedy_of(written(tiny.folder, tmp_path / "lm.gguf"), tiny.prompt) != tiny.greedy()


@pytest.mark.parametrize("scaling", ["llama-linear", "llama-yarn", "llama3"])
def test_scaling_left_out_is_seen(
    scaling: str, made_of: Callable[[str], TinyCheckpoint], tmp_path: Path
) -> None:
    tiny = made_of(scaling)
    actual = greedy_of(written(tiny.folder, tmp_path / "lm.gguf", rope_scaling=None), tiny.prompt)
    assert actual != tiny.greedy()


def test_headers(made_of: Callable[[str], TinyCheckpoint], tmp_path: Path) -> None:
    def header(kind: str) -> Any:
        return read_gguf_header(written(made_of(kind).folder, tmp_path / f"{kind}.gguf"))

    mistral = header("mistral").metadata
    # past its window the published model forgets, but llama.cpp does not
    assert (mistral["general.architecture"], mistral["llama.context_length"]) == ("llama", 300)
    qwen = header("qwen2").metadata
    assert (qwen["general.architecture"], qwen["tokenizer.ggml.pre"]) == ("qwen2", "qwen2")
    assert "tokenizer.ggml.bos_token_id" not in qwen
    llama3 = header("llama3").metadata
    assert (llama3["tokenizer.ggml.pre"], llama3["tokenizer.ggml.add_bos_token"]) == (
        "llama-bpe", True,
    )  # fmt: skip
    assert header("smollm2").metadata["tokenizer.ggml.pre"] == "smollm"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "gemma2"}, "'gemma2', expected one of llama"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}}, "rope_scaling"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
    ],
)
def test_other_configurations_are_refused(
    changes: dict[str, Any], expected: str, made_of: Callable[[str], TinyCheckpoint]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        parts_of(made_of("vicuna").folder, **changes)
    assert expected in caught.value.message
    assert "config.json" in caught.value.message


def test_runs_of_spaces_are_sentencepieces(tmp_path: Path) -> None:
    """Gemma's tokenizer has pieces of spaces and newlines that no merge makes.

    SentencePiece also takes the mark "▁" beside a space for one, which llama.cpp does not.
    """
    write_any_tokenizer(tmp_path, "gemma")
    ids_of = reference_language.text_to_ids(tmp_path)
    lm = LanguageModel(vocabulary_gguf(tmp_path, tmp_path / "v.gguf"))
    texts = [text for text in strings() if "▁" not in text]
    texts += ["a  b   c    d     e", "\n\n\n  x", "<h1>Title</h1>"]
    wrong = {text: ids for text in texts if (ids := lm.vocabulary.tokenize(text)) != ids_of(text)}
    spaces = lm.vocabulary.tokenize("a    b")
    said = lm.vocabulary.token_to_bytes(spaces[1])
    turn = lm.vocabulary.tokenize("<end_of_turn>")
    lm.close()
    assert wrong == {}
    assert (len(spaces), said) == (3, b"    ")
    assert len(turn) > 1  # a text makes no special token


# ---- byte-level tokenizers


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def byte_level(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write_any_tokenizer(folder, request.param)
    return folder


def vocabulary_gguf(folder: Path, out: Path, n_vocab: int = 710) -> Path:
    """Write a GGUF of the vocabulary with almost no model."""
    import gguf

    writer = gguf.GGUFWriter(str(out), "llama")
    write_vocabulary(writer, vocabulary_from_folder(folder, n_vocab, TokenRules()))
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {"token_embd": (n_vocab, 32), "output_norm": (32,)}
    shapes |= {f"blk.0.{name}_norm": (32,) for name in ("attn", "ffn")}
    shapes |= {
        f"blk.0.{name}": (32, 32)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_byte_level_ids_are_those_of_tokenizers(byte_level: Path, tmp_path: Path) -> None:
    lm = LanguageModel(vocabulary_gguf(byte_level, tmp_path / "v.gguf"))
    # llama.cpp does not normalise text as Qwen does, so these texts are in NFC
    texts = [unicodedata.normalize("NFC", text) for text in strings()]
    actual = {text: lm.vocabulary.tokenize(text) for text in texts}
    lm.close()
    ids_of = reference_language.text_to_ids(byte_level)
    assert len(texts) == 200
    assert {text: ids for text, ids in actual.items() if ids != ids_of(text)} == {}


def test_text_makes_no_special_token(byte_level: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    special = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items()}
    lm = LanguageModel(vocabulary_gguf(byte_level, tmp_path / "v.gguf"))
    for name, number in special.items():
        assert number not in lm.vocabulary.tokenize(f"say {name} now")
        assert number in lm.vocabulary.tokenize(f"say {name} now", parse_special=True)
    lm.close()


def edited(source: Path, out: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    data = json.loads((source / "tokenizer.json").read_text())
    edit(data)
    out.mkdir()
    (out / "tokenizer.json").write_text(json.dumps(data))
    return out


def test_a_wrong_cut_is_seen(byte_level: Path, tmp_path: Path) -> None:
    """The 200 strings distinguish every kind of tokenizer from every other."""
    names = {"llama-bpe", "qwen2", "smollm", "gpt-2"}
    right = vocabulary_from_folder(byte_level, 710, TokenRules())
    ids_of = reference_language.text_to_ids(byte_level)
    texts = [unicodedata.normalize("NFC", text) for text in strings()]
    for wrong in sorted(names - {right.pre}):
        out = tmp_path / f"{wrong}.gguf"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{__name__}.vocabulary_from_folder", lambda *_, w=wrong:
                          dataclasses.replace(right, pre=w))  # fmt: skip
            lm = LanguageModel(vocabulary_gguf(byte_level, out))
        assert any(lm.vocabulary.tokenize(text) != ids_of(text) for text in texts)
        lm.close()


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda d: d["model"].update(type="Unigram"), "model.type is 'Unigram'"),
        (lambda d: d["model"].update(byte_fallback=True), "byte_fallback"),
        (lambda d: d["model"].update(merges=[]), "no merges"),
        (lambda d: d.update(normalizer={"type": "NFKC"}), "NFKC"),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
        (lambda d: d["added_tokens"][0].update(id=9999), "ids up to 9999"),
        (lambda d: d.update(model=None), "no vocabulary"),
    ],
)
def test_a_tokenizer_that_llama_cpp_cannot_follow_is_refused(
    edit: Callable[[dict[str, Any]], object], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "good").mkdir()
    write_any_tokenizer(tmp_path / "good", "gpt2")
    folder = edited(tmp_path / "good", tmp_path / "bad", edit)
    with pytest.raises(CheckpointError) as caught:
        vocabulary_from_folder(folder, 710, TokenRules())
    assert expected in caught.value.message
    assert str(folder) in caught.value.message


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"tokenizer\.model, spiece\.model, tokenizer\.json, qwen\.tiktoken, or vocab\.json "
        r"and merges\.txt",
    ):
        vocabulary_from_folder(tmp_path, 450, TokenRules())
