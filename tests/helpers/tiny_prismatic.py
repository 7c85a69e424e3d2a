"""Tiny random Prismatic VLMs: stock models under timm's names, and upstream's pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from transformers import (
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionModel,
)

from tests.helpers.tiny_captioners import (
    CLIP_MEAN,
    CLIP_STD,
    PATCH,
    Case,
    Pixels,
    Reference,
    clip_tower,
    feature,
    make,
    mlp,
    save_one,
    siglip_tower,
    tensors_of,
    write_json,
)
from tests.helpers.tiny_lm import write_lm

NORMS = {
    "dino": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "siglip": ((0.5,) * 3, (0.5,) * 3),
    "clip": (CLIP_MEAN, CLIP_STD),
}


def kinds_of(backbone: str) -> list[str]:
    """Return the backbone's models in order."""
    return [kind for kind in NORMS if kind in backbone]


def upstreams_picture(
    image: Image.Image, strategy: str, size: int, mean: tuple[float, ...]
) -> Image.Image:
    """Apply upstream's transforms: LetterboxPad, then torchvision's Resize and CenterCrop.

    Written from `base_vision.py` and torchvision's `functional.py`, without EdgePrism's code.
    """
    if strategy == "resize-naive":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    if strategy == "letterbox":
        longest = max(image.size)
        across, down = (int((longest - n) / 2) for n in image.size)
        fill = tuple(int(x * 255) for x in mean)
        image = ImageOps.expand(image, (across, down, across, down), fill)
    short, long = sorted(image.size)
    width, height = (size if n == short else int(size * long / short) for n in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (round((n - size) / 2.0) for n in (width, height))  # halves go to even
    return image.crop((left, top, left + size, top + size))


def write_prismatic(
    folder: Path, *, backbone: str = "dinosiglip-vit-so-224px", arch: str = "fused-gelu-mlp",
    lm: str = "llama2-7b-pure", strategy: str = "resize-naive", seed: int = 4,
) -> Case:  # fmt: skip
    """Write a checkpoint of projector and language model, timm's folders and the base tokenizer."""
    captioner = folder / "captioner"
    llm, size = folder / "llm", next((n for n in (336, 384) if str(n) in backbone), 224)
    spare = 9  # the embedding has more rows than the base model
    model = write_lm(llm, "vicuna", spare=spare, seed=seed)
    config = json.loads((llm / "config.json").read_text())
    config["vocab_size"] -= spare
    write_json(llm / "config.json", config)
    kinds = kinds_of(backbone)
    pixels, features, folders = [], [], {}
    for kind, setting in zip(kinds, ("vision", "second_vision"), strict=False):
        run, prepare = _timm(folder / kind, kind, size, strategy, alone=len(kinds) == 1, seed=seed)
        features.append(run)
        pixels.append(prepare)
        folders[setting] = folder / kind
    n_in, width = 48 * len(kinds), model.config.hidden_size
    widths = {"fused-gelu-mlp": (n_in, 4 * n_in, width, width), "gelu-mlp": (n_in, width, width),
              "linear": (n_in, width)}[arch]  # fmt: skip
    connector = mlp(seed, *widths)
    names = tensors_of(connector, "projector.")
    if arch == "linear":
        names = {n.replace(".0.", "."): t for n, t in names.items()}
    (captioner / "checkpoints").mkdir(parents=True)
    torch.save(
        {"model": {"projector": names, "llm_backbone": tensors_of(model, "llm.")}},
        captioner / "checkpoints" / "latest-checkpoint.pt",
    )
    specifier = arch if arch == "linear" else f"no-align+{arch}"
    write_json(captioner / "config.json", {"model": {
        "model_id": "prism-tiny", "vision_backbone_id": backbone, "llm_backbone_id": lm,
        "arch_specifier": specifier, "image_resize_strategy": strategy, "llm_max_length": 2048,
    }})  # fmt: skip
    before, after = "", "In: {}\nOut:"
    if lm.startswith("vicuna"):
        after = "A chat between a curious user and an artificial intelligence assistant. The "
        after += "assistant gives helpful, detailed, and polite answers to the user's questions. "
        after += "USER: {} ASSISTANT:"
    mean, std = NORMS[kinds[0]]
    reference = Reference(
        pixels, features, connector, model, llm, before, after, mean=mean, std=std,
        mode={"resize-crop": "center-crop", "letterbox": strategy}.get(strategy, "stretch"),
    )  # fmt: skip
    return Case("prismatic", {"captioner": captioner, "llm": llm, **folders}, reference)


def _timm(
    folder: Path, kind: str, size: int, strategy: str, *, alone: bool, seed: int
) -> tuple[Callable[[torch.Tensor], torch.Tensor], Pixels]:
    folder.mkdir(parents=True)
    mean, std = NORMS[kind]
    wide: dict[str, Any] = {
        "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 16,
        "image_size": size, "patch_size": PATCH, "num_hidden_layers": 3,
    }  # fmt: skip
    model: Dinov2WithRegistersModel | SiglipVisionModel | CLIPVisionModel
    if kind == "dino":
        config = Dinov2WithRegistersConfig(
            **{k: v for k, v in wide.items() if k != "intermediate_size"}, mlp_ratio=2
        )
        model = make(Dinov2WithRegistersModel(config), seed)
        tensors, n_skipped = _dino_tensors(model, seed), 5
    elif kind == "siglip":
        model = siglip_tower(seed, **wide, hidden_act="gelu", layer_norm_eps=1e-6)
        tensors, n_skipped = _stock_tensors(model), 0
    else:
        model = clip_tower(seed, **wide, hidden_act="quick_gelu" if alone else "gelu")
        tensors, n_skipped = _stock_tensors(model), 1
    tensors |= {"norm.weight": torch.ones(48), "norm.bias": torch.zeros(48)}
    save_one(folder, tensors)

    def prepare(image: Image.Image) -> torch.Tensor:
        x: np.ndarray = np.asarray(upstreams_picture(image, strategy, size, mean), np.float32)
        x = (x / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
        return torch.from_numpy(x).permute(2, 0, 1)[None]

    return feature(model, -2, n_skipped), prepare


def _stock_tensors(model: Any) -> dict[str, torch.Tensor]:
    actual = {n.removeprefix("vision_model."): t for n, t in tensors_of(model).items()}
    tensors = {"patch_embed.proj.weight": actual["embeddings.patch_embedding.weight"]}
    if "embeddings.patch_embedding.bias" in actual:
        tensors["patch_embed.proj.bias"] = actual["embeddings.patch_embedding.bias"]
    tensors["pos_embed"] = actual["embeddings.position_embedding.weight"][None]
    if "embeddings.class_embedding" in actual:
        tensors["cls_token"] = actual["embeddings.class_embedding"][None, None]
    for kind in ("weight", "bias"):
        if f"pre_layrnorm.{kind}" in actual:
            tensors[f"norm_pre.{kind}"] = actual[f"pre_layrnorm.{kind}"]
    for i in range(model.config.num_hidden_layers):
        layer = f"encoder.layers.{i}."
        for kind in ("weight", "bias"):
            parts = [actual[f"{layer}self_attn.{p}_proj.{kind}"] for p in "qkv"]
            tensors[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
            for ours, theirs in (("attn.proj", "self_attn.out_proj"), ("mlp.fc1", "mlp.fc1"),
                                 ("mlp.fc2", "mlp.fc2"), ("norm1", "layer_norm1"),
                                 ("norm2", "layer_norm2")):  # fmt: skip
                tensors[f"blocks.{i}.{ours}.{kind}"] = actual[f"{layer}{theirs}.{kind}"]
    return tensors


def _dino_tensors(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """Return the tensors under timm's names, which add the class row's position to the row.

    The positions are for a finer grid, like DINOv2's; timm resamples them.
    """
    grid = model.config.image_size // PATCH
    table = torch.randn(1, (grid + 5) ** 2, 48, generator=torch.Generator().manual_seed(seed))
    square = table.reshape(1, grid + 5, grid + 5, 48).permute(0, 3, 1, 2)
    square = nn.functional.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True)
    with torch.no_grad():
        positions = model.embeddings.position_embeddings
        positions[:, 1:] = square.permute(0, 2, 3, 1).reshape(1, grid * grid, 48)
    actual = tensors_of(model)
    position = actual["embeddings.position_embeddings"]
    tensors = {
        "patch_embed.proj.weight": actual["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": actual["embeddings.patch_embeddings.projection.bias"],
        "cls_token": actual["embeddings.cls_token"] + position[:, :1],
        "reg_token": actual["embeddings.register_tokens"],
        "pos_embed": table,
    }
    for i in range(model.config.num_hidden_layers):
        layer, block = f"encoder.layer.{i}.", f"blocks.{i}."
        for kind in ("weight", "bias"):
            parts = [actual[f"{layer}attention.attention.{p}.{kind}"] for p in
                     ("query", "key", "value")]  # fmt: skip
            tensors[f"{block}attn.qkv.{kind}"] = torch.cat(parts)
            for ours, theirs in (("attn.proj", "attention.output.dense"), ("mlp.fc1", "mlp.fc1"),
                                 ("mlp.fc2", "mlp.fc2"), ("norm1", "norm1"),
                                 ("norm2", "norm2")):  # fmt: skip
                tensors[f"{block}{ours}.{kind}"] = actual[f"{layer}{theirs}.{kind}"]
        for n in (1, 2):
            tensors[f"{block}ls{n}.gamma"] = actual[f"{layer}layer_scale{n}.lambda1"]
    return tensors
