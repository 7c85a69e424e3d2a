"""Tiny SmolVLM and Idefics3 checkpoints, and the same weights in transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor
from transformers.models.idefics3.processing_idefics3 import get_image_prompt_string

from tests.helpers import tiled
from tests.helpers.tiny_lm import write_any_tokenizer

FAKE, GLOBAL, END = "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tiny model; the fields are the differences between published models."""

    name: str
    tokenizer: str
    tied: bool
    cell: int
    tile: int
    patch: int
    longest: int
    model_type: str = "idefics3"


SPECS = [
    Spec("smolvlm", "smollm", tied=False, cell=2, tile=32, patch=4, longest=128),
    Spec("tied", "smollm", tied=True, cell=4, tile=32, patch=4, longest=96, model_type="smolvlm"),
    Spec("idefics3", "llama3", tied=False, cell=1, tile=30, patch=10, longest=100),
]


@dataclasses.dataclass
class TinyCheckpoint:
    """A checkpoint's folder and its model, in which patch i has position i."""

    spec: Spec
    folder: Path
    model: Any

    def features(self, picture: Image.Image, model: Any = None) -> torch.Tensor:
        """Return features [n_tiles, n, n_embd], by default of this checkpoint's model."""
        inputs, _ = self._prepared(picture)
        with torch.inference_mode():
            return (model or self.model).model.get_image_features(**inputs)  # type: ignore[no-any-return]

    def output(self, *pictures: Image.Image) -> tiled.ModelOutput:
        inputs, grids = self._prepared(*pictures)
        with torch.inference_mode():
            features = self.model.model.get_image_features(**inputs)
        start = "<|im_start|>" if self.spec.tokenizer == "smollm" else "<|begin_of_text|>"
        per_tile = features.shape[1]
        shown = "".join(
            get_image_prompt_string(*grid, per_tile, FAKE, "<image>", GLOBAL) for grid in grids
        )
        prompt = f"{start}User:{shown}{tiled.INSTRUCTION}{END}\nAssistant:"
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
        message = tiled.generated(
            self.model, input_ids=ids, attention_mask=torch.ones_like(ids), **inputs
        )
        return tiled.ModelOutput(features.flatten(0, 1).numpy(), message)

    def _prepared(self, *pictures: Image.Image) -> tuple[dict[str, Any], list[tuple[int, int]]]:
        """Return the model's inputs, and each picture's tiles [down, across]."""
        processor = Idefics3ImageProcessor.from_pretrained(self.folder)
        inputs = processor([list(pictures)], return_tensors="pt", return_row_col_info=True)
        grids = list(zip(inputs.pop("rows")[0], inputs.pop("cols")[0], strict=True))
        return dict(inputs), grids


def write(folder: Path, spec: Spec) -> TinyCheckpoint:
    folder.mkdir(parents=True)
    write_any_tokenizer(folder, spec.tokenizer)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    side = -(-spec.longest // spec.tile)
    places = [f"<row_{r}_col_{c}>" for r in range(1, side + 1) for c in range(1, side + 1)]
    tokenizer.add_special_tokens([FAKE, "<image>", GLOBAL, END, *places])
    tokenizer.save(str(folder / "tokenizer.json"))
    text = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "vocab_size": tokenizer.get_vocab_size() + 3, "rope_theta": 100000.0,
        "tie_word_embeddings": spec.tied, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": spec.tile, "patch_size": spec.patch,
    }  # fmt: skip
    config = Idefics3Config(
        text_config=text, vision_config=vision, scale_factor=spec.cell,
        image_token_id=tokenizer.token_to_id("<image>"), tie_word_embeddings=spec.tied,
    )  # fmt: skip
    model = Idefics3ForConditionalGeneration(config).eval()
    tiled.fill(model, len(spec.name), spec.tied)
    model.tie_weights()
    model.save_pretrained(folder, max_shard_size="200KB")
    Idefics3ImageProcessor(
        size={"longest_edge": spec.longest}, max_image_size={"longest_edge": spec.tile},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    ).save_pretrained(folder)  # fmt: skip
    path = folder / "config.json"
    written = json.loads(path.read_text())
    written["model_type"] = spec.model_type
    written["vision_config"]["model_type"] = "idefics3"  # as in the published files
    path.write_text(json.dumps(written))
    embeddings = model.model.vision_model.embeddings
    embeddings.forward = lambda pixel_values, patch_attention_mask: (
        embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        + embeddings.position_embedding.weight
    )
    return TinyCheckpoint(spec, folder, model)
