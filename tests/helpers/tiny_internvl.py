"""Tiny InternVL checkpoints in their published layouts, and the same weights in transformers."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
)

from tests.helpers import tiled
from tests.helpers.checkpoints import write_tokenizer

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SPECIAL = re.compile(r"(<\|im_start\|>|<\|im_end\|>|<img>|</img>|<IMG_CONTEXT>|</s>)")
# names of one layer's tensors: published → transformers'
_TOWER = {
    "norm1": "layernorm_before", "norm2": "layernorm_after",
    "attn.proj": "attention.projection_layer",
    "attn.q_norm": "attention.q_norm", "attn.k_norm": "attention.k_norm", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2", "ls1": "lambda_1", "ls2": "lambda_2",
}  # fmt: skip
_TEXT = {
    "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj", "feed_forward.w2": "mlp.down_proj",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tiny model with layers like the 300M tower's or like the 6B tower's."""

    name: str
    large: bool  # RMS norms, normed queries and keys, no bias of qkv
    most: int
    heads: int
    ps_version: str = "v2"
    select_layer: int = -1
    llama: bool = False  # InternVL-Chat V1.1: Llama, one tile, its own conversation


SPECS = [
    Spec("300m", large=False, most=12, heads=4),
    Spec("6b", large=True, most=6, heads=3, select_layer=-2),
    Spec("v1", large=False, most=4, heads=2, ps_version="v1"),
    Spec("chat-v1-1", large=True, most=1, heads=3, ps_version="v1", select_layer=-4, llama=True),
]


@dataclasses.dataclass
class TinyCheckpoint:
    """The published folder, and the same weights in transformers' class."""

    spec: Spec
    folder: Path
    model: InternVLForConditionalGeneration

    def features(self, picture: Image.Image, model: Any = None) -> torch.Tensor:
        """Return features [n_tiles, n, n_embd], by default of this checkpoint's model."""
        model = model or self.model
        size = model.config.vision_config.image_size[0]
        processor = GotOcr2ImageProcessor(
            size={"height": size, "width": size}, crop_to_patches=True, min_patches=1,
            max_patches=self.spec.most, image_mean=MEAN, image_std=STD,
        )  # fmt: skip
        pixels = processor(picture, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            tensors = model.model.get_image_features(pixels)
        return self._turned(tensors) if self.spec.ps_version == "v1" else tensors

    def output(self, *pictures: Image.Image) -> tiled.ModelOutput:
        each = [self.features(picture).flatten(0, 1) for picture in pictures]
        ids = torch.tensor([self._prompt([len(rows) for rows in each])])
        embedded = self.model.get_input_embeddings()(ids)
        features = torch.cat(each)
        embedded[ids == self.model.config.image_token_id] = features
        message = tiled.generated(
            self.model, inputs_embeds=embedded, attention_mask=torch.ones_like(ids)
        )
        return tiled.ModelOutput(features.numpy(), message)

    def _turned(self, features: torch.Tensor) -> torch.Tensor:
        """Reorder cells as version 1 does: column by column."""
        side = int(features.shape[1] ** 0.5)
        rows: torch.Tensor = features.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)
        return rows

    def _prompt(self, n_rows: list[int]) -> list[int]:
        """Return the ids of `chat`'s prompt: special tokens, and SentencePiece between them.

        Several pictures are joined like the model card's "separate images".
        """
        shown = [f"<img>{'<IMG_CONTEXT>' * n}</img>\n" for n in n_rows]
        if len(shown) > 1:
            shown = [f"Image-{i}: {picture}" for i, picture in enumerate(shown, 1)]
        text = (
            "<|im_start|>system\nYou are an AI assistant whose name is InternLM (书生·浦语)."
            f"<|im_end|><|im_start|>user\n{''.join(shown)}"
            f"{tiled.INSTRUCTION}<|im_end|><|im_start|>assistant\n"
        )
        if self.spec.llama:
            text = f"</s><human>: {''.join(shown)}{tiled.INSTRUCTION}</s><bot>:"
        model = sentencepiece.SentencePieceProcessor(
            model_file=str(self.folder / "tokenizer.model")
        )
        config = json.loads((self.folder / "tokenizer_config.json").read_text())
        special = {v["content"]: int(k) for k, v in config["added_tokens_decoder"].items()}
        ids = [1]
        for part in SPECIAL.split(text):
            ids += [special[part]] if part in special else model.encode(part)
        return ids


def write(folder: Path, spec: Spec) -> TinyCheckpoint:
    folder.mkdir(parents=True)
    n_pieces = write_tokenizer(folder, add_dummy_prefix=spec.llama)
    path = folder / "tokenizer_config.json"
    tokens = json.loads(path.read_text())
    for i, name in enumerate(("<img>", "</img>", "<IMG_CONTEXT>")):
        tokens["added_tokens_decoder"][str(n_pieces + i)] = {"content": name, "special": True}
    path.write_text(json.dumps(tokens))
    n_layers, n_embd = 3, 48
    vision = {
        "hidden_size": n_embd, "intermediate_size": 80, "num_hidden_layers": n_layers,
        "num_attention_heads": spec.heads, "image_size": [32, 32], "patch_size": [4, 4],
        "use_qk_norm": spec.large, "norm_type": "rms_norm" if spec.large else "layer_norm",
        "attention_bias": not spec.large, "use_mean_pooling": True, "layer_norm_eps": 1e-6,
        "use_absolute_position_embeddings": True,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": n_pieces + 5,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    }  # fmt: skip
    config = InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=n_pieces + 2, image_seq_length=16,
        downsample_ratio=0.5, vision_feature_layer=-1,
    )  # fmt: skip
    model = InternVLForConditionalGeneration(config).eval()
    tiled.fill(model, seed=len(spec.name))
    tensors = published(model.state_dict(), spec, n_layers)
    save_file(tensors, folder / "model.safetensors")
    spare = -1 - spec.select_layer
    tiling: dict[str, Any] = {
        "dynamic_image_size": True, "max_dynamic_patch": spec.most, "min_dynamic_patch": 1,
        "use_thumbnail": True, "template": "internlm2-chat",
        "llm_config": {**text, "model_type": "internlm2", "bias": False},
    }  # fmt: skip
    if spec.llama:
        tiling = {"dynamic_image_size": False, "template": "internvl_zh", "llm_config": text}
    (folder / "config.json").write_text(
        json.dumps(
            {
                **tiling, "model_type": "internvl_chat", "architectures": ["InternVLChatModel"],
                "downsample_ratio": 0.5, "force_image_size": 32, "pad2square": False,
                "ps_version": spec.ps_version, "select_layer": spec.select_layer,
                "vision_config": {
                    "model_type": "intern_vit_6b", "hidden_size": n_embd, "image_size": 32,
                    "intermediate_size": 80, "num_attention_heads": spec.heads,
                    "num_hidden_layers": n_layers + spare, "patch_size": 4,
                    "layer_norm_eps": 1e-6, "hidden_act": "gelu",
                    "norm_type": "rms_norm" if spec.large else "layer_norm",
                    "qk_normalization": spec.large, "qkv_bias": not spec.large,
                },
            }
        )
    )  # fmt: skip
    return TinyCheckpoint(spec, folder, model)


def published(state: dict[str, Any], spec: Spec, n_layers: int) -> dict[str, torch.Tensor]:
    """Return transformers' tensors under the original names and in the original packing."""
    tower = "model.vision_tower."
    tensors = {
        "vision_model.embeddings.class_embedding": state[f"{tower}embeddings.cls_token"],
        "vision_model.embeddings.position_embedding": state[
            f"{tower}embeddings.position_embeddings"
        ],
    }
    for kind in ("weight", "bias"):
        tensors[f"vision_model.embeddings.patch_embedding.{kind}"] = state[
            f"{tower}embeddings.patch_embeddings.projection.{kind}"
        ]
        for ours, theirs in (("0", "layer_norm"), ("1", "linear_1"), ("3", "linear_2")):
            tensors[f"mlp1.{ours}.{kind}"] = state[f"model.multi_modal_projector.{theirs}.{kind}"]
    for i in range(n_layers):
        theirs, ours = f"{tower}encoder.layer.{i}.", f"vision_model.encoder.layers.{i}."
        for name, stock in _TOWER.items():
            for kind in (".weight", ".bias", ""):
                if f"{theirs}{stock}{kind}" in state:
                    tensors[f"{ours}{name}{kind}"] = state[f"{theirs}{stock}{kind}"]
        for kind in ("weight", "bias"):
            parts = [f"{theirs}attention.{p}_proj.{kind}" for p in "qkv"]
            if parts[0] in state:
                tensors[f"{ours}attn.qkv.{kind}"] = torch.cat([state[p] for p in parts])
    last = f"vision_model.encoder.layers.{n_layers - 1}."
    for i in range(n_layers, n_layers - 1 - spec.select_layer):  # that the feature does not need
        tensors |= {
            name.replace(last, f"vision_model.encoder.layers.{i}."): value.flip(0)
            for name, value in tensors.items()
            if name.startswith(last)
        }
    tensors |= published_llama(state) if spec.llama else published_internlm2(state)
    return {name: value.clone().contiguous() for name, value in tensors.items()}


def published_llama(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the language model's tensors under Llama's names."""
    text = "model.language_model."
    tensors = {
        f"language_model.model.{name.removeprefix(text)}": value
        for name, value in state.items()
        if name.startswith(text)
    }
    return tensors | {"language_model.lm_head.weight": state["lm_head.weight"]}


def published_internlm2(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the language model's tensors under InternLM2's names and in its packing."""
    text = "model.language_model."
    tensors = {
        "language_model.model.tok_embeddings.weight": state[f"{text}embed_tokens.weight"],
        "language_model.model.norm.weight": state[f"{text}norm.weight"],
        "language_model.output.weight": state["lm_head.weight"],
    }
    for i in range(2):
        theirs, ours = f"{text}layers.{i}.", f"language_model.model.layers.{i}."
        for name, stock in _TEXT.items():
            tensors[f"{ours}{name}.weight"] = state[f"{theirs}{stock}.weight"]
        q, k, v = (state[f"{theirs}self_attn.{p}_proj.weight"] for p in "qkv")
        # for each key/value head: its queries, then the key, then the value
        groups = [q.view(2, 2, 16, 64), k.view(2, 1, 16, 64), v.view(2, 1, 16, 64)]
        tensors[f"{ours}attention.wqkv.weight"] = torch.cat(groups, dim=1).reshape(-1, 64)
    return tensors
