"""The gate's reference of vision models: what the published tensors compute, in torch float32.

It shares no code with the converter on purpose, down to reading the files: a mistake in packing
or reading would otherwise cancel out. Weights of one layer at a time are in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from edgeprism.convert.parity_files import RawTensors, weight_files

Tick = Callable[[], None]


@torch.inference_mode()
def siglip_visual_tokens(
    vision: Path, projector: Path, pixels: np.ndarray, drop_first: bool, tick: Tick
) -> np.ndarray:
    """pixels uint8 [n, size, size, 3] → visual tokens [n, n_tokens, n_embd] float32.

    The tower up to `hidden_states[-2]`, i.e. all layers but the last, then the projector.
    """
    config = json.loads((vision / "config.json").read_text())
    config = config.get("vision_config", config)
    prepare_path = vision / "preprocessor_config.json"
    prepare = json.loads(prepare_path.read_text()) if prepare_path.is_file() else {}
    raw = RawTensors(weight_files(vision))
    lead = "" if "embeddings.patch_embedding.weight" in raw else "vision_model."

    def w(name: str) -> torch.Tensor:
        return raw[lead + name].float()

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, w(f"{name}.weight"), w(f"{name}.bias"))

    eps, heads = config.get("layer_norm_eps", 1e-6), config["num_attention_heads"]
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) * prepare.get("rescale_factor", 1 / 255)
    mean = torch.tensor(prepare.get("image_mean", [0.5] * 3)).view(1, 3, 1, 1)
    std = torch.tensor(prepare.get("image_std", [0.5] * 3)).view(1, 3, 1, 1)
    x = F.conv2d(
        (x - mean) / std,
        w("embeddings.patch_embedding.weight"),
        w("embeddings.patch_embedding.bias"),
        stride=config["patch_size"],
    )
    x = x.flatten(2).transpose(1, 2) + w("embeddings.position_embedding.weight")
    approximate = "none" if config.get("hidden_act") == "gelu" else "tanh"
    for i in range(config["num_hidden_layers"] - 1):
        p = f"encoder.layers.{i}."
        y = F.layer_norm(
            x, x.shape[-1:], w(p + "layer_norm1.weight"), w(p + "layer_norm1.bias"), eps
        )
        q, k, v = (
            linear(y, f"{p}self_attn.{part}_proj").unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in "qkv"
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(y, p + "self_attn.out_proj")
        y = F.layer_norm(
            x, x.shape[-1:], w(p + "layer_norm2.weight"), w(p + "layer_norm2.bias"), eps
        )
        x = x + linear(F.gelu(linear(y, p + "mlp.fc1"), approximate=approximate), p + "mlp.fc2")
        tick()
    x = x[:, 1:] if drop_first else x
    raw = RawTensors(weight_files(projector))
    lead = ""
    for i in range(json.loads((projector / "config.json").read_text()).get("depth", 2)):
        x = linear(x if i == 0 else F.gelu(x), f"model.{2 * i}")
    result: np.ndarray = x.numpy()
    return result
