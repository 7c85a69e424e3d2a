"""OPT as `mpt`: its configuration, its tokenizer, quantized, and with mistakes planted."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.convert.gate import language as reference_language
from edgeprism.convert.language import opt
from edgeprism.convert.language.read_vocabulary import vocabulary_from_folder
from edgeprism.convert.language.vocabulary import CONTROL, NORMAL
from edgeprism.convert.language.write_gguf import write_gguf
from edgeprism.errors import CheckpointError
from edgeprism.language.model import LanguageModel
from edgeprism.progress import Progress
from tests.convert.test_convert_tokenizer import strings
from tests.convert.test_language_models import TinyCheckpoint, greedy_of, parts_of, written
from tests.helpers.tiny_lm import OPT_SPECIAL, split_tokenizer, write_any_tokenizer, write_lm


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    folder = tmp_path_factory.mktemp("lm") / "opt"
    prompt = np.random.default_rng(1).integers(3, 400, 90).tolist()
    return TinyCheckpoint(folder, write_lm(folder, "opt"), prompt)


def test_the_header(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    header = read_gguf_header(written(tiny.folder, tmp_path / "lm.gguf"))
    assert (header.architecture, header.metadata["mpt.context_length"]) == ("mpt", 384)
    assert header.metadata["mpt.attention.max_alibi_bias"] == 0
    assert header.tensors["position_embd.weight"] == (64, 384)
    assert not [key for key in header.metadata if "rope" in key or "rms" in key]


def _positions_from_the_first_row(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(opt, "_used_positions", lambda table: table[: -opt.N_UNUSED_POSITIONS])


def _gelu_as_it_is(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(opt, "SCALE", 1.0)


def _activations_undivided(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(opt, "_scales", lambda n: lambda _: torch.ones(n))


def _bias_unscaled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(opt, "_scaled", lambda tensor: tensor * (opt.SCALE if tensor.dim() > 1 else 1))


def _norms_behind_the_halves(patch: pytest.MonkeyPatch) -> None:
    result = opt.gguf_tensors
    moved = {"self_attn_layer_norm": "final_layer_norm", "final_layer_norm": "self_attn_layer_norm"}

    def planted(*arguments: Any) -> Any:
        for tensor in result(*arguments):
            *rest, part, kind = tensor.source.split(".") if tensor.source else ("", "")
            if part in moved and "layers" in rest:
                tensor = dataclasses.replace(tensor, source=".".join([*rest, moved[part], kind]))
            yield tensor

    patch.setattr(opt, "gguf_tensors", planted)


@pytest.mark.parametrize(
    "plant",
    [
        _positions_from_the_first_row,
        _gelu_as_it_is,
        _activations_undivided,
        _bias_unscaled,
        _norms_behind_the_halves,
    ],
)
def test_planted_mistakes_are_seen(
    plant: Callable[[pytest.MonkeyPatch], None],
    tiny: TinyCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)
    assert greedy_of(written(tiny.folder, tmp_path / "lm.gguf"), tiny.prompt) != tiny.greedy()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"do_layer_norm_before": False}, "do_layer_norm_before = False (expected True)"),
        ({"word_embed_proj_dim": 32}, "word_embed_proj_dim = 32 (expected 64"),
        ({"activation_function": "gelu"}, "activation_function = 'gelu' (expected 'relu')"),
        ({"enable_bias": False}, "enable_bias = False"),
        ({"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine = False"),
        ({"_remove_final_layer_norm": True}, "_remove_final_layer_norm = True"),
        ({"num_attention_heads": 5}, "64 is no multiple of num_attention_heads 5"),
        ({"ffn_dim": "wide"}, "ffn_dim = 'wide'"),
        ({"do_layer_norm_before": "no"}, "do_layer_norm_before = 'no' (expected true or false)"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_other_opts_are_refused(
    changes: dict[str, Any], expected: str, tiny: TinyCheckpoint
) -> None:
    with pytest.raises(CheckpointError) as caught:
        parts_of(tiny.folder, **changes)
    assert expected in caught.value.message
    assert "2.7b" in caught.value.hint


def test_an_opt_with_a_head_of_its_own(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    folder = tmp_path / "untied"
    model = copy.deepcopy(tiny.model)
    head = nn.Linear(64, model.config.vocab_size, bias=False)
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(3))
    model.lm_head, model.config.tie_word_embeddings = head, False
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny.folder / name, folder)
    untied = TinyCheckpoint(folder, model, tiny.prompt)
    expected = untied.greedy()
    assert expected != tiny.greedy()
    assert greedy_of(written(folder, tmp_path / "lm.gguf"), tiny.prompt) == expected
    with torch.inference_mode():
        logits = model(torch.tensor([tiny.prompt])).logits[0].numpy()
    (actual,) = parts_of(folder).reference_logits([tiny.prompt], lambda: None)
    np.testing.assert_allclose(actual, logits, atol=2e-4)


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_K_M"])
def test_a_quantized_opt_keeps_its_positions_and_divisors(
    quant: str, tiny: TinyCheckpoint, tmp_path: Path
) -> None:
    """Neither may be quantized: positions stand behind an embedding, and divisors are alike."""
    write_gguf(tmp_path / "lm.gguf", quant, parts_of(tiny.folder), "tiny", Progress())
    header = read_gguf_header(tmp_path / "lm.gguf")
    assert header.tensor_types["position_embd.weight"] == 1  # F16
    assert header.tensor_types["blk.0.ffn.act.scales"] == 0  # F32
    assert header.tensor_types["blk.0.ffn_up.weight"] not in (0, 1)
    lm = LanguageModel(tmp_path / "lm.gguf")
    context = lm.context(128, kv_type="f32", flash_attention=False, all_logits=True)
    try:
        actual = context.logits_of_tokens(tiny.prompt)
    finally:
        context.close()
        lm.close()
    with torch.inference_mode():
        expected = tiny.model(torch.tensor([tiny.prompt])).logits[0].numpy()
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error < (0.05 if quant == "Q8_0" else 0.25)


def test_opts_own_special_tokens_are_control(tmp_path: Path) -> None:
    """Two of them are plain pieces in the published tokenizer.json."""
    write_any_tokenizer(tmp_path, "opt")
    vocabulary = vocabulary_from_folder(tmp_path, 710, opt.TOKENS)
    assert [vocabulary.pieces[i].decode() for i in range(4)] == list(OPT_SPECIAL)
    assert vocabulary.types[:5] == [CONTROL] * 4 + [NORMAL]
    assert (vocabulary.bos, vocabulary.eos, vocabulary.pre) == (2, 2, "gpt-2")


def test_the_older_pair_of_files_is_the_same_tokenizer(tmp_path: Path) -> None:
    write_any_tokenizer(tmp_path, "opt")
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 2, "eos_token_id": 2}))
    newer = vocabulary_from_folder(tmp_path, 710, opt.TOKENS)
    ids_of = reference_language.text_to_ids(tmp_path)
    split_tokenizer(tmp_path)
    older = vocabulary_from_folder(tmp_path, 710, opt.TOKENS)
    assert dataclasses.replace(older, add_bos=newer.add_bos) == newer
    older_ids_of = reference_language.text_to_ids(tmp_path)
    assert all(ids_of(text) == older_ids_of(text) for text in strings())
    for name, value in (("tokenizer_class", "CLIPTokenizer"), ("add_prefix_space", True)):
        path = tmp_path / "tokenizer_config.json"
        published = path.read_text()
        path.write_text(json.dumps({**json.loads(published), name: value}))
        with pytest.raises(CheckpointError, match=f"{name}.*{value}"):
            vocabulary_from_folder(tmp_path, 710, opt.TOKENS)
        path.write_text(published)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nalone\n")
    with pytest.raises(CheckpointError, match="'alone' is not a pair of pieces"):
        vocabulary_from_folder(tmp_path, 710, opt.TOKENS)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt cannot be read"):
        vocabulary_from_folder(tmp_path, 710, opt.TOKENS)
