"""The gate's reference of vision models: what the published tensors compute, in torch float32.

It deliberately shares no code with the converter, not even for reading files: a mistake in both
would cancel out. Towers that transformers knows run in its own classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from edgeprism.convert.gate.files import RawTensors, processor_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tick = Callable[[], None]
# pixels uint8 [n, size, size, 3] → features [n, patches, width], or features → visual tokens
Features = Callable[[np.ndarray, Tick], torch.Tensor]
Connector = Callable[[torch.Tensor], torch.Tensor]


@torch.inference_mode()
def visual_tokens(
    towers: Sequence[Features], connector: Connector, pixels: np.ndarray, tick: Tick
) -> np.ndarray:
    """pixels uint8 [n, size, size, 3] → visual tokens [n, n_tokens, n_embd] float32.

    If the pixels have more than 3 channels, each tower takes the next three.
    """
    shared = pixels.shape[-1] == 3
    views = [pixels if shared else pixels[..., 3 * i : 3 * i + 3] for i in range(len(towers))]
    features = torch.cat(
        [tower(view, tick) for tower, view in zip(towers, views, strict=True)], dim=-1
    )
    result: np.ndarray = connector(features).float().numpy()
    return result


def stock_tower(
    files: Iterable[Path],
    config: Mapping[str, Any],
    folder: Path,
    select_layer: int,
    n_skipped: int = 0,
    resampled: bool = False,
) -> Features:
    """Return a CLIP or SigLIP in transformers' class: `hidden_states[select_layer]`.

    The first `n_skipped` rows are left out. `config` is the content of a config.json or a
    vision_config; the image processor's settings lie in `folder`. If `resampled`, pictures may have
    another size than the configuration's, and the positions are resampled to it.
    """
    options = {"interpolate_pos_encoding": True} if resampled else {}

    def run(pixels: np.ndarray, tick: Tick) -> torch.Tensor:
        model = stock_model(files, config)
        rows = []
        for picture in normalised(pixels, *stock_colours(config, folder)).split(1):
            output = model(pixel_values=picture, output_hidden_states=True, **options)
            rows.append(output.hidden_states[select_layer][:, n_skipped:])
        for _ in range(_n_ticks(model.config.num_hidden_layers, select_layer)):
            tick()
        return torch.cat(rows)

    return run


def stock_model(files: Iterable[Path], config: Mapping[str, Any]) -> PreTrainedModel:
    """Return a CLIP or SigLIP in transformers' class, with the weights of `files`."""
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    fields = dict(config.get("vision_config") or config)
    with torch.device("meta"):
        model = (
            CLIPVisionModel(CLIPVisionConfig(**fields))
            if "clip" in config["model_type"]
            else SiglipVisionModel(SiglipVisionConfig(**fields))
        )
    _load(model, RawTensors(files))
    return model


def stock_colours(config: Mapping[str, Any], folder: Path) -> tuple[float, Any, Any]:
    """Return the image processor's rescale factor, mean and standard deviation."""
    data = processor_settings(folder)
    clip = "clip" in config["model_type"]
    standard = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    mean, std = standard if clip else ([0.5] * 3, [0.5] * 3)
    return (
        data.get("rescale_factor", 1 / 255),
        data.get("image_mean") or mean,
        data.get("image_std") or std,
    )


def _n_ticks(n_layers: int, select_layer: int) -> int:
    return select_layer if select_layer >= 0 else n_layers + 1 + select_layer


def _load(model: torch.nn.Module, raw: RawTensors) -> None:
    """Fill a model on the meta device; tensors that the files lack never run and become zeros."""
    lead = raw.lead_of("embeddings.patch_embedding.weight").removesuffix("vision_model.")
    bare = not any(name.startswith(f"{lead}vision_model.") for name in raw.names())
    state = {}
    for name, parameter in model.state_dict().items():
        source = lead + (name.removeprefix("vision_model.") if bare else name)
        present = source in raw
        state[name] = raw[source].float() if present else torch.zeros(parameter.shape)
    model.load_state_dict(state, assign=True)
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:  # position_ids
            module, _, leaf = name.rpartition(".")
            rows = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            model.get_submodule(module).register_buffer(leaf, rows, persistent=False)
    model.eval()


def normalised(
    pixels: np.ndarray, rescale: float, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Pixels uint8 [n, size, size, 3] → float [n, 3, size, size] as a tower takes them."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() * rescale
    return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def timm_tower(
    files: Iterable[Path],
    n_heads: int,
    eps: float,
    activation: str,
    mean: Sequence[float],
    std: Sequence[float],
    grid: int,
) -> Features:
    """Return the patch rows of a timm VisionTransformer's second-to-last layer.

    It uses class and register rows, a first norm and layer scale if the file has them.
    """

    def run(pixels: np.ndarray, tick: Tick) -> torch.Tensor:
        raw = RawTensors(files)
        lead = raw.lead_of("patch_embed.proj.weight")

        def w(name: str) -> torch.Tensor:
            return raw[lead + name].float()

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            return F.layer_norm(x, x.shape[-1:], w(f"{name}.weight"), w(f"{name}.bias"), eps)

        kernel = w("patch_embed.proj.weight")
        bias = w("patch_embed.proj.bias") if f"{lead}patch_embed.proj.bias" in raw else None
        x = F.conv2d(normalised(pixels, 1 / 255, mean, std), kernel, bias, kernel.shape[-1])
        x = x.flatten(2).transpose(1, 2)  # [n, patches, e]
        table = _resampled(w("pos_embed")[0], grid)
        ahead = [w(name)[0] for name in ("cls_token", "reg_token") if lead + name in raw]
        if len(table) > grid * grid:  # the class row has a position too
            ahead[0] = ahead[0] + table[:1]
        x = x + table[-grid * grid :]
        x = torch.cat([*(row.expand(len(x), -1, -1) for row in ahead), x], dim=1)
        x = norm(x, "norm_pre") if f"{lead}norm_pre.weight" in raw else x
        n_blocks = 1 + max(
            int(name.removeprefix(f"{lead}blocks.").split(".")[0])
            for name in raw.names()
            if name.startswith(f"{lead}blocks.")
        )
        for i in range(n_blocks - 1):
            p = f"blocks.{i}."
            packed = F.linear(
                norm(x, p + "norm1"), w(p + "attn.qkv.weight"), w(p + "attn.qkv.bias")
            )
            q, k, v = packed.unflatten(-1, (3, n_heads, -1)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            y = F.linear(y, w(p + "attn.proj.weight"), w(p + "attn.proj.bias"))
            x = x + (y * w(p + "ls1.gamma") if f"{lead}{p}ls1.gamma" in raw else y)
            y = F.linear(norm(x, p + "norm2"), w(p + "mlp.fc1.weight"), w(p + "mlp.fc1.bias"))
            y = y * torch.sigmoid(1.702 * y) if activation == "quick_gelu" else F.gelu(y)
            y = F.linear(y, w(p + "mlp.fc2.weight"), w(p + "mlp.fc2.bias"))
            x = x + (y * w(p + "ls2.gamma") if f"{lead}{p}ls2.gamma" in raw else y)
            tick()
        return x[:, -grid * grid :]

    return run


def _resampled(table: torch.Tensor, grid: int) -> torch.Tensor:
    """Resample positions [rows, e] to another grid, as timm does when it loads a model."""
    old = int(len(table) ** 0.5)
    if old == grid:
        return table
    first = table[: len(table) - old * old]
    square = table[len(first) :].view(1, old, old, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True)
    return torch.cat([first, square.flatten(2)[0].t()])


def mlp(
    files: Iterable[Path],
    endings: Sequence[str],
    norm: str = "",
    cell: int = 1,
    transposed: bool = False,
) -> Connector:
    """Return the linear layers whose names end with `endings`, with GELU (erf form) between.

    First it joins the patches of each cell × cell, and normalises them if there is a `norm`. Cells
    are ordered row by row, or column by column if `transposed`.
    """

    def run(x: torch.Tensor) -> torch.Tensor:
        raw = RawTensors(files)
        if cell > 1:
            x = _cells(x, cell)
            if transposed:
                side = round(x.shape[1] ** 0.5)
                x = torch.stack([x[:, a * side + b] for b in range(side) for a in range(side)], 1)
        if norm:
            lead = raw.lead_of(f"{norm}.weight") + norm
            weight, bias = raw[f"{lead}.weight"].float(), raw[f"{lead}.bias"].float()
            x = F.layer_norm(x, x.shape[-1:], weight, bias)
        for i, ending in enumerate(endings):
            name = raw.lead_of(f"{ending}.weight") + ending
            own = raw[f"{name}.bias"].float() if f"{name}.bias" in raw else None
            x = F.linear(x if i == 0 else F.gelu(x), raw[f"{name}.weight"].float(), own)
        return x

    return run


def _cells(x: torch.Tensor, s: int) -> torch.Tensor:
    """Join the patches of each s × s cell into one row; zeros fill incomplete cells."""
    n, t, e = x.shape
    g = round(t**0.5)
    side = -(-g // s)
    full = torch.zeros(n, side * s, side * s, e)
    full[:, :g, :g] = x.view(n, g, g, e)
    cells = [
        torch.cat([full[:, s * a + i, s * b + j] for i in range(s) for j in range(s)], dim=-1)
        for a in range(side)
        for b in range(side)
    ]
    return torch.stack(cells, dim=1)
