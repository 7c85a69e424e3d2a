"""Tiny random captioners in the layout of VILA-1.5; VILA 1.0's is that of LLaVA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import SiglipImageProcessor

from tests.helpers.tiny_captioners import (
    CLIP_MEAN,
    CLIP_STD,
    SIZE,
    Case,
    Reference,
    clip_processor,
    clip_tower,
    feature,
    make,
    mlp,
    processed,
    save_one,
    siglip_tower,
    square,
    tensors_of,
    write_json,
    write_vision,
)
from tests.helpers.tiny_lm import write_lm


def write_vila(
    folder: Path, *, projector: str = "mlp_downsample", lm: str = "vicuna", size: int = 70,
    tower: str = "siglip", seed: int = 3,
) -> Case:  # fmt: skip
    """Write VILA-1.5's sub-folders; a grid of 5 × 5 patches leaves incomplete cells."""
    model = write_lm(folder / "llm", lm, seed=seed)
    width, clip = model.config.hidden_size, tower == "clip"
    encoder = clip_tower(seed) if clip else siglip_tower(seed, image_size=size)
    processor = clip_processor() if clip else SiglipImageProcessor(size=square(size))
    write_vision(folder / "vision_tower", encoder, tower, processor)
    joint = folder / "mm_projector"
    joint.mkdir()
    write_json(joint / "config.json", {"mm_projector_type": projector})
    connector: Any
    if projector == "mlp_downsample":
        norm, layers = make(nn.LayerNorm(4 * 48), seed), mlp(seed, 4 * 48, width, width)
        tensors = {**tensors_of(norm, "layers.1."), **_shifted(tensors_of(layers, "layers."), 2)}

        def connector(x: torch.Tensor) -> torch.Tensor:
            rows: torch.Tensor = layers(norm(_downsampled(x)))
            return rows
    else:
        connector = mlp(seed, 48, width)
        tensors = {n.replace("0.", "layers."): t for n, t in tensors_of(connector).items()}
    save_one(joint, tensors)
    write_json(folder / "config.json", {
        "model_type": "llava_llama", "image_aspect_ratio": "resize", "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch" if clip else "cls_patch", "s2": False,
        "mm_projector_cfg": "mm_projector", "llm_cfg": "llm", "vision_tower_cfg": "vision_tower",
    })  # fmt: skip

    def resized(image: Image.Image) -> torch.Tensor:
        edge = SIZE if clip else size
        return processed(processor)(image.resize((edge, edge)))

    system = "A chat between a curious user and an artificial intelligence assistant. The "
    system += "assistant gives helpful, detailed, and polite answers to the user's questions."
    before, after = f"{system} USER: ", "\n{} ASSISTANT:"
    if lm == "llama3":
        system = "You are a helpful language and vision assistant. You are able to understand the "
        system += "visual content that the user provides, and assist the user with a variety of "
        system += "tasks using natural language."
        user, assistant = (f"<|start_header_id|>{r}<|end_header_id|>\n\n" for r in
                           ("user", "assistant"))  # fmt: skip
        before = f"<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>{user}"
        after = f"\n{{}}<|eot_id|>{assistant}"
    mean, std = (CLIP_MEAN, CLIP_STD) if clip else ((0.5,) * 3, (0.5,) * 3)
    reference = Reference(
        [resized], [feature(encoder, -2, int(clip))], connector, model, folder / "llm", before,
        after, mean=mean, std=std, between="\n",
    )  # fmt: skip
    return Case("vila", {"captioner": folder}, reference)


def _downsampled(x: torch.Tensor) -> torch.Tensor:
    """Join 2 × 2 cells: row by row, in a cell upper left, upper right, lower left, …"""
    n, t, e = x.shape
    g = int(t**0.5)
    grid = x.reshape(n, g, g, e)
    grid = nn.functional.pad(grid, (0, 0, 0, g % 2, 0, g % 2))
    quarters = [grid[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return torch.cat(quarters, dim=-1).flatten(1, 2)


def _shifted(tensors: dict[str, torch.Tensor], by: int) -> dict[str, torch.Tensor]:
    """layers.N.… → layers.(N + by).…"""
    result = {}
    for name, tensor in tensors.items():
        lead, number, kind = name.split(".")
        result[f"{lead}.{int(number) + by}.{kind}"] = tensor
    return result
