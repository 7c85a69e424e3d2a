"""What `convert` refuses, with which messages, and that it leaves no files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.cli.errors import with_options
from edgeprism.convert.gate import judge
from edgeprism.convert.language import internlm2
from edgeprism.convert.vision.graph import VisionGraph
from edgeprism.errors import CheckpointError, ParityError, UsageError
from tests.helpers.checkpoints import Folders, Spec, write_checkpoint
from tests.helpers.converting import convert

SINGLE = Spec(container="single", seed=6)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Return a checkpoint that the test may damage."""
    return write_checkpoint(tmp_path / "checkpoint", SINGLE)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def refusal(folders: Folders, out: Path) -> str:
    """Return CheckpointError's message; check that no bundle and no files are left."""
    with pytest.raises(CheckpointError) as caught:
        convert(folders, out)
    left = [path.name for path in out.parent.iterdir() if out.name in path.name]
    assert left == []
    assert caught.value.hint
    return caught.value.message


def test_all_missing_and_misshapen_tensors_are_listed(folders: Folders, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.0.attention.wo.weight"]
        del tensors["model.norm.weight"]
        tensors["output.weight"] = tensors["output.weight"][:, :8].contiguous()

    edit_tensors(folders.llm / "model.safetensors", spoil)
    message = refusal(folders, tmp_path / "out")
    assert "missing: model.layers.0.attention.wo.weight [64, 64]" in message
    assert "missing: model.norm.weight [64]" in message
    assert "output.weight: [" in message
    assert "2 missing, 1 of another shape" in message
    assert str(folders.llm) in message


def test_missing_vision_tensor_is_named(folders: Folders, tmp_path: Path) -> None:
    name = "vision_model.encoder.layers.1.mlp.fc1.bias"
    edit_tensors(folders.vision / "model.safetensors", lambda tensors: tensors.pop(name))
    assert name in refusal(folders, tmp_path / "out")


def test_layers_that_are_not_used_need_not_be_there(folders: Folders, tmp_path: Path) -> None:
    def keep_used(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if "text_model" in name or "layers.2." in name or "head" in name or "post_" in name:
                del tensors[name]

    edit_tensors(folders.vision / "model.safetensors", keep_used)
    convert(folders, tmp_path / "out")


def test_adapter_tensors_without_a_base_tensor_are_listed(folders: Folders, tmp_path: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for half in "AB":
            tensor = tensors.pop(f"base_model.model.output.lora_{half}.weight")
            tensors[f"base_model.model.lm_head.lora_{half}.weight"] = tensor

    edit_tensors(folders.captioner / "llm_adapter" / "adapter_model.safetensors", rename)
    message = refusal(folders, tmp_path / "out")
    assert "2 adapter tensors match no tensor" in message
    assert "base_model.model.lm_head.lora_A.weight" in message
    assert "base_model.model.lm_head.lora_B.weight" in message


def test_half_a_lora_pair_is_named(folders: Folders, tmp_path: Path) -> None:
    name = "base_model.model.output.lora_{}.weight"
    edit_tensors(
        folders.captioner / "llm_adapter" / "adapter_model.safetensors",
        lambda tensors: tensors.pop(name.format("B")),
    )
    assert name.format("A") in refusal(folders, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rank_pattern": {"wqkv": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"wqkv": 4}}, "alpha_pattern"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 0}, "r = 0"),
        ({"r": 16}, r"lora_A.weight: \[8, 64\], expected \[16, 64\]".replace("\\", "")),
    ],
)
def test_other_adapters_are_refused(
    changes: dict[str, Any], expected: str, folders: Folders, tmp_path: Path
) -> None:
    edit_json(folders.captioner / "llm_adapter" / "adapter_config.json", **changes)
    assert expected in refusal(folders, tmp_path / "out")


@pytest.mark.parametrize(
    ("role", "changes", "expected"),
    [
        ("llm", {"model_type": "llama"}, "'llama', expected 'internlm2'"),
        ("llm", {"rope_scaling": {"type": "longrope", "factor": 2}}, "rope_scaling"),
        ("llm", {"bias": True}, "bias = True"),
        ("llm", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("llm", {"num_hidden_layers": None}, "num_hidden_layers"),
        ("llm", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("vision", {"model_type": "clip"}, "'clip', expected 'siglip'"),
        ("captioner/projector", {"llm_hidden_size": 128}, "llm_hidden_size is 128, expected 64"),
        ("captioner/projector", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ],
)
def test_other_models_are_refused(
    role: str, changes: dict[str, Any], expected: str, folders: Folders, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint" / role / "config.json"
    edit_json(path, **changes)
    message = refusal(folders, tmp_path / "out")
    assert expected in message
    assert str(path) in message


def test_another_picture_size_is_refused(folders: Folders, tmp_path: Path) -> None:
    size = {"height": 224, "width": 224}
    edit_json(folders.vision / "preprocessor_config.json", size=size)
    assert "takes 56×56" in refusal(folders, tmp_path / "out")


def test_damaged_and_absent_weights_are_named(folders: Folders, tmp_path: Path) -> None:
    path = folders.llm / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert str(path) in refusal(folders, tmp_path / "out")
    path.unlink()
    assert "holds no weights" in refusal(folders, tmp_path / "out")


def test_missing_shards_are_listed(folders: Folders, tmp_path: Path) -> None:
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = folders.llm / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    message = refusal(folders, tmp_path / "out")
    assert all(shard in message for shard in weight_map.values())


def test_a_pickle_that_holds_more_than_tensors_is_refused(folders: Folders, tmp_path: Path) -> None:
    (folders.llm / "model.safetensors").unlink()
    path = folders.llm / "pytorch_model.bin"
    torch.save({"weights": Path("/anything")}, path)
    assert "cannot be read as tensors alone" in refusal(folders, tmp_path / "out")


def test_integer_weights_are_refused(folders: Folders, tmp_path: Path) -> None:
    name = "model.norm.weight"
    edit_tensors(
        folders.llm / "model.safetensors",
        lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}),
    )
    assert "int8" in refusal(folders, tmp_path / "out")


def test_weights_that_are_not_finite_are_refused(folders: Folders, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = float("nan")

    edit_tensors(folders.llm / "model.safetensors", spoil)
    message = refusal(folders, tmp_path / "out")
    assert f"{folders.llm}: model.norm.weight holds values that are not finite" in message


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({"colour": "red"}, "colour: unknown field"),
        ({"max_tokens": "many"}, "max_tokens: int is expected"),
        ({"parity_texts": [1]}, "parity_texts"),
        ({"focus_instruction": "Look closely."}, 'focus_instruction: must hold "{focus}" exactly'),
        ({"focus_instruction": "{focus} and {focus}"}, "focus_instruction: must hold"),
        ({"max_tokens": 0}, "max_tokens: must lie in 1…65536"),
        ({"max_tokens": 1 << 20}, "max_tokens: must lie in 1…65536"),
        ({"name": " "}, "name: is empty"),
        ({"default_instruction": ""}, "default_instruction: is empty"),
    ],
)
def test_a_faulty_card_is_refused(
    card: dict[str, Any], expected: str, folders: Folders, tmp_path: Path
) -> None:
    path = folders.captioner / "edgeprism.json"
    path.write_text(json.dumps(card))
    message = refusal(folders, tmp_path / "out")
    assert f"{path} is refused" in message
    assert expected in message


def test_the_card_overrides_texts(folders: Folders, tmp_path: Path) -> None:
    card = {"default_instruction": "Describe the picture.", "max_tokens": 64, "notice": "A toy.",
            "license": "Apache-2.0", "name": "toy", "parity_texts": ["A red cube."]}  # fmt: skip
    (folders.captioner / "edgeprism.json").write_text(json.dumps(card))
    manifest = manifest_from_bundle(convert(folders, tmp_path / "out"))
    assert manifest.prompts.default_instruction == "Describe the picture."
    assert manifest.prompts.max_tokens == 64
    assert (manifest.notice, manifest.license, manifest.name) == ("A toy.", "Apache-2.0", "toy")
    assert manifest.parity.figures["lm F32"]["positions"] < 20


# ---- the bundle's folder


def test_an_existing_name_is_kept(folders: Folders, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match="exists already"):
        convert(folders, out)
    with pytest.raises(UsageError, match="not a bundle"):
        convert(folders, out, overwrite=True)
    (out / "manifest.json").write_text('{"name": "a web app", "icons": []}')
    with pytest.raises(UsageError, match="none of a bundle"):
        convert(folders, out, overwrite=True)
    assert (out / "mine.txt").read_text() == "keep me"
    with pytest.raises(UsageError, match="not a folder"):
        convert(folders, tmp_path / "nowhere" / "out")


def test_overwrite_swaps_bundles(
    folders: Folders, bundle_of: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(bundle_of(SINGLE), out)
    (out / "notes.txt").write_text("of a person")
    with pytest.raises(UsageError, match=r"more than a bundle.*notes\.txt"):
        convert(folders, out, overwrite=True, name="new")
    assert (out / "notes.txt").read_text() == "of a person"
    (out / "notes.txt").unlink()
    convert(folders, out, overwrite=True, name="new")
    assert manifest_from_bundle(out).name == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "out"]


def test_a_failed_overwrite_leaves_the_old_bundle(
    folders: Folders,
    bundle_of: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    shutil.copytree(bundle_of(SINGLE), out)
    before = (out / "manifest.json").read_bytes()
    monkeypatch.setattr(internlm2, "permute_for_rope", lambda rows, _heads: rows)
    with pytest.raises(ParityError):
        convert(folders, out, overwrite=True)
    assert (out / "manifest.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "out"]


@pytest.mark.parametrize(
    "options", [{"vision_quants": ("fp8",)}, {"vision_quants": ()}, {"lm_quant": "Q3_XXL"}]
)
def test_unknown_quantizations_are_refused(
    options: dict[str, Any], folders: Folders, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="Known:"):
        convert(folders, tmp_path / "out", **options)


# ---- the gate


def test_a_failed_gate_refuses_and_force_records(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(internlm2, "permute_for_rope", lambda rows, _heads: rows)
    out = tmp_path / "out"
    with pytest.raises(ParityError, match="relative error of the logits") as refused:
        convert(folders, out)
    assert "the language model (F32) failed the gate" in refused.value.summary
    assert "No quantization explains that" in refused.value.hint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint"]
    parity = manifest_from_bundle(convert(folders, out, force=True)).parity
    assert (parity.passed, parity.forced) == (False, True)
    assert any(failure.startswith("lm F32: relative error") for failure in parity.failures)
    assert parity.figures["lm F32"]["relative_error"] > 0.1


@pytest.mark.parametrize(
    ("checks", "hint"),
    [
        (["lm Q4_K_M"], "Try --lm-quant Q6_K."),
        (["lm Q6_K"], "Try --lm-quant Q8_0."),
        (["vision int8", "lm Q8_0"], "Try --vision-quant fp16 and --lm-quant F16."),
        (["vision int8", "vision int8-full"], "Try --vision-quant fp16."),
        (["vision fp16"], "Try --vision-quant fp32."),
        (["vision fp32"], "No quantization explains that"),
        (["tokenizer", "lm Q4_0"], "No quantization explains that"),
    ],
)
def test_a_failed_gate_names_the_next_finer_option(checks: list[str], hint: str) -> None:
    assert with_options(judge.remedy(checks)).startswith(hint)
    for quant, finer in judge.FINER.items():
        limits = judge.VISION_LIMITS if quant in judge.VISION_LIMITS else judge.LM_LIMITS
        assert limits[finer].relative_error < limits[quant].relative_error


Rows = torch.Tensor | tuple[torch.Tensor, ...]


def _pixels_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = VisionGraph.forward

    def shifted(self: VisionGraph, pixels: torch.Tensor) -> Rows:
        return forward(self, torch.roll(pixels, 1, dims=2))

    monkeypatch.setattr(VisionGraph, "forward", shifted)


def _keys_and_values_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    unpack = internlm2.unpack_wqkv
    swapped = {"q": "q", "k": "v", "v": "k"}
    monkeypatch.setattr(
        internlm2, "unpack_wqkv", lambda packed, config, part: unpack(packed, config, swapped[part])
    )


def _adapter_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeprism.convert.read.lora import LoraAdapter

    monkeypatch.setattr(LoraAdapter, "merge", lambda _self, _name, weight: weight)


@pytest.mark.parametrize("plant", [_pixels_shifted, _keys_and_values_swapped, _adapter_left_out])
def test_the_gate_sees_planted_mistakes(
    plant: Callable[[pytest.MonkeyPatch], None],
    folders: Folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)
    with pytest.raises(ParityError):
        convert(folders, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint"]
