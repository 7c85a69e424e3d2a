"""LLaVA-NeXT in both published layouts, against transformers' class and processor."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    CLIPImageProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
)

from edgeprism.convert.families import llava_next
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.read import checkpoint
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision import graph, stock
from edgeprism.convert.vision.config import n_used_layers
from edgeprism.errors import CheckpointError
from edgeprism.perceive import steps
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture import layout
from tests.helpers import tiled
from tests.helpers.converting import convert_family
from tests.helpers.tiny_captioners import CLIP_MEAN, CLIP_STD, save_bin, write_vision
from tests.helpers.tiny_lm import SENTENCEPIECE, write_any_tokenizer

TILE, PATCH = 28, 7
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
CHATML = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tiny model of one layout and one kind of language model."""

    name: str
    original: bool
    text: str  # model_type
    tokenizer: str
    before: str
    after: str
    # (height, width) in transformers; the original layout has (width, height)
    pinpoints: tuple[tuple[int, int], ...] = ((28, 56), (56, 28), (56, 56), (84, 28), (28, 84))


SPECS = [
    Spec("hf-vicuna", False, "llama", "sentencepiece", f"{SYSTEM} USER: ", "\n{} ASSISTANT:"),
    Spec("hf-mistral", False, "mistral", "sentencepiece", "[INST] ", "\n{} [/INST]",
         ((56, 28), (28, 56), (84, 84))),
    Spec("original-vicuna", True, "llama", "sentencepiece", f"{SYSTEM} USER: ", "\n{} ASSISTANT:"),
    Spec("original-yi-34b", True, "llama", "yi",
         "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n",
         "\n{}<|im_end|><|im_start|>assistant\n", ((28, 56), (84, 28))),
    Spec("original-qwen", True, "qwen2", "qwen2", CHATML,
         "\n{}<|im_end|>\n<|im_start|>assistant\n", ((28, 84), (56, 28))),
]  # fmt: skip


@dataclasses.dataclass
class TinyCheckpoint:
    """A user's folders, and the same weights in transformers' class."""

    spec: Spec
    settings: dict[str, Path]
    model: LlavaNextForConditionalGeneration

    def processor(self) -> LlavaNextImageProcessor:
        return LlavaNextImageProcessor(
            size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE},
            image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD),
            image_grid_pinpoints=[list(point) for point in self.spec.pinpoints],
        )  # fmt: skip

    def output(self, picture: Image.Image) -> tiled.ModelOutput:
        inputs = self.processor()(picture, return_tensors="pt")
        with torch.inference_mode():
            (rows,) = self.model.model.get_image_features(**inputs)
        before, after = self._prompt()
        shown = [self.model.config.image_token_id] * len(rows)
        ids = torch.tensor([before + shown + after])
        message = tiled.generated(
            self.model, input_ids=ids, attention_mask=torch.ones_like(ids), **inputs
        )
        return tiled.ModelOutput(rows.numpy(), message)

    def _prompt(self) -> tuple[list[int], list[int]]:
        folder, after = self.settings["captioner"], self.spec.after.format(tiled.INSTRUCTION)
        if self.spec.tokenizer in SENTENCEPIECE:
            _, add_bos = SENTENCEPIECE[self.spec.tokenizer]
            return [1] * add_bos + _pieces(folder, self.spec.before), _pieces(folder, after)
        fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
        before, after = (
            fast.encode(text, add_special_tokens=False).ids for text in (self.spec.before, after)
        )
        return before, after


def _pieces(folder: Path, text: str) -> list[int]:
    """Return SentencePiece's ids between special tokens, where each text begins a word."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    added = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    special = {token["content"]: int(i) for i, token in added.items()}
    ids: list[int] = []
    for part in filter(None, re.split(f"({'|'.join(map(re.escape, special))})", text)):
        ids += [special[part]] if part in special else model.encode(part)
    return ids


def write(folder: Path, spec: Spec) -> TinyCheckpoint:
    captioner_folder = folder / "captioner"
    captioner_folder.mkdir(parents=True)
    n_vocab = write_any_tokenizer(captioner_folder, spec.tokenizer) + 3
    text = {
        "model_type": spec.text, "hidden_size": 64, "intermediate_size": 160,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 2048, "vocab_size": n_vocab, "rms_norm_eps": 1e-5,
        "sliding_window": None, "tie_word_embeddings": False, "head_dim": 16,
    }  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 48, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": TILE, "patch_size": PATCH,
    }  # fmt: skip
    config = LlavaNextConfig(
        text_config=text, vision_config=vision, image_token_index=n_vocab - 1,
        image_grid_pinpoints=[list(point) for point in spec.pinpoints],
    )  # fmt: skip
    model = LlavaNextForConditionalGeneration(config).eval()
    tiled.fill(model, len(spec.name))
    settings = {"captioner": captioner_folder}
    tiny = TinyCheckpoint(spec, settings, model)
    if spec.original:
        settings["vision"] = folder / "vision"
        write_original(tiny, text)
    else:
        model.save_pretrained(captioner_folder, max_shard_size="200KB")
        tiny.processor().save_pretrained(captioner_folder)
    return tiny


def write_original(tiny: TinyCheckpoint, text: dict[str, Any]) -> None:
    spec, model, folder = tiny.spec, tiny.model.model, tiny.settings["captioner"]
    tower = CLIPImageProcessor(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}
    )
    write_vision(tiny.settings["vision"], model.vision_tower, "clip", tower)
    tensors = {
        "model.image_newline": model.image_newline,
        "lm_head.weight": tiny.model.lm_head.weight,
    }
    for ours, theirs in (
        ("model.", model.language_model),
        ("model.vision_tower.vision_tower.", model.vision_tower),
        ("model.mm_projector.0.", model.multi_modal_projector.linear_1),
        ("model.mm_projector.2.", model.multi_modal_projector.linear_2),
    ):
        state = theirs.state_dict()
        tensors |= {ours + name: t for name, t in state.items() if "position_ids" not in name}
    save_bin(folder, {name: tensor.detach().clone() for name, tensor in tensors.items()})
    points = [list(point[::-1]) for point in spec.pinpoints]
    kinds = {"llama": "llava_llama", "qwen2": "llava_qwen"}
    config = {
        **text, "model_type": kinds[spec.text], "mm_hidden_size": 48,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": str(points) if spec.text == "qwen2" else points,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def made_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Spec], TinyCheckpoint]:
    return tiled.once_per_spec(write, tmp_path_factory, "llava-next")


def converted(tiny: TinyCheckpoint, out: Path) -> Path:
    rest = {name: folder for name, folder in tiny.settings.items() if name != "captioner"}
    return tiled.converted(llava_next.FAMILY, tiny.settings["captioner"], out, **rest)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_rows_and_text_are_transformers(
    spec: Spec, made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path
) -> None:
    tiny = made_of(spec)
    bundle = converted(tiny, tmp_path / "b")
    tiled.same_as_reference(tiny, bundle)


@pytest.mark.parametrize(
    ("tokenizer", "expected"), [("yi", "chatml"), ("sentencepiece", "vicuna-v1")]
)
def test_the_tokenizer_tells_the_conversation_of_a_llama(
    tmp_path: Path, tokenizer: str, expected: str
) -> None:
    """In transformers' layout, too: the 34B model, on Yi, against the 7B and 13B ones."""
    tiny = write(tmp_path / "c", dataclasses.replace(SPECS[0], tokenizer=tokenizer))
    assert llava_next.read_layout(tiny.settings["captioner"], None).conversation == expected


def test_every_variant_holds_the_newline(
    made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path
) -> None:
    result, picture = made_of(SPECS[0]), tiled.pictures()[1]
    options = ConvertOptions(("fp32", "fp16", "int8"), "F32", force=True)
    out = tmp_path / "b"
    convert_family("llava-next", out, options, {"captioner": result.settings["captioner"]})
    expected = result.output(picture).rows
    row = result.model.model.image_newline.detach().numpy()
    for quant, error in (("fp32", 1e-5), ("fp16", 1e-2), ("int8", 0.2)):
        with Captioner.load(out, vision_quant=quant) as it:
            rows = it.encode(picture).visual_tokens
        np.testing.assert_allclose(rows[-1], row, rtol=1e-3, atol=1e-3)
        assert np.linalg.norm(rows - expected) < error * np.linalg.norm(expected)


# ---- mistakes that the comparison must notice


def _rows_changed(change: Callable[[Any], np.ndarray]) -> Callable[[pytest.MonkeyPatch], None]:
    """Plant another order of rows in the prompt."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = layout.picture_to_layout

        def wrong(*arguments: Any) -> Any:
            result = right(*arguments)
            return dataclasses.replace(result, rows=change(result))

        patch.setattr(steps, "picture_to_layout", wrong)

    return plant


_N = (TILE // PATCH) ** 2
_newline_first = _rows_changed(
    lambda layout: np.concatenate([layout.rows[:_N], [-1], layout.rows[_N:-1]])
)
_overview_last = _rows_changed(lambda layout: np.concatenate([layout.rows[_N:], layout.rows[:_N]]))
_newline_is_a_patch = _rows_changed(lambda layout: np.maximum(layout.rows, 0))


def _pinpoints_turned(patch: pytest.MonkeyPatch) -> None:
    right = llava_next._grids
    patch.setattr(
        llava_next,
        "_grids",
        lambda points, size, turned, where: right(points, size, not turned, where),
    )


def _padding_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layout, "_unpadded", lambda rows, _: rows)


def _last_layer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stock, "n_used_layers", lambda config, _, where: n_used_layers(config, -1, where))


def _other_gelu(patch: pytest.MonkeyPatch) -> None:
    right = graph.gelu
    patch.setattr(graph, "gelu", lambda x, _: right(x, "gelu"))


MISTAKES = {
    "newline_first": _newline_first, "overview_last": _overview_last,
    "newline_is_a_patch": _newline_is_a_patch, "pinpoints_turned": _pinpoints_turned,
    "padding_kept": _padding_kept, "tiles_down_first": tiled.tiles_down_first,
    "last_layer": _last_layer, "other_gelu": _other_gelu,
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_seen(
    name: str,
    made_of: Callable[[Spec], TinyCheckpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, picture = made_of(SPECS[0]), tiled.pictures()[1]
    if name == "pinpoints_turned":  # visible only where no grid fits better than its transpose
        picture = picture.resize((20, 20))
    if name == "tiles_down_first":
        picture = picture.resize((70, 66))
    expected = result.output(picture)
    MISTAKES[name](monkeypatch)
    bundle = converted(result, tmp_path / "b")
    assert not tiled.equal(tiled.bundle_output(bundle, picture), expected)


# ---- refusals


def refused(tiny: TinyCheckpoint, tmp_path: Path, file: str, **change: Any) -> str:
    folder = tmp_path / "c"
    folder.mkdir()
    for path in tiny.settings["captioner"].iterdir():
        (folder / path.name).symlink_to(path)
    data = json.loads((folder / file).read_text())
    (folder / file).unlink()
    (folder / file).write_text(json.dumps({**data, **change}))
    with pytest.raises(CheckpointError) as caught:
        convert_family(
            "llava-next", tmp_path / "b", ConvertOptions(("fp32",), "F32"),
            {**tiny.settings, "captioner": folder},
        )  # fmt: skip
    assert not (tmp_path / "b").exists()
    return caught.value.message


@pytest.mark.parametrize(
    ("spec", "file", "change", "expected"),
    [
        (0, "config.json", {"model_type": "llava"}, "families that come close: llava"),
        (2, "config.json", {"image_grid_pinpoints": [[28, 57]]}, "multiples"),
        (0, "preprocessor_config.json", {"image_grid_pinpoints": [[28, 56]]}, "different"),
        (2, "config.json", {"image_grid_pinpoints": "__import__('os')"}, "multiples"),
        (2, "config.json", {"image_grid_pinpoints": []}, "multiples"),
        (2, "config.json", {"mm_patch_merge_type": "spatial"}, "mm_patch_merge_type 'spatial'"),
        (2, "config.json", {"image_aspect_ratio": "pad"}, "image_aspect_ratio 'pad'"),
    ],
)
def test_what_would_be_computed_differently_is_refused(
    made_of: Callable[[Spec], TinyCheckpoint],
    tmp_path: Path,
    spec: int,
    file: str,
    change: dict[str, Any],
    expected: str,
) -> None:
    assert expected in refused(made_of(SPECS[spec]), tmp_path, file, **change)


def test_a_missing_newline_is_told_with_every_other_fault(
    made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poorer(Checkpoint):
        @property
        def names(self) -> set[str]:
            gone = ("image_newline", "linear_2.bias")
            return {name for name in super().names if not name.endswith(gone)}

    monkeypatch.setattr(checkpoint, "Checkpoint", Poorer)
    message = refused(made_of(SPECS[0]), tmp_path, "config.json")
    assert "missing: image_newline [64]" in message
    assert "linear_2.bias" in message
