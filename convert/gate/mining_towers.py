"""The gate's reference of patch-info mining: the published order of steps, in torch float32.

It shares no code with the converter, not even for reading files. The queries' tower runs in
transformers' class, ConvNeXt and the mining are written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from edgeprism.convert.gate.files import RawTensors
from edgeprism.convert.gate.towers import (
    Connector,
    Tick,
    normalised,
    stock_colours,
    stock_model,
)


@dataclass(frozen=True)
class MiningSource:
    """Where the published tensors lie, and what the configuration says of the picture's parts.

    Args:
        captioner: Files with the mining's tensors.
        tower: Files of the queries' tower.
        tower_config: The tower's config.json.
        tower_folder: Where the tower's preprocessor_config.json lies.
        layer: The hidden state of the tower that asks; its first row is left out.
        detail: Files of the ConvNeXt.
        stem: What ends before the number in the names of its stem's tensors.
        stages: The same for its stages.
        grid: The published `image_grid`.
        whole: The published `image_global`.
    """

    captioner: Iterable[Path]
    tower: Iterable[Path]
    tower_config: Mapping[str, Any]
    tower_folder: Path
    layer: int
    detail: Iterable[Path]
    stem: str
    stages: str
    grid: int
    whole: bool


def mined_tokens(
    source: MiningSource, connector: Connector
) -> Callable[[np.ndarray, Tick], np.ndarray]:
    """Return pixels uint8 [n, size, size, 3] → visual tokens; its Tick counts pictures."""

    @torch.inference_mode()
    def run(pixels: np.ndarray, tick: Tick) -> np.ndarray:
        model = stock_model(source.tower, source.tower_config)
        own = model.config.image_size
        colours = stock_colours(source.tower_config, source.tower_folder)
        results = []
        for picture in pixels:
            x = normalised(picture[None], *colours)
            shown = _views(x, own, source)
            rows = [
                model(pixel_values=view, output_hidden_states=True).hidden_states[source.layer][
                    :, 1:
                ]
                for view in shown
            ]
            cells = _map_views(_convnext(x, source), source)
            mined = [_mined(r, c, source) for r, c in zip(rows, cells, strict=True)]
            results.append(connector(torch.cat(mined, dim=1)))
            tick()
        tokens: np.ndarray = torch.cat(results).float().numpy()
        return tokens

    return run


def _views(x: torch.Tensor, own: int, source: MiningSource) -> list[torch.Tensor]:
    """Return the tower's pictures [1, 3, own, own]: the whole one first, then parts by rows."""
    g = source.grid
    smaller = F.interpolate(x, size=(own * g, own * g), mode="bilinear", align_corners=False)
    if g == 1:
        return [smaller]
    parts = [part for row in smaller.split(own, dim=2) for part in row.split(own, dim=3)]
    whole = F.interpolate(smaller, size=(own, own), mode="bilinear", align_corners=False)
    return [whole, *parts] if source.whole else parts


def _map_views(x: torch.Tensor, source: MiningSource) -> list[torch.Tensor]:
    """Return the map [1, channels, side, side] that belongs to each of `_views`."""
    g = source.grid
    if g == 1:
        return [x]
    side = x.shape[-1] // g
    parts = [part for row in x.split(side, dim=2) for part in row.split(side, dim=3)]
    if not source.whole:
        return parts
    return [F.interpolate(x, scale_factor=1 / g, mode="bilinear", align_corners=False), *parts]


def _convnext(x: torch.Tensor, source: MiningSource) -> torch.Tensor:
    """Return all stages [1, channels, side, side], enlarged to the first one's size."""
    raw = RawTensors(source.detail)
    stem_lead = raw.lead_of(f"{source.stem}0.weight") + source.stem
    stages_lead = raw.lead_of(f"{source.stages}0.blocks.0.conv_dw.weight") + source.stages

    def conv(
        x: torch.Tensor, name: str, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> torch.Tensor:
        weight, bias = raw[f"{name}.weight"].float(), raw[f"{name}.bias"].float()
        return F.conv2d(x, weight, bias, stride, padding, groups=groups)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, raw[f"{name}.weight"].float(), raw[f"{name}.bias"].float())

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = raw[f"{name}.weight"].float(), raw[f"{name}.bias"].float()
        return F.layer_norm(x, weight.shape, weight, bias, 1e-6)

    def norm_of_map(x: torch.Tensor, name: str) -> torch.Tensor:
        return norm(x.permute(0, 2, 3, 1), name).permute(0, 3, 1, 2)

    size = raw[f"{stem_lead}0.weight"].shape[-1]
    x = norm_of_map(conv(x, f"{stem_lead}0", stride=size), f"{stem_lead}1")
    stages: list[torch.Tensor] = []
    while f"{stages_lead}{len(stages)}.blocks.0.conv_dw.weight" in raw:
        stage, block = f"{stages_lead}{len(stages)}.", 0
        if stages:
            x = norm_of_map(x, f"{stage}downsample.0")
            x = conv(x, f"{stage}downsample.1", stride=raw[f"{stage}downsample.1.weight"].shape[-1])
        while (p := f"{stage}blocks.{block}.") + "conv_dw.weight" in raw:
            y = conv(x, f"{p}conv_dw", padding=3, groups=x.shape[1]).permute(0, 2, 3, 1)
            y = linear(F.gelu(linear(norm(y, f"{p}norm"), f"{p}mlp.fc1")), f"{p}mlp.fc2")
            x = x + (y * raw[f"{p}gamma"].float()).permute(0, 3, 1, 2)
            block += 1
        stages.append(x)
    size = stages[0].shape[-1]
    larger = [F.interpolate(each, size=(size, size), mode="bilinear", align_corners=False)
              for each in stages[1:]]  # fmt: skip
    return torch.cat([stages[0], *larger], dim=1)


def _mined(rows: torch.Tensor, cells: torch.Tensor, source: MiningSource) -> torch.Tensor:
    """[1, patches, width] and [1, channels, side, side] → [1, patches, width]."""
    raw = RawTensors(source.captioner)

    def projected(x: torch.Tensor, part: str) -> torch.Tensor:
        lead = raw.lead_of(f"vlm_uni_{part}_projector.0.weight") + f"vlm_uni_{part}_projector."
        weight, bias = raw[f"{lead}0.weight"].float(), raw[f"{lead}0.bias"].float()
        x = F.layer_norm(x, weight.shape, weight, bias)
        return F.linear(x, raw[f"{lead}1.weight"].float(), raw[f"{lead}1.bias"].float())

    grid = round(rows.shape[1] ** 0.5)
    p = cells.shape[-1] // grid
    # [patches, cells under the patch, channels]
    under = F.unfold(cells[0].unsqueeze(1), p, stride=p).permute(2, 1, 0)
    query = projected(rows[0], "query")
    results = []
    for q, own in zip(query.split(grid), under.split(grid), strict=True):  # a row of patches each
        keys, values = projected(own, "aux"), projected(own, "val")
        scores = torch.einsum("pe,pce->pc", q, keys) / keys.shape[-1] ** 0.5
        results.append(torch.einsum("pc,pce->pe", scores.softmax(-1), values))
    return rows + torch.cat(results)[None]
