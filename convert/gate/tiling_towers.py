"""The gate's reference of the towers that see tiles: Idefics3's SigLIP and InternViT.

Like `towers`, it shares no code with the converter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from edgeprism.convert.gate.files import RawTensors, processor_settings
from edgeprism.convert.gate.towers import Features, Tick, normalised


def idefics3_tower(files: Iterable[Path], config: Mapping[str, Any], folder: Path) -> Features:
    """Return transformers' own layers, with patch i at position i.

    transformers computes the position as the bucket of (i / n) · (1 - 1e-6). In bfloat16, in which
    these models were trained and published, that rounds to i / n and bucket i; in float32 every
    patch but the first would get the position of the patch before it.
    """

    def run(pixels: np.ndarray, tick: Tick) -> torch.Tensor:
        from transformers import Idefics3VisionConfig
        from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer

        model = _loaded(
            files,
            "embeddings.patch_embedding.weight",
            lambda fields: Idefics3VisionTransformer(Idefics3VisionConfig(**fields)),
            config,
        )
        data = processor_settings(folder)
        x = normalised(
            pixels,
            data.get("rescale_factor", 1 / 255),
            data.get("image_mean", [0.5] * 3),
            data.get("image_std", [0.5] * 3),
        )
        rows = []
        for picture in x.split(1):
            patches = model.embeddings.patch_embedding(picture).flatten(2).transpose(1, 2)
            embedded = patches + model.embeddings.position_embedding.weight
            rows_of_picture = model.encoder(inputs_embeds=embedded).last_hidden_state
            rows.append(model.post_layernorm(rows_of_picture))
        for _ in range(model.config.num_hidden_layers):
            tick()
        return torch.cat(rows)

    return run


def intern_vit(
    files: Iterable[Path], config: Mapping[str, Any], mean: list[float], std: list[float]
) -> Features:
    """Return InternViT as its repository computes it (`modeling_intern_vit.py`), without class row.

    `config` is the vision_config. The files decide about the kind of norms, the packed qkv matrix,
    the norms of queries and keys, and the layer scales.
    """

    def run(pixels: np.ndarray, tick: Tick) -> torch.Tensor:
        raw = RawTensors(files)
        lead = raw.lead_of("embeddings.class_embedding")
        eps, heads = config.get("layer_norm_eps", 1e-6), config["num_attention_heads"]

        def w(name: str) -> torch.Tensor:
            return raw[lead + name].float()

        def linear(x: torch.Tensor, name: str) -> torch.Tensor:
            own = w(f"{name}.bias") if f"{lead}{name}.bias" in raw else None
            return F.linear(x, w(f"{name}.weight"), own)

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            if f"{lead}{name}.bias" in raw:
                return F.layer_norm(x, x.shape[-1:], w(f"{name}.weight"), w(f"{name}.bias"), eps)
            return F.rms_norm(x, x.shape[-1:], w(f"{name}.weight"), eps)

        kernel = w("embeddings.patch_embedding.weight")
        x = normalised(pixels, 1 / 255, mean, std)
        x = F.conv2d(x, kernel, w("embeddings.patch_embedding.bias"), kernel.shape[-1])
        first = w("embeddings.class_embedding").expand(len(x), 1, -1)
        x = torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1)
        x = x + _positions(w("embeddings.position_embedding"), x.shape[1] - 1)
        for i in range(config["num_hidden_layers"]):
            p = f"encoder.layers.{i}."
            q, k, v = linear(norm(x, p + "norm1"), p + "attn.qkv").chunk(3, dim=-1)
            if f"{lead}{p}attn.q_norm.weight" in raw:
                q, k = norm(q, p + "attn.q_norm"), norm(k, p + "attn.k_norm")
            q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + linear(y, p + "attn.proj") * w(p + "ls1")
            y = F.gelu(linear(norm(x, p + "norm2"), p + "mlp.fc1"))
            x = x + linear(y, p + "mlp.fc2") * w(p + "ls2")
            tick()
        return x[:, 1:]

    return run


def _positions(table: torch.Tensor, n_patches: int) -> torch.Tensor:
    """Return a table [1, 1 + n, e] for `n_patches`, resampled as InternViT does."""
    if table.shape[1] == 1 + n_patches:
        return table
    old, new = (round(n**0.5) for n in (table.shape[1] - 1, n_patches))
    square = table[:, 1:].view(1, old, old, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], square.view(1, -1, n_patches).transpose(1, 2)], dim=1)


def internvl_tower(
    files: Iterable[Path], config: Mapping[str, Any], prepared: Mapping[str, Any]
) -> Features:
    """Return transformers' own tower of a vision_config, without the class row.

    `prepared` has rescale, mean and std.
    """

    def run(pixels: np.ndarray, tick: Tick) -> torch.Tensor:
        from transformers import InternVLVisionConfig, InternVLVisionModel

        model = _loaded(
            files,
            "embeddings.cls_token",
            lambda fields: InternVLVisionModel(InternVLVisionConfig(**fields)),
            config,
        )
        x = normalised(pixels, prepared["rescale"], prepared["mean"], prepared["std"])
        rows = [model(pixel_values=tile).last_hidden_state[:, 1:] for tile in x.split(1)]
        for _ in range(model.config.num_hidden_layers):
            tick()
        return torch.cat(rows)

    return run


def _loaded(
    files: Iterable[Path],
    probe: str,
    build: Callable[[dict[str, Any]], torch.nn.Module],
    config: Mapping[str, Any],
) -> Any:
    """Return transformers' model of a vision_config; `probe` finds the files' name prefix."""
    raw = RawTensors(files)
    lead = raw.lead_of(probe)
    with torch.device("meta"):
        model = build({name: value for name, value in config.items() if name != "model_type"})
    state = {name: raw[lead + name].float() for name in model.state_dict()}
    model.load_state_dict(state, assign=True)
    return model.eval()
