"""Damaged and hostile files of a checkpoint: refused by name, before anything is made of them."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgeprism.convert.gate.judge import judge_lm, judge_vision
from edgeprism.convert.gate.language import text_to_ids
from edgeprism.convert.language.config import lm_config_from_dict
from edgeprism.convert.language.read_vocabulary import vocabulary_from_folder
from edgeprism.convert.language.vocabulary import TokenRules
from edgeprism.convert.read.checkpoint import Checkpoint, read_config, read_json
from edgeprism.convert.read.fields import object_field, text_fields
from edgeprism.convert.read.pth import pth_checkpoint
from edgeprism.convert.read.sources import published_name, require_whole
from edgeprism.convert.vision.config import preparation_from_folder, tower_fields
from edgeprism.convert.vision.intern_vit import intern_vit_fields
from edgeprism.errors import CheckpointError
from tests.helpers.checkpoints import write_tokenizer
from tests.helpers.converting import parts_of
from tests.helpers.tiny_captioners import write_llava_hf

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 400, "rms_norm_eps": 1e-5,
}  # fmt: skip
TOWER = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "image_size": 56, "patch_size": 14,
}  # fmt: skip
NOT_A_SIZE = ["12", -1, 0, 10**12, 1.5, float("nan"), True, [3], {"a": 1}]
NOT_A_NUMBER = ["1e-5", -1.0, 0, float("nan"), float("inf"), 10**30, True, [1e-5], {}]


def refused(read: Callable[[], object], *expected: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read()
    assert caught.value.hint
    for text in expected:
        assert text in caught.value.message


# ---- config.json


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "internlm2", "minicpm"])
def test_a_language_models_fields_are_checked_before_they_are_used(kind: str) -> None:
    """A number of layers above any model's fills the memory as soon as their tensors are listed."""
    whole = {**LLAMA, "model_type": kind}
    assert lm_config_from_dict(whole, "here").n_layers == 2
    for name in ("num_hidden_layers", "vocab_size", "num_key_value_heads", "hidden_size"):
        for value in NOT_A_SIZE:
            data = {**whole, name: value}
            refused(partial(lm_config_from_dict, data, "here"), "here describes", f"{name} = ")
    for name in ("rms_norm_eps", "rope_theta"):
        for value in NOT_A_NUMBER:
            data = {**whole, name: value}
            refused(partial(lm_config_from_dict, data, "here"), "here ", name)
    for name in ("tie_word_embeddings", "attention_bias"):
        data = {**whole, name: "false"}
        refused(partial(lm_config_from_dict, data, "here"), f"{name} = 'false'")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": ["llama"]}, "model_type is ['llama']"),
        ({"model_type": "mistral", "sliding_window": "no"}, "sliding_window = 'no'"),
        ({"model_type": "qwen2", "layer_types": 5}, "here "),
        ({"rope_scaling": {"type": ["linear"], "factor": 2}}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear", "factor": float("inf")}}, "rope_scaling"),
        ({"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4,
                           "high_freq_factor": 4}}, "rope_scaling"),
    ],
)  # fmt: skip
def test_other_fields_of_a_language_model(changes: dict[str, Any], expected: str) -> None:
    refused(lambda: lm_config_from_dict({**LLAMA, **changes}, "here"), "here", expected)


@pytest.mark.parametrize("read", [
    lambda data: tower_fields("clip_vision_model", data, "here"),
    lambda data: tower_fields("siglip_vision_model", data, "here"),
    lambda data: intern_vit_fields(data, "here"),
])  # fmt: skip
def test_a_towers_fields_are_checked(read: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    assert read(TOWER)["image_size"] == 56
    for name in TOWER:
        for value in NOT_A_SIZE:
            refused(partial(read, {**TOWER, name: value}), "here", f"{name} = ")
    for value in NOT_A_NUMBER:
        refused(partial(read, {**TOWER, "layer_norm_eps": value}), "here", "layer_norm_eps")


@pytest.mark.parametrize(
    "changes",
    [
        {"rescale_factor": "1/255"}, {"rescale_factor": 0}, {"image_mean": 0.5},
        {"image_mean": [0.5]}, {"image_mean": ["0.5"] * 3}, {"image_mean": [float("nan")] * 3},
        {"image_std": [0.5, 0.5, 0]}, {"image_std": {"r": 1}}, {"resample": [3]},
    ],
)  # fmt: skip
def test_an_image_processors_numbers_are_numbers(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(changes))
    refused(
        lambda: preparation_from_folder(tmp_path, 224, "clip"),
        "preprocessor_config.json is not understood", next(iter(changes)),
    )  # fmt: skip


def test_a_context_that_a_picture_fills_is_refused(tmp_path: Path) -> None:
    case = write_llava_hf(tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["max_position_embeddings"] = 16
    path.write_text(json.dumps(config))
    refused(lambda: parts_of(case), "takes 16 tokens (max_position_embeddings in config.json)")


def test_half_of_a_character_is_no_text(tmp_path: Path) -> None:
    """JSON can say it; no file of a bundle can. Two halves are a character."""
    path = tmp_path / "tokenizer.json"
    path.write_text('{"a": "\\ud83d\\ude00"}')
    assert read_json(path) == {"a": "😀"}
    for half in ("\\ud83d", "\\uDE00", "\\ude00\\ud83d"):
        path.write_text(f'{{"a": ["{half}"]}}')
        refused(partial(read_json, path), f"{path} cannot be read")
        path.write_text(f'{{"{half}": 1}}')
        refused(partial(read_json, path), f"{path} cannot be read")


@pytest.mark.parametrize("kind", [{}, [], 7, True])
def test_a_model_type_that_is_no_text_is_named(kind: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(CheckpointError, match=r"config\.json: model_type is .*, no text"):
        read_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"here: text_config: model_type is .*, no text"):
        object_field({"text_config": {"model_type": kind}}, "text_config", "here")


def test_a_text_config_that_is_no_object_is_named() -> None:
    refused(lambda: text_fields({"text_config": "x"}, [], "llama", "c.json"), "c.json: text_config")


# ---- weights


def strange_tensors() -> dict[str, torch.Tensor]:
    return {
        "int8": torch.zeros(2, dtype=torch.int8), "bool": torch.zeros(2, dtype=torch.bool),
        "float8": torch.zeros(2).to(torch.float8_e4m3fn), "complex": torch.zeros(2) * 1j,
        "sparse": torch.eye(2)[0].to_sparse(), "meta": torch.zeros(2, device="meta"),
        "many": torch.zeros(1).expand(10**9),
    }  # fmt: skip


@pytest.mark.parametrize("container", [".safetensors", ".bin"])
def test_numbers_of_another_kind_are_listed_with_all_other_faults(
    container: str, tmp_path: Path
) -> None:
    tensors = {"whole": torch.zeros(2, dtype=torch.bfloat16), **strange_tensors()}
    if container == ".bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        for name in ("complex", "sparse", "meta", "many"):
            del tensors[name]
        save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path, "captioner")
    shapes = {name: checkpoint.shape(name) for name in tensors}
    checkpoint.require({"whole": (2,)})
    strange = [name for name in tensors if name != "whole"]
    with pytest.raises(CheckpointError) as caught:
        checkpoint.require({**shapes, "lost": (3,)})
    assert f"1 missing, 0 of another shape, {len(strange)} of another type" in caught.value.summary
    assert [line for line in caught.value.details if line.startswith("not a float type: ")] == [
        line for line in caught.value.details if any(f": {name} is " in line for name in strange)
    ]
    assert len(caught.value.details) == len(strange) + 1
    assert "Quantized checkpoints" in caught.value.hint
    for name in strange:
        refused(partial(checkpoint.read, name), name, "not a float type")


def test_a_pth_file_is_a_table_by_name_and_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    probes = ["weight"]
    refused(lambda: pth_checkpoint(tmp_path, "part", probes), "no .pth file", "there: none")
    for table in ({"weight": torch.zeros(2), 5: torch.zeros(2)}, {"model": {None: torch.zeros(2)}}):
        torch.save(table, tmp_path / "part.pth")
        refused(lambda: pth_checkpoint(tmp_path, "part", probes), "part.pth is not a table")
    for pickled in (
        b"\x80\x02.",
        b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x05u.",
        pickle.dumps(os.system),
    ):
        (tmp_path / "part.pth").write_bytes(pickled)
        refused(lambda: pth_checkpoint(tmp_path, "part", probes), "part.pth")
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "part.pth")
    assert pth_checkpoint(tmp_path, "part", probes).names == {"weight"}


def test_links_to_missing_files_are_named(tmp_path: Path) -> None:
    for name in ("here.json", "lost.json"):
        (tmp_path / name).symlink_to(tmp_path.parent / f"{tmp_path.name}-{name}")
    (tmp_path / "here.json").resolve().write_text("{}")
    refused(lambda: require_whole([tmp_path]), "missing: ", str(tmp_path / "lost.json"))
    (tmp_path / "lost.json").unlink()
    require_whole([tmp_path])


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("openbmb/MiniCPM-V", "openbmb/MiniCPM-V"), ("chat", "folder"), ("/data/llava", "folder"),
        ("./out/llava", "folder"), (5, "folder"), (None, "folder"), ("a/b\x1b[2J", "folder"),
    ],
)  # fmt: skip
def test_only_a_published_name_replaces_the_folders(
    stored: object, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_name_or_path": stored}))
    assert published_name(folder) == name


def test_visual_tokens_that_are_all_zero_fail() -> None:
    zeros = np.zeros((1, 4, 8), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, failures = judge_vision("fp32", zeros, zeros)
    assert any("relative error nan" in failure for failure in failures)


def test_logits_that_are_all_alike_fail() -> None:
    alike = [np.zeros((3, 5), np.float32)]
    _, failures = judge_lm("F32", alike, alike)
    assert any("relative error of the logits nan" in failure for failure in failures)


# ---- tokenizers

BPE: dict[str, Any] = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"],
              "ignore_merges": False},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "added_tokens": [{"id": 3, "content": "<end>", "special": True}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "changes", "expected"),
    [
        ("model", {"vocab": {}}, "no vocabulary of pieces"),
        ("model", {"vocab": {"a": 0, "b": 1, "ab": 1}}, "two pieces have one id"),
        ("model", {"vocab": {"a": 0, "b": 1, "\ud83d": 2}}, "surrogates not allowed"),
        ("", {"added_tokens": {"id": 3}}, "added_tokens is no list"),
        ("", {"normalizer": "NFC"}, ""),
        ("", {"normalizer": ["NFC"]}, "tokenizer.json"),
        ("", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": 3}}, "tokenizer.json"),
        ("", {"pre_tokenizer": {"type": "Split", "pattern": "x"}}, "tokenizer.json"),
        ("", {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": ["x"]}}}, "tokenizer.json"),
    ],
)
def test_a_tokenizer_json_that_contradicts_itself(
    part: str, changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    data = {**BPE, part: {**BPE[part], **changes}} if part else {**BPE, **changes}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    if expected:
        refused(lambda: vocabulary_from_folder(tmp_path, 4, TokenRules()), expected)
    else:
        assert vocabulary_from_folder(tmp_path, 4, TokenRules()).pre == "gpt-2"


def test_a_tokenizer_that_its_own_library_cannot_read(tmp_path: Path) -> None:
    data = {**BPE, "model": {**BPE["model"], "merges": ["a c"]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    refused(lambda: text_to_ids(tmp_path), "tokenizer.json cannot be read")


@pytest.mark.parametrize("decoder", [["<a>"], "x", {"-1": {"content": "<a>"}}, {"²": {}}, {"1": 5},
                                     {"1": {"content": ["<a>"]}}])  # fmt: skip
def test_names_of_added_tokens_are_an_object(decoder: object, tmp_path: Path) -> None:
    n_vocab = write_tokenizer(tmp_path, add_dummy_prefix=True)
    config = {"added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    refused(
        lambda: vocabulary_from_folder(tmp_path, n_vocab, TokenRules()),
        "tokenizer_config.json: added_tokens_decoder",
    )
