"""What the families refuse, with which messages, and that they leave no files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from edgeprism.cli import convert as convert_command
from edgeprism.cli.main import run
from edgeprism.convert.discover import families, family_names
from edgeprism.convert.family import Family
from edgeprism.convert.options import ConvertOptions
from edgeprism.errors import CheckpointError, UsageError
from tests.helpers import tiny_captioners as tiny
from tests.helpers.converting import convert_family
from tests.helpers.tiny_captioners import Case
from tests.helpers.tiny_prismatic import write_prismatic
from tests.helpers.tiny_vila import write_vila

WRITERS: dict[str, Callable[[Path], Case]] = {
    "llava": tiny.write_llava,
    "llava-hf": tiny.write_llava_hf,
    "vila": write_vila,
    "prismatic": lambda p: write_prismatic(p, backbone="siglip-vit-so400m", arch="gelu-mlp"),
}


@pytest.fixture
def case_of(tmp_path: Path) -> Callable[[str], Case]:
    return lambda name: WRITERS[name](tmp_path / "c")


def refusal(case: Case, out: Path, **settings: Any) -> CheckpointError:
    options = ConvertOptions(vision_quants=("fp32",), lm_quant="F32")
    with pytest.raises(CheckpointError) as caught:
        convert_family(case.family, out, options, {**case.settings, **settings})
    assert [path.name for path in out.parent.iterdir() if out.name in path.name] == []
    assert caught.value.hint
    return caught.value


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def misname(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[f"{name}_"] = tensors.pop(name)


def test_every_fault_of_one_file_is_listed(case_of: Callable[[str], Case], tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        misname(tensors, "vision_tower.vision_model.embeddings.class_embedding")
        del tensors["language_model.model.layers.1.mlp.up_proj.weight"]
        name = "multi_modal_projector.linear_2.weight"
        tensors[name] = tensors[name][:, :8].contiguous()
        tensors["image_newline"] = torch.zeros(64)

    case = case_of("llava-hf")
    edit_tensors(case.settings["captioner"] / "model.safetensors", spoil)
    message = refusal(case, tmp_path / "out").message
    for line in (
        "2 missing, 1 of another shape, 2 unexpected",
        "missing: vision_tower.vision_model.embeddings.class_embedding [48]",
        "missing: language_model.model.layers.1.mlp.up_proj.weight [160, 64]",
        "wrong shape: multi_modal_projector.linear_2.weight: [64, 8], expected [64, 64]",
        "unexpected: vision_tower.vision_model.embeddings.class_embedding_ [48]",
        "unexpected: image_newline [64]",
    ):
        assert line in message


def test_faults_of_all_folders_come_at_once(case_of: Callable[[str], Case], tmp_path: Path) -> None:
    case = case_of("vila")
    folder = case.settings["captioner"]
    edit_tensors(folder / "mm_projector" / "model.safetensors", lambda t: t.pop("layers.1.bias"))
    edit_tensors(
        folder / "vision_tower" / "model.safetensors",
        lambda t: misname(t, "vision_model.encoder.layers.0.mlp.fc1.bias"),
    )
    message = refusal(case, tmp_path / "out").message
    assert "missing: layers.1.bias [192]" in message
    assert "missing: vision_model.encoder.layers.0.mlp.fc1.bias [96]" in message
    assert "unexpected: vision_model.encoder.layers.0.mlp.fc1.bias_ [96]" in message


def test_faults_in_torchs_own_formats(case_of: Callable[[str], Case], tmp_path: Path) -> None:
    case = case_of("prismatic")
    path = case.settings["captioner"] / "checkpoints" / "latest-checkpoint.pt"
    tables = torch.load(path, weights_only=True)
    misname(tables["model"]["projector"], "projector.2.bias")
    tables["model"]["vision_backbone"] = {"norm.weight": torch.ones(4)}
    torch.save(tables, path)
    edit_tensors(
        case.settings["vision"] / "model.safetensors", lambda t: t.pop("blocks.1.attn.qkv.bias")
    )
    message = refusal(case, tmp_path / "out").message
    for line in ("missing: model.projector.projector.2.bias", "model.projector.projector.2.bias_",
                 "unexpected: model.vision_backbone.norm.weight",
                 "missing: blocks.1.attn.qkv.bias [144]"):  # fmt: skip
        assert line in message


def test_a_pickle_with_more_than_tensors_is_refused(
    case_of: Callable[[str], Case], tmp_path: Path
) -> None:
    case = case_of("prismatic")
    path = case.settings["captioner"] / "checkpoints" / "latest-checkpoint.pt"
    torch.save({"model": {"projector": {"weights": Path("/anything")}}}, path)
    assert "cannot be read as tensors alone" in refusal(case, tmp_path / "out").message


@pytest.mark.parametrize(
    ("name", "file", "changes", "expected"),
    [
        ("llava", "captioner/config.json", {"mm_projector_type": "resampler"}, "mm_projector_type"),
        ("llava", "captioner/config.json", {"image_aspect_ratio": "anyres"}, "image_aspect_ratio"),
        ("llava", "captioner/config.json", {"mm_use_im_start_end": True}, "named <im_start>"),
        ("llava", "captioner/config.json", {"mm_vision_select_layer": -9}, "feature layer is -9"),
        ("llava", "captioner/config.json", {"mm_vision_select_feature": "cls_patch"}, "class row"),
        ("llava", "vision/config.json", {"model_type": "dinov2"}, "'dinov2', expected 'siglip'"),
        ("llava", "vision/preprocessor_config.json", {"resample": 9}, "resample 9"),
        ("llava", "vision/preprocessor_config.json",
         {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
         "takes 56×56"),
        ("llava-hf", "config.json", {"projector_hidden_act": "relu"}, "projector_hidden_act"),
        ("llava-hf", "config.json", {"vision_feature_layer": [-2, -5]}, "[-2, -5]"),
        ("llava-hf", "config.json", {"text_config": {"model_type": "git"}}, "'git', expected one"),
        ("vila", "config.json", {"s2": True}, "s2"),
        ("vila", "config.json", {"image_aspect_ratio": "dynamic"}, "image_aspect_ratio 'dynamic'"),
        ("vila", "mm_projector/config.json", {"mm_projector_type": "dsresampler"}, "dsresampler"),
    ],
)  # fmt: skip
def test_settings_that_are_not_understood_are_named(
    name: str,
    file: str,
    changes: dict[str, Any],
    expected: str,
    case_of: Callable[[str], Case],
    tmp_path: Path,
) -> None:
    case = case_of(name)
    edit_json(tmp_path / "c" / file, **changes)
    assert expected in refusal(case, tmp_path / "out").message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_backbone_id": "in1k-vit-l"}, "vision_backbone_id 'in1k-vit-l'"),
        ({"image_resize_strategy": "corner-pad"}, "image_resize_strategy 'corner-pad'"),
        ({"image_resize_strategy": "letterbox", "vision_backbone_id": "clip-vit-b"},
         "image_resize_strategy 'letterbox' with clip-vit-b"),
        ({"arch_specifier": "full-align+resampler"}, "arch_specifier"),
    ],
)  # fmt: skip
def test_other_prismatic_models_are_refused(
    changes: dict[str, Any], expected: str, case_of: Callable[[str], Case], tmp_path: Path
) -> None:
    case = case_of("prismatic")
    path = case.settings["captioner"] / "config.json"
    edit_json(path, model={**json.loads(path.read_text())["model"], **changes})
    assert expected in refusal(case, tmp_path / "out").message


def test_unknown_layouts_say_what_comes_close(
    case_of: Callable[[str], Case], tmp_path: Path
) -> None:
    vila = case_of("vila")
    taken_for_llava = Case("llava", vila.settings, vila.reference)
    (vila.settings["captioner"] / "model.safetensors").write_bytes(
        (vila.settings["captioner"] / "mm_projector" / "model.safetensors").read_bytes()
    )
    error = refusal(taken_for_llava, tmp_path / "out")
    assert "found: config.json with model_type 'llava_llama'" in error.message
    assert "files config.json, llm/, mm_projector/" in error.message
    assert "expected: model_type one of llava" in error.message
    assert "families that come close: vila, llava" in error.message
    assert "convert vila" in error.hint
    (tmp_path / "empty").mkdir()
    empty = Case("vila", {"captioner": tmp_path / "empty"}, vila.reference)
    error = refusal(empty, tmp_path / "out")
    assert "families that come close: none" in error.message
    assert "--list" in error.hint


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
@pytest.mark.parametrize("config", [{"model_type": "pix2struct"}, None], ids=["another's", "none"])
def test_the_layout_is_told_before_missing_weights(
    family: Family, config: dict[str, Any] | None, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    (folder / "llm_adapter").mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    expected = {option.name for option in family.options} & {"captioner", "llm", "vision"}
    options = ConvertOptions(vision_quants=("fp32",), lm_quant="F32")
    with pytest.raises(CheckpointError) as caught:
        convert_family(family.name, tmp_path / "out", options, dict.fromkeys(expected, folder))
    message = caught.value.message
    assert f"{folder} is not a checkpoint of {family.name}." in message
    actual = "model_type 'pix2struct'" if config else "found: no config.json; files llm_adapter/"
    assert actual in message
    assert "families that come close: prismcaptioner" in message
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_what_the_original_layout_needs_beside(
    case_of: Callable[[str], Case], tmp_path: Path
) -> None:
    error = refusal(case_of("llava"), tmp_path / "out", vision=None)
    assert "openai/clip-vit-large" in error.message
    assert "`vision`" in error.hint


def test_unknown_conversations_are_refused(case_of: Callable[[str], Case], tmp_path: Path) -> None:
    settings = {**case_of("llava-hf").settings, "conversation": "small-talk"}
    with pytest.raises(UsageError, match="small-talk") as caught:
        convert_family("llava", tmp_path / "out", ConvertOptions(), settings)
    assert "vicuna-v1" in caught.value.hint


def test_special_tokens_that_the_conversation_needs(
    case_of: Callable[[str], Case], tmp_path: Path
) -> None:
    error = refusal(case_of("llava"), tmp_path / "out", conversation="llama-3")
    assert "<|eot_id|>" in error.message


@pytest.mark.parametrize(("name", "meant"), [("NOSUCH", ""), ("lava", "Did you mean 'llava'?")])
def test_a_family_that_is_not_there(
    name: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", name, "out", "--captioner", "c"]) == 2
    message = capsys.readouterr().err
    assert f"'{name}'" in message
    assert meant in message
    assert ", ".join(sorted([*family_names(), "mmproj"])) in message
    assert "edgeprism convert --list" in message


def test_list_and_help_name_every_family() -> None:
    shown = CliRunner().invoke(convert_command.command, ["--list"])
    assert shown.exit_code == 0
    assert [line.split("\t")[0] for line in shown.stdout.splitlines()] == family_names()
    assert "docs/reference/families.md" in shown.stderr
    for name in family_names():
        assert CliRunner().invoke(convert_command.command, [name, "--help"]).exit_code == 0
