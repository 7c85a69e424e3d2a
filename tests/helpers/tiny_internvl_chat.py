"""A tiny InternVL-Chat V1.0 in its published layout, and transformers' classes with its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessor, InternVLVisionConfig, InternVLVisionModel

from tests.helpers import tiled
from tests.helpers.tiny_captioners import (
    Case,
    Reference,
    mlp,
    processed,
    save_bin,
    save_one,
    tensors_of,
    write_json,
)
from tests.helpers.tiny_internvl import _TOWER, MEAN, STD
from tests.helpers.tiny_lm import write_lm

N_LAYERS, N_EMBD, HEADS, PATCH = 5, 48, 3, 56
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)


def intern_tower(image_size: int, seed: int) -> InternVLVisionModel:
    """Return an InternViT like the 6B one: RMS norms, normed queries and keys, no bias of qkv."""
    config = InternVLVisionConfig(
        hidden_size=N_EMBD, intermediate_size=80, num_hidden_layers=N_LAYERS,
        num_attention_heads=HEADS, image_size=[image_size] * 2, patch_size=[PATCH] * 2,
        use_qk_norm=True, norm_type="rms_norm", attention_bias=False, use_mean_pooling=True,
        layer_norm_eps=1e-6, use_absolute_position_embeddings=True,
    )  # fmt: skip
    tower = InternVLVisionModel(config)
    tiled.fill(tower, seed)
    tower.eval()
    return tower


def published_tower(tower: InternVLVisionModel) -> dict[str, torch.Tensor]:
    """Return the tower's tensors under OpenGVLab's names and in their packing."""
    state = tower.state_dict()
    tensors = {
        "embeddings.class_embedding": state["embeddings.cls_token"],
        "embeddings.position_embedding": state["embeddings.position_embeddings"],
    }
    for kind in ("weight", "bias"):
        theirs = f"embeddings.patch_embeddings.projection.{kind}"
        tensors[f"embeddings.patch_embedding.{kind}"] = state[theirs]
    for i in range(N_LAYERS):
        stock, ours = f"encoder.layer.{i}.", f"encoder.layers.{i}."
        for name, there in _TOWER.items():
            for kind in (".weight", ".bias", ""):
                if f"{stock}{there}{kind}" in state:
                    tensors[f"{ours}{name}{kind}"] = state[f"{stock}{there}{kind}"]
        parts = [state[f"{stock}attention.{p}_proj.weight"] for p in "qkv"]
        tensors[f"{ours}attn.qkv.weight"] = torch.cat(parts)
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def feature(tower: Any, select_layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return hidden_states[select_layer] without the class row, as LLaVA's code takes it."""

    def run(pixels: torch.Tensor) -> torch.Tensor:
        x, _ = tower.embeddings(pixels)
        states = [x]
        for layer in tower.encoder.layer:
            states.append(layer(states[-1]))
        rows: torch.Tensor = states[select_layer][:, 1:]
        return rows

    return run


def write_internvl_chat(folder: Path, *, large: bool = False, seed: int = 23) -> Case:
    """Write the captioner's `.bin` shards and the tower's folder.

    The tower of 224 pixels sees pictures of 336; `large` is that of 448.
    """
    captioner, vision = folder / "captioner", folder / "vision"
    model = write_lm(captioner, "vicuna", seed=seed)
    for path in captioner.glob("*.safetensors*"):
        path.unlink()
    size, own = (448, 448) if large else (336, 224)
    tower = intern_tower(own, seed)
    vision.mkdir(parents=True)
    save_one(vision, published_tower(tower))
    write_json(vision / "config.json", {
        "architectures": ["InternVisionModel"], "model_type": "intern_vit_6b",
        "auto_map": {"AutoConfig": "configuration_intern_vit.InternVisionConfig"},
        "attention_dropout": 0.0, "drop_path_rate": 0.0, "dropout": 0.0, "hidden_act": "gelu",
        "hidden_size": N_EMBD, "image_size": own, "initializer_factor": 0.1,
        "initializer_range": 1e-10, "intermediate_size": 80, "layer_norm_eps": 1e-6,
        "num_attention_heads": HEADS, "num_channels": 3, "num_hidden_layers": N_LAYERS,
        "patch_size": PATCH, "qk_normalization": True, "qkv_bias": False,
        "torch_dtype": "bfloat16", "use_flash_attn": True,
    })  # fmt: skip
    width = model.config.hidden_size
    connector = mlp(seed, N_EMBD, width, width)
    save_bin(captioner, {**tensors_of(model), **tensors_of(connector, "model.mm_projector.")})
    config = json.loads((captioner / "config.json").read_text())
    config |= {
        "model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"],
        "freeze_mm_mlp_adapter": False, "image_aspect_ratio": "pad", "image_grid_pinpoints": None,
        "mm_hidden_size": N_EMBD, "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch", "mm_vision_select_layer": -4,
        "mm_vision_tower": "OpenGVLab/InternViT-6B-448px-V1-0" if large else
        "OpenGVLab/InternViT-6B-224px",
        "tune_mm_mlp_adapter": False, "use_mm_proj": True,
    }  # fmt: skip
    write_json(captioner / "config.json", config)
    processor = CLIPImageProcessor(
        crop_size={"height": size, "width": size}, size={"shortest_edge": size},
        do_center_crop=True, do_normalize=True, do_resize=True, image_mean=MEAN, image_std=STD,
    )  # fmt: skip
    reference = Reference(
        [processed(processor, tuple(MEAN))], [feature(tower, -4)], connector, model, captioner,
        f"{SYSTEM} USER: ", "\n{} ASSISTANT:", mode="pad", mean=tuple(MEAN), std=tuple(STD),
    )  # fmt: skip
    return Case("llava", {"captioner": captioner, "vision": vision}, reference)
