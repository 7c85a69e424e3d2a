"""Tiny LLaVA-NeXT-Video checkpoints in their published layouts, and transformers' class of each."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    LlavaNextImageProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
)

from tests.helpers import tiled
from tests.helpers.tiny_captioners import CLIP_MEAN, CLIP_STD, save_bin, write_vision
from tests.helpers.tiny_lm import write_any_tokenizer

TILE, PATCH = 28, 7
PINPOINTS = ((28, 56), (56, 28), (56, 56), (84, 28), (28, 84))  # (height, width)
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tiny model of one layout and one kind of language model."""

    name: str
    text: str  # model_type
    before: str
    after: str
    original: bool = False
    pooled_after: bool = False  # the projector, instead of before
    patch: int = PATCH
    # of text_config, as the published files differ
    rope: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False, compare=False)
    model_type: str = "llava_next_video"


SPECS = [
    # 7B as it is published now; an earlier revision called itself llava_next
    Spec("hf-vicuna", "llama", "USER: ", "\n{} ASSISTANT:",
         rope={"rope_scaling": {"factor": 2.5, "rope_type": "linear", "type": "linear"}}),
    Spec("hf-earlier", "llama", "USER: ", "\n{} ASSISTANT:", model_type="llava_next",
         rope={"factor": 2.0, "type": "linear"}),
    # 7B-32K; a grid of 3 × 3 patches, whose last row and column no cell holds
    Spec("hf-mistral-odd", "mistral", "[INST] ", "\n{} [/INST]", patch=9),
    Spec("original-vicuna", "llama", f"{SYSTEM} USER: ", "\n{} ASSISTANT:", original=True),
    Spec("original-after", "llama", f"{SYSTEM} USER: ", "\n{} ASSISTANT:", original=True,
         pooled_after=True),
]  # fmt: skip


@dataclasses.dataclass
class TinyCheckpoint:
    """A user's folders, and the same weights in transformers' class."""

    spec: Spec
    settings: dict[str, Any]
    model: LlavaNextVideoForConditionalGeneration

    def output(self, picture: Image.Image) -> tiled.ModelOutput:
        """Of a still picture."""
        processor = image_processor()
        inputs = processor(picture, return_tensors="pt")
        with torch.inference_mode():
            (rows,) = self.model.model.get_image_features(**inputs)
        return self._generated(rows.numpy(), self.model.config.image_token_id, inputs)

    def video_output(self, frames: list[np.ndarray]) -> tiled.ModelOutput:
        """Of frames [height, width, 3], prepared as CLIP's own processor does."""
        each = [tower_processor()(Image.fromarray(f), return_tensors="pt") for f in frames]
        pixels = torch.stack([one["pixel_values"][0] for one in each])[None]
        if self.spec.pooled_after:
            return self._pooled_after(pixels)
        with torch.inference_mode():
            features = self.model.model.get_video_features(pixels)
        rows = torch.cat([f.reshape(-1, f.shape[-1]) for f in features])
        shown = {"pixel_values_videos": pixels}
        return self._generated(rows.numpy(), self.model.config.video_token_id, shown)

    def _pooled_after(self, pixels: torch.Tensor) -> tiled.ModelOutput:
        inner = self.model.model
        with torch.inference_mode():
            states = inner.vision_tower(pixels[0], output_hidden_states=True).hidden_states[-2]
            projected = inner.multi_modal_projector(states[:, 1:])
            side = TILE // self.spec.patch
            square = projected.transpose(1, 2).unflatten(2, (side, side))
            rows = torch.nn.functional.avg_pool2d(square, 2).flatten(2).transpose(1, 2)
            rows = rows.flatten(0, 1)
            before, after = self._prompt()
            embed = self.model.get_input_embeddings()
            ends = [embed(torch.tensor(ids)) for ids in (before, after)]
            whole = torch.cat([ends[0], rows, ends[1]])[None]
        return tiled.ModelOutput(rows.numpy(), greedy(self.model, whole))

    def _generated(self, rows: np.ndarray, token: int, inputs: Any) -> tiled.ModelOutput:
        before, after = self._prompt()
        ids = torch.tensor([before + [token] * len(rows) + after])
        message = tiled.generated(
            self.model, input_ids=ids, attention_mask=torch.ones_like(ids), **inputs
        )
        return tiled.ModelOutput(rows, message)

    def _prompt(self) -> tuple[list[int], list[int]]:
        path = str(self.settings["captioner"] / "tokenizer.model")
        model = sentencepiece.SentencePieceProcessor(model_file=path)
        after = self.spec.after.format(tiled.INSTRUCTION)
        return [1, *model.encode(self.spec.before)], model.encode(after)


def greedy(model: LlavaNextVideoForConditionalGeneration, rows: torch.Tensor) -> list[int]:
    """Return greedy ids after rows [1, n, n_embd] of a whole prompt."""
    ids: list[int] = []
    with torch.inference_mode():
        step = model.model.language_model(inputs_embeds=rows, use_cache=True)
        while True:
            ids.append(int(model.lm_head(step.last_hidden_state[:, -1]).argmax()))
            if len(ids) == tiled.N_TOKENS:
                return ids
            step = model.model.language_model(
                input_ids=torch.tensor([ids[-1:]]), past_key_values=step.past_key_values,
                use_cache=True,
            )  # fmt: skip


def image_processor() -> LlavaNextImageProcessor:
    return LlavaNextImageProcessor(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE},
        image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD),
        image_grid_pinpoints=[list(point) for point in PINPOINTS],
    )  # fmt: skip


def tower_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}
    )


def write(folder: Path, spec: Spec) -> TinyCheckpoint:
    captioner_folder = folder / "captioner"
    captioner_folder.mkdir(parents=True)
    n_vocab = write_any_tokenizer(captioner_folder, "sentencepiece") + 3
    text = {
        "model_type": spec.text, "hidden_size": 64, "intermediate_size": 160,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "vocab_size": n_vocab, "rms_norm_eps": 1e-5,
        "sliding_window": None, "tie_word_embeddings": False, "head_dim": 16, **spec.rope,
    }  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 48, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": TILE,
        "patch_size": spec.patch,
    }  # fmt: skip
    config = LlavaNextVideoConfig(
        text_config=dict(text), vision_config=vision, image_token_index=n_vocab - 1,
        video_token_index=n_vocab - 2, use_image_newline_parameter=True,
        image_grid_pinpoints=[list(point) for point in PINPOINTS],
    )  # fmt: skip
    model = LlavaNextVideoForConditionalGeneration(config).eval()
    tiled.fill(model, len(spec.name))
    settings: dict[str, Any] = {"captioner": captioner_folder}
    tiny = TinyCheckpoint(spec, settings, model)
    if spec.original:
        settings["vision"] = folder / "vision"
        write_original(tiny, text)
        return tiny
    model.save_pretrained(captioner_folder, max_shard_size="200KB")
    image_processor().save_pretrained(captioner_folder)
    change(captioner_folder, model_type=spec.model_type, ignore_index=-100, hidden_size=64,
           spatial_pool_out_channels=48)  # fmt: skip
    return tiny


def change(folder: Path, **fields: Any) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **fields}))


def write_original(tiny: TinyCheckpoint, text: dict[str, Any]) -> None:
    spec, model, folder = tiny.spec, tiny.model.model, tiny.settings["captioner"]
    write_vision(tiny.settings["vision"], model.vision_tower, "clip", tower_processor())
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
    position = {"mm_pooling_position": "after"} if spec.pooled_after else {}
    config = {
        **text, "model_type": "llava_llama", "mm_hidden_size": 48,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": [list(point[::-1]) for point in PINPOINTS],
        "mm_resampler_type": "spatial_pool", "mm_spatial_pool_mode": "average",
        "mm_spatial_pool_stride": 2, "mm_spatial_pool_out_channels": 1024, **position,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
