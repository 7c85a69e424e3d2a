"""Checkpoints by any version of their tools mean the same, and unknown fields are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeprism.convert.gate import settings as gate_settings
from edgeprism.convert.language import config as language_config
from edgeprism.convert.language.config import LmConfig, lm_config_from_dict
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.parts import FamilyParts
from edgeprism.errors import CheckpointError, ParityError
from tests.convert import test_internvl_hf as internvl
from tests.helpers import tiny_captioners as tiny
from tests.helpers import tiny_smolvlm, transformers5
from tests.helpers.checkpoints import Spec, write_checkpoint
from tests.helpers.converting import convert, convert_family, lm_of, parts_of
from tests.helpers.tiny_captioners import Case
from tests.helpers.tiny_lm import LLAMA3_SCALING, write_lm

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300,
    "max_position_embeddings": 8192,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# model_type, fields as transformers 4 writes them, fields as 5 writes them
ROPES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("qwen2", {"rope_theta": 1e6},
     {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
    ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3_SCALING},
     {"rope_parameters": {"rope_theta": 5e5, **LLAMA3_SCALING}}),
    ("llama", {"rope_scaling": LINEAR}, {"rope_parameters": {"rope_theta": 1e4, **LINEAR}}),
    ("llama", {"rope_theta": 3e4, "rope_scaling": YARN},
     {"rope_parameters": {"rope_theta": 3e4, "beta_fast": 32, "beta_slow": 1,
                          "attention_factor": None, **YARN}}),
    ("mistral", {"rope_theta": 1e6, "sliding_window": 4096},
     {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "sliding_window": 4096}),
    ("qwen2", {"rope_theta": 1e6},
     {"rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}},
      "layer_types": ["full_attention"] * 2}),
    ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3_SCALING},
     {"rope_scaling": {"rope_theta": 5e5, **LLAMA3_SCALING}}),
    ("internlm2", {"rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
     {"rope_parameters": {"rope_theta": 1e6, "rope_type": "dynamic", "factor": 2.0}}),
]  # fmt: skip


def lm_config(kind: str, fields: dict[str, Any]) -> LmConfig:
    return lm_config_from_dict({"model_type": kind, **SIZES, **fields}, "config.json")


@pytest.mark.parametrize(("kind", "older", "newer"), ROPES)
def test_both_spellings_of_rope_mean_the_same(
    kind: str, older: dict[str, Any], newer: dict[str, Any]
) -> None:
    assert lm_config(kind, newer) == lm_config(kind, older)
    theta = older.get("rope_theta", 1e4)
    assert lm_config(kind, newer).rope_theta == theta
    of_older, of_newer = (
        gate_settings.settings_from_config({"model_type": kind, **SIZES, **fields}).rotation
        for fields in (older, newer)
    )
    torch.testing.assert_close(of_newer.rates, of_older.rates, rtol=0, atol=0)
    assert of_newer.scale == of_older.scale


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
         "rope_theta is 10000.0, and 1000000.0"),
        ({"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 1e6, **YARN}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}}, "longrope"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "shift": 3}}, "shift"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
         "partial_rotary_factor"),
        ({"rope_parameters": {**YARN, "beta_fast": 8}}, "beta_fast"),
        ({"rope_parameters": {"full_attention": LINEAR, "sliding_attention": YARN}},
         "the same for every kind of layer"),
        ({"rope_parameters": "default"}, "rope_parameters is 'default'"),
        ({"attention_multiplier": 0.0078}, "attention_multiplier = 0.0078"),
        ({"no_rope_layers": [0, 1]}, "no_rope_layers = [0, 1]"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        lm_config("llama", fields)
    assert expected in caught.value.message
    assert "config.json" in caught.value.message


def test_fields_that_compute_nothing_are_passed_over() -> None:
    idle = {
        "_name_or_path": "x", "dtype": "bfloat16", "use_cache": True, "temperature": 0.7,
        "auto_map": {"AutoModel": "m.py"}, "quantization_config": None, "norm_topk_prob": False,
        "transformers_version": "5.24.0", "attention_dropout": 0.1,
    }  # fmt: skip
    assert lm_config("llama", idle) == lm_config("llama", {})


def test_a_sliding_layer_shortens_the_context() -> None:
    types = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 128}
    assert lm_config("qwen2", {**types, "use_sliding_window": True}).context_length == 128
    assert lm_config("qwen2", types).context_length in (128, 8192)


# ---- families


def _smolvlm(folder: Path, spec: tiny_smolvlm.Spec) -> Case:
    tiny_smolvlm.write(folder, spec)
    return Case("smolvlm", {"captioner": folder}, reference=None)  # type: ignore[arg-type]


def _internvl(folder: Path, spec: internvl.Spec) -> Case:
    internvl.write(folder, spec)
    return Case("internvl", {"captioner": folder}, reference=None)  # type: ignore[arg-type]


WRITERS: dict[str, Callable[[Path], Case]] = {
    "llava-hf": tiny.write_llava_hf,
    "llava-hf-pad": lambda p: tiny.write_llava_hf(p, pad=True),
    "llava-hf-siglip": lambda p: tiny.write_llava_hf(p, tower="siglip", lm="qwen2"),
    "llava-hf-tied": lambda p: tiny.write_llava_hf(p, lm="smollm2"),
    "llava": tiny.write_llava,
    **{f"smolvlm-{s.name}": lambda p, s=s: _smolvlm(p, s) for s in tiny_smolvlm.SPECS},  # type: ignore[misc]
    **{f"internvl-{s.name}": lambda p, s=s: _internvl(p, s) for s in internvl.SPECS},  # type: ignore[misc]
}


def _comparable(parts: FamilyParts) -> tuple[Any, ...]:
    """Return what a bundle is made of, but for the digests and names of files."""
    manifest = parts.manifest
    shapes = [(tensor.name, tensor.shape) for tensor in lm_of(parts).tensors]
    return (
        parts.lm.config, shapes, parts.lm.vocabulary, manifest.image, manifest.vision,
        manifest.prompts, [str(parts.vision(torch.float32))],
    )  # fmt: skip


@pytest.mark.parametrize("moved", [False, True], ids=["saved", "moved"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_family_is_the_same_in_either_version(name: str, moved: bool, tmp_path: Path) -> None:
    older = WRITERS[name](tmp_path / "older")
    shutil.copytree(tmp_path / "older", tmp_path / "newer")
    settings = {
        option: tmp_path / "newer" / path.relative_to(tmp_path / "older")
        for option, path in older.settings.items()
    }
    for folder in settings.values():
        transformers5.rewrite(folder, moved=moved)
    newer = Case(older.family, settings, older.reference)
    before, after = parts_of(older), parts_of(newer)
    assert _comparable(after) == _comparable(before)
    for tensor in zip(lm_of(before).tensors, lm_of(after).tensors, strict=True):
        one, other = (t.make(lm_of(p).read) for t, p in zip(tensor, (before, after), strict=True))
        assert torch.equal(one, other)
    pixels = np.random.default_rng(0).integers(
        0, 256, (1, before.manifest.image.size, before.manifest.image.size, 3), dtype=np.uint8
    )
    one_way, other_way = (p.reference_visual_tokens(pixels, lambda: None) for p in (before, after))
    np.testing.assert_array_equal(other_way, one_way)


def test_a_captioner_saved_by_transformers_5_is_converted(tmp_path: Path) -> None:
    case = tiny.write_llava_hf(tmp_path / "c", lm="llama3")
    transformers5.rewrite(tmp_path / "c")
    options = ConvertOptions(vision_quants=("fp32",), lm_quant="F32")
    convert_family(case.family, tmp_path / "bundle", options, case.settings)
    assert (tmp_path / "bundle" / "manifest.json").is_file()


def test_the_gate_sees_a_misread_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the converter read it before: theta 10000, scaling dropped."""
    case = tiny.write_llava_hf(tmp_path / "c", lm="llama3")
    transformers5.rewrite(tmp_path / "c")

    def dropped(data: dict[str, Any], where: str) -> dict[str, Any]:
        return {name: value for name, value in data.items() if name != "rope_parameters"}

    monkeypatch.setattr(language_config, "with_older_rope", dropped)
    options = ConvertOptions(vision_quants=("fp32",), lm_quant="F32")
    with pytest.raises(ParityError, match="lm F32"):
        convert_family(case.family, tmp_path / "bundle", options, case.settings)


def test_a_head_that_a_tied_configuration_denies_is_seen(tmp_path: Path) -> None:
    case = tiny.write_llava_hf(tmp_path / "c", lm="smollm2")
    file = tmp_path / "c" / "model.safetensors"
    tensors = load_file(file)
    embedding = next(t for n, t in tensors.items() if n.endswith("embed_tokens.weight"))
    tensors["language_model.lm_head.weight"] = embedding.flip(0).contiguous()
    save_file(tensors, file)
    options = ConvertOptions(vision_quants=("fp32",), lm_quant="F32")
    with pytest.raises(ParityError, match="lm F32"):
        convert_family(case.family, tmp_path / "bundle", options, case.settings)


@pytest.mark.parametrize(
    ("name", "file", "part", "field"),
    [
        ("llava-hf", "config.json", "", "vision_feature_pooling"),
        ("llava-hf", "config.json", "text_config", "attention_multiplier"),
        ("llava-hf", "config.json", "vision_config", "num_register_tokens"),
        ("llava-hf", "preprocessor_config.json", "", "gamma"),
        ("llava", "captioner/config.json", "", "mm_spatial_pool_stride"),
        ("llava", "vision/config.json", "vision_config", "num_register_tokens"),
        ("smolvlm-smolvlm", "config.json", "", "token_pooling"),
        ("smolvlm-smolvlm", "config.json", "vision_config", "num_register_tokens"),
        ("smolvlm-smolvlm", "preprocessor_config.json", "", "gamma"),
        ("internvl-" + internvl.SPECS[0].name, "config.json", "", "token_pooling"),
        ("internvl-" + internvl.SPECS[0].name, "config.json", "vision_config", "num_registers"),
        ("internvl-" + internvl.SPECS[0].name, "preprocessor_config.json", "", "gamma"),
    ],
)
def test_an_unknown_field_of_any_file_is_refused(
    name: str, file: str, part: str, field: str, tmp_path: Path
) -> None:
    case = WRITERS[name](tmp_path / "c")
    path = tmp_path / "c" / file
    content = json.loads(path.read_text())
    (content[part] if part else content)[field] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"{field} = 3") as caught:
        parts_of(case)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_processor_files_that_disagree_are_refused(tmp_path: Path) -> None:
    case = tiny.write_llava_hf(tmp_path / "c")
    older = json.loads((tmp_path / "c" / "preprocessor_config.json").read_text())
    newer = {"image_processor": {**older, "image_mean": [0.1, 0.2, 0.3]}}
    (tmp_path / "c" / "processor_config.json").write_text(json.dumps(newer))
    with pytest.raises(CheckpointError, match="disagree about image_mean"):
        parts_of(case)


def test_prismcaptioner_with_an_internlm2_of_transformers_5(tmp_path: Path) -> None:
    folders = write_checkpoint(tmp_path / "c", Spec())
    transformers5.rewrite(folders.llm)
    transformers5.rewrite(folders.vision)
    assert (convert(folders, tmp_path / "bundle") / "manifest.json").is_file()


def test_a_language_model_alone(tmp_path: Path) -> None:
    write_lm(tmp_path / "lm", "qwen2")
    older = json.loads((tmp_path / "lm" / "config.json").read_text())
    transformers5.rewrite(tmp_path / "lm")
    newer = json.loads((tmp_path / "lm" / "config.json").read_text())
    assert "rope_theta" not in newer
    assert lm_config_from_dict(newer, "n") == lm_config_from_dict(older, "o")
