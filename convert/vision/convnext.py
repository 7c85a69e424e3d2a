"""ConvNeXt as a tower of maps: the feature map of each stage, [n, rows, columns, channels].

Channels lie last throughout, so norms and the layers of 1 × 1 are plain MatMuls over rows, and so
are the patches of the stem and between stages, which do not overlap. Only the 7 × 7 convolutions
are such. Sources: timm's `convnext.py` (names and order), open_clip's `convnext_large_d_320`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.graph import Affine, Norm, gelu, placeholder
from edgeprism.convert.vision.weights import (
    Weight,
    Weights,
    linear_weights,
    norm_weights,
    patch_rows,
    same,
)
from edgeprism.errors import CheckpointError

_KERNEL, _EPS = 7, 1e-6
# Values of the widest layer that exist at a time for one picture: 64 MB in float32
_WIDEST = 1 << 24


@dataclass(frozen=True)
class ConvNeXtConfig:
    """Blocks and channels of each stage; a stage has half the rows of the one before."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    patch_size: int  # of the stem
    factor: int  # by which each later stage divides rows and columns

    def sides(self, image_size: int) -> list[int]:
        """Return the rows of each stage's map for square pictures of `image_size` pixels."""
        first = image_size // self.patch_size
        return [first // self.factor**i for i in range(len(self.widths))]


class _Patches(nn.Module):
    """Cells of s × s without overlap → one row each: a convolution whose stride is its size."""

    def __init__(self, dtype: torch.dtype, side: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.side, self.patch = side, Affine(dtype, side * side * n_in, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, h, w, n_in] → [n, h / s, w / s, n_out]."""
        n, h, w, e = x.shape
        s = self.side
        x = x.reshape(n, h // s, s, w // s, s, e).permute(0, 1, 3, 2, 4, 5)
        result: torch.Tensor = self.patch(x.reshape(n, h // s, w // s, s * s * e))
        return result


class _Block(nn.Module):
    def __init__(self, dtype: torch.dtype, width: int) -> None:
        super().__init__()
        self.kernel, self.offset = placeholder(dtype, width, 1, 7, 7), placeholder(dtype, width)
        self.norm = Norm(dtype, width, _EPS)
        self.fc1, self.fc2 = Affine(dtype, width, 4 * width), Affine(dtype, 4 * width, width)
        self.scale = placeholder(dtype, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, h, w, width] → the same shape."""
        _, h, w, e = x.shape
        y = functional.conv2d(
            x.permute(0, 3, 1, 2), self.kernel, self.offset, padding=_KERNEL // 2, groups=e
        )
        y = self.norm(y.permute(0, 2, 3, 1))
        # the wide layer is made of some rows at a time, which saves memory and changes nothing
        n_parts = min(h, -(-h * w * 4 * e // _WIDEST))
        parts = [self.fc2(gelu(self.fc1(part), "gelu")) for part in y.split(-(-h // n_parts), 1)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return x + y * self.scale


class ConvNeXt(nn.Module):
    """Normalised pixels [n, size, size, 3] → the map of each stage."""

    def __init__(self, config: ConvNeXtConfig, dtype: torch.dtype) -> None:
        super().__init__()
        widths = config.widths
        self.stem = _Patches(dtype, config.patch_size, 3, widths[0])
        self.norm = Norm(dtype, widths[0], _EPS)
        self.norms = nn.ModuleList(Norm(dtype, width, _EPS) for width in widths[:-1])
        self.joints = nn.ModuleList(
            _Patches(dtype, config.factor, *widths[i : i + 2]) for i in range(len(widths) - 1)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(_Block(dtype, width) for _ in range(depth))
            for depth, width in zip(config.depths, widths, strict=True)
        )

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return a map [n, side, side, width] for each stage."""
        x = self.norm(self.stem(pixels))
        maps = []
        for i, blocks in enumerate(cast(Iterable[nn.ModuleList], self.stages)):
            if i:
                x = self.joints[i - 1](self.norms[i - 1](x))
            for block in blocks:
                x = block(x)
            maps.append(x)
        return maps


# ---- reading a checkpoint


@dataclass(frozen=True)
class ConvNeXtNames:
    """A tower's checkpoint, and how the names of its tensors begin, up to their numbers."""

    checkpoint: Checkpoint
    stem: str  # e.g. "visual.trunk.stem."
    stages: str


def convnext_config(names: ConvNeXtNames) -> ConvNeXtConfig:
    """Read the sizes from the tensors' shapes; CheckpointError if there is no ConvNeXt."""
    checkpoint = names.checkpoint
    pattern = re.compile(rf"{re.escape(names.stages)}(\d+)\.blocks\.(\d+)\.conv_dw\.weight")
    depths: dict[int, int] = {}
    for stage, block in (hit.groups() for hit in map(pattern.fullmatch, checkpoint.names) if hit):
        depths[int(stage)] = max(depths.get(int(stage), 0), int(block) + 1)
    first, joint = f"{names.stem}0.weight", f"{names.stages}1.downsample.1.weight"
    kernels = [f"{names.stages}{i}.blocks.0.conv_dw.weight" for i in range(max(2, len(depths)))]
    missing = [name for name in (first, joint, *kernels) if name not in checkpoint.names]
    if missing or len(checkpoint.shape(first)) != 4 or len(checkpoint.shape(joint)) != 4:
        raise CheckpointError(
            f"{checkpoint.folder} ({checkpoint.role}) holds no ConvNeXt: convolutions named "
            f"{', '.join((first, joint, *kernels))} are expected.",
            "Pass the folder of the ConvNeXt that the captioner names.",
        )
    return ConvNeXtConfig(
        depths=tuple(depths[i] for i in range(len(depths))),
        widths=tuple(checkpoint.shape(name)[0] for name in kernels),
        patch_size=checkpoint.shape(first)[-1],
        factor=checkpoint.shape(joint)[-1],
    )


def convnext_weights(config: ConvNeXtConfig, names: ConvNeXtNames) -> Weights:
    """Return the parameters of a `ConvNeXt`."""
    checkpoint, p, s = names.checkpoint, config.patch_size, config.factor
    widths = config.widths
    weights = _patch_weights("stem", checkpoint, f"{names.stem}0", (widths[0], 3, p, p))
    weights |= norm_weights("norm", checkpoint, f"{names.stem}1", widths[0])
    for i, (depth, width) in enumerate(zip(config.depths, widths, strict=True)):
        stage = f"{names.stages}{i}."
        if i:
            shape = (width, widths[i - 1], s, s)
            weights |= norm_weights(f"norms.{i - 1}", checkpoint, f"{stage}downsample.0", shape[1])
            weights |= _patch_weights(f"joints.{i - 1}", checkpoint, f"{stage}downsample.1", shape)
        for b in range(depth):
            weights |= _block_weights(f"stages.{i}.{b}", checkpoint, f"{stage}blocks.{b}.", width)
    return weights


def _patch_weights(
    module: str, checkpoint: Checkpoint, source: str, shape: Sequence[int]
) -> Weights:
    return {
        f"{module}.patch.weight": Weight(
            checkpoint, {f"{source}.weight": tuple(shape)}, patch_rows
        ),
        f"{module}.patch.bias": Weight(checkpoint, {f"{source}.bias": (shape[0],)}, same),
    }


def _block_weights(module: str, checkpoint: Checkpoint, source: str, e: int) -> Weights:
    kernel = {f"{source}conv_dw.weight": (e, 1, _KERNEL, _KERNEL)}
    return {
        f"{module}.kernel": Weight(checkpoint, kernel, same),
        f"{module}.offset": Weight(checkpoint, {f"{source}conv_dw.bias": (e,)}, same),
        f"{module}.scale": Weight(checkpoint, {f"{source}gamma": (e,)}, same),
        **norm_weights(f"{module}.norm", checkpoint, f"{source}norm", e),
        **linear_weights(f"{module}.fc1", checkpoint, f"{source}mlp.fc1", e, 4 * e),
        **linear_weights(f"{module}.fc2", checkpoint, f"{source}mlp.fc2", 4 * e, e),
    }
