"""InternVL in transformers' layout, against transformers' class, processor and tokenizer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
)

from edgeprism.convert.families import internvl
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.vision import graph, intern_vit
from edgeprism.convert.vision.config import ProjectorConfig
from edgeprism.convert.vision.intern_vit import TRANSFORMERS
from edgeprism.errors import CheckpointError
from tests.helpers import tiled
from tests.helpers.converting import convert_family
from tests.helpers.tiny_lm import write_any_tokenizer

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LAYERS = 3


@dataclasses.dataclass(frozen=True)
class Spec:
    """The 300M tower's kind of layers, or the 6B tower's; the names of before or after 4.52."""

    name: str
    large: bool
    newer: bool
    most: int
    tied: bool = False


SPECS = [
    Spec("300m", large=False, newer=False, most=12),
    Spec("6b", large=True, newer=True, most=6),
    Spec("tied", large=False, newer=False, most=4, tied=True),
]


@dataclasses.dataclass
class TinyCheckpoint:
    spec: Spec
    folder: Path
    model: InternVLForConditionalGeneration

    def output(self, *pictures: Image.Image) -> tiled.ModelOutput:
        processor = GotOcr2ImageProcessor.from_pretrained(self.folder, crop_to_patches=True)
        inputs = processor(list(pictures), return_tensors="pt")
        pixels, counts = inputs["pixel_values"], inputs["num_patches"].tolist()
        with torch.inference_mode():
            result = self.model.model.get_image_features(pixels)
        shown = [f"<img>{'<IMG_CONTEXT>' * n * result.shape[1]}</img>\n" for n in counts]
        features = result.flatten(0, 1)
        prompt = (
            f"<|im_start|>user\n{''.join(shown)}"
            f"{tiled.INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
        )
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
        message = tiled.generated(
            self.model, input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels
        )
        return tiled.ModelOutput(features.numpy(), message)


def write(folder: Path, spec: Spec) -> TinyCheckpoint:
    folder.mkdir(parents=True)
    write_any_tokenizer(folder, "qwen2")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<img>", "</img>", "<IMG_CONTEXT>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    vision = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": LAYERS,
        "num_attention_heads": 3 if spec.large else 4, "image_size": [32, 32],
        "patch_size": [4, 4], "use_qk_norm": spec.large,
        "norm_type": "rms_norm" if spec.large else "layer_norm", "attention_bias": not spec.large,
    }  # fmt: skip
    text = {
        "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "vocab_size": tokenizer.get_vocab_size() + 3, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        "tie_word_embeddings": spec.tied,
    }  # fmt: skip
    published = InternVLConfig(
        vision_config=vision, text_config=text, image_seq_length=16,
        image_token_id=tokenizer.token_to_id("<IMG_CONTEXT>"), tie_word_embeddings=spec.tied,
    )  # fmt: skip
    model = InternVLForConditionalGeneration(published).eval()
    tiled.fill(model, len(spec.name), spec.tied)
    model.tie_weights()
    if spec.newer:
        published.save_pretrained(folder)
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(state, folder / "model.safetensors")
    else:
        model.save_pretrained(folder, max_shard_size="200KB")
    GotOcr2ImageProcessor(
        size={"height": 32, "width": 32}, min_patches=1, max_patches=spec.most, image_mean=MEAN,
        image_std=STD,
    ).save_pretrained(folder)  # fmt: skip
    return TinyCheckpoint(spec, folder, model)


@pytest.fixture(scope="module")
def made_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Spec], TinyCheckpoint]:
    return tiled.once_per_spec(write, tmp_path_factory, "internvl")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_rows_and_text_are_transformers(
    spec: Spec, made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path
) -> None:
    tiny = made_of(spec)
    bundle = tiled.converted(internvl.FAMILY, tiny.folder, tmp_path / "b")
    tiled.same_as_reference(tiny, bundle)
    tiled.several_as_reference(tiny.output, bundle)


# ---- mistakes that the comparison must notice


def _other_gelu(patch: pytest.MonkeyPatch) -> None:
    right = graph.gelu
    patch.setattr(graph, "gelu", lambda x, _: right(x, "gelu_pytorch_tanh"))


def _layer_scales_changed_over(patch: pytest.MonkeyPatch) -> None:
    layer = TRANSFORMERS.layer
    wrong = {**layer, "scale1": layer["scale2"], "scale2": layer["scale1"]}
    patch.setattr(intern_vit, "TRANSFORMERS", dataclasses.replace(TRANSFORMERS, layer=wrong))


def _cells_down_first(patch: pytest.MonkeyPatch) -> None:
    def turned(*arguments: Any, **options: Any) -> ProjectorConfig:
        return ProjectorConfig(*arguments, **{**options, "transposed": True})

    patch.setattr("edgeprism.convert.vision.config.ProjectorConfig", turned)


def _no_markers(patch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(internvl.MARKERS, begin="")
    patch.setattr(internvl, "MARKERS", wrong)


MISTAKES = [_other_gelu, _layer_scales_changed_over, _cells_down_first, _no_markers]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__.strip("_"))
def test_mistakes_are_seen(
    mistake: tiled.Mistake,
    made_of: Callable[[Spec], TinyCheckpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, picture = made_of(SPECS[0]), tiled.pictures()[1]
    expected = result.output(picture)
    mistake(monkeypatch)
    bundle = tiled.converted(internvl.FAMILY, result.folder, tmp_path / "b")
    assert not tiled.equal(tiled.bundle_output(bundle, picture), expected)


# ---- refusals


def refused(tiny: TinyCheckpoint, folder: Path, file: str, change: dict[str, Any]) -> str:
    """Return the error's message for the folder with a changed `file`."""
    folder.mkdir()
    for path in tiny.folder.iterdir():
        if path.name != file:
            (folder / path.name).symlink_to(path)
    data = json.loads((tiny.folder / file).read_text())
    for name, value in change.items():
        nested = name.endswith("_config")
        data[name] = {**data[name], **value} if nested else value
    (folder / file).write_text(json.dumps(data))
    out = folder.parent / "b"
    with pytest.raises(CheckpointError) as caught:
        convert_family("internvl", out, ConvertOptions(("fp32",), "F32"), {"captioner": folder})
    assert not out.exists()
    return caught.value.message


def test_every_unknown_setting_is_told_at_once(
    made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path
) -> None:
    change = {
        "downsample_ratio": 0.25, "projector_hidden_act": "relu",
        "vision_feature_select_strategy": "full", "vision_feature_layer": -2,
        "text_config": {"model_type": "qwen3"},
        "vision_config": {"use_mean_pooling": False, "patch_size": [4, 8]},
    }  # fmt: skip
    message = refused(made_of(SPECS[0]), tmp_path / "c", "config.json", change)
    for name in (*change, "use_mean_pooling", "patch_size"):
        assert name.removesuffix("_config") in message


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("config.json", {"vision_config": {"image_size": [36, 36]}}, "takes 36"),
        ("preprocessor_config.json", {"do_rescale": False}, "do_rescale"),
        ("preprocessor_config.json", {"size": {"height": 30, "width": 32}}, "size"),
        ("preprocessor_config.json", {"max_patches": 0}, "max_patches 0"),
        ("preprocessor_config.json", {"resample": 9}, "resample 9"),
    ],
)
def test_what_would_be_computed_differently_is_refused(
    made_of: Callable[[Spec], TinyCheckpoint],
    tmp_path: Path,
    file: str,
    change: dict[str, Any],
    expected: str,
) -> None:
    assert expected in refused(made_of(SPECS[0]), tmp_path / "c", file, change)


def test_every_fault_of_the_tensors_is_told_at_once(
    made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path
) -> None:
    change = {"vision_config": {"use_qk_norm": True, "intermediate_size": 81}}
    message = refused(made_of(SPECS[0]), tmp_path / "c", "config.json", change)
    for i in range(LAYERS):
        layer = f"vision_tower.encoder.layer.{i}."
        assert f"missing: {layer}attention.q_norm.weight [48]" in message
        assert f"wrong shape: {layer}mlp.fc1.weight" in message
