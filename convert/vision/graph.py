"""Vision towers and the projector as one torch module, laid out for export.

The module's parameters are placeholders without memory: export needs shapes alone, and the
converter reads the weights one at a time when it writes the file. Matrices are [in, out], so that
the exported graph has plain MatMuls with constant weights: the int8 quantizer recognises no others.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from edgeprism.convert.vision.config import ProjectorConfig, TowerConfig
from edgeprism.convert.vision.frames import FRAMES, FramePooling, pool_cells
from edgeprism.convert.vision.quantize import INPUT, NEWLINE, OUTPUT

_counter = itertools.count(1)


def placeholder(dtype: torch.dtype, *shape: int) -> nn.Parameter:
    """Return a parameter of one repeated value; values differ, so export merges no parameters."""
    value = torch.full((1,), next(_counter) % 2000 + 1, dtype=dtype)
    return nn.Parameter(value.expand(shape), requires_grad=False)


class GraphModule(nn.Module):
    """A module that `export_graph` writes as an ONNX graph.

    Its parameters are placeholders, and `forward` takes the inputs in their order.
    """

    dtype: torch.dtype
    outputs: tuple[str, ...] = (OUTPUT,)
    # {pattern of what torch calls a length that is not constant: its name in the graph}, for those
    # that memory is planned by (`edgeprism.perceive.footprint`)
    lengths: ClassVar[Mapping[str, str]] = {}

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Return {name: (an example, {axis: its torch.export.Dim, if its length may differ})}.

        An example's length along such an axis is more than 1, which torch would take for constant.
        """
        raise NotImplementedError

    def arranged(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Return values of `inputs`, in their order, as `forward` takes them."""
        return tuple(values)


def tile_inputs(size: int, n_views: int = 1) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
    """Return GraphModule's inputs for any number of tiles, pixels [n, size, size, 3 · n_views]."""
    pixels = torch.zeros((2, size, size, 3 * n_views), dtype=torch.uint8)
    return {INPUT: (pixels, {0: torch.export.Dim("n", min=1, max=1024)})}


class Affine(nn.Module):
    """x @ weight [in, out] + bias."""

    def __init__(self, dtype: torch.dtype, n_in: int, n_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = placeholder(dtype, n_in, n_out)
        self.bias = placeholder(dtype, n_out) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…, n_in] → […, n_out]."""
        x = x @ self.weight
        return x if self.bias is None else x + self.bias


class Norm(nn.Module):
    """A layer norm, or with `rms` an RMS norm (no mean, no bias)."""

    def __init__(self, dtype: torch.dtype, n: int, eps: float, rms: bool = False) -> None:
        super().__init__()
        self.weight = placeholder(dtype, n)
        self.bias = None if rms else placeholder(dtype, n)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…, n] → […, n], each row by itself."""
        if self.bias is None:
            y = x.float()
            y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)
            return y.to(x.dtype) * self.weight
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class EncoderLayer(nn.Module):
    """One transformer layer over [n, rows, n_embd], pre-norm unless `norm_after`."""

    def __init__(self, config: TowerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        e, f = config.n_embd, config.n_ffn
        self.norm1, self.norm2 = (Norm(dtype, e, config.eps, config.rms) for _ in range(2))
        self.q, self.v = (Affine(dtype, e, e, config.qkv_bias) for _ in range(2))
        self.k = Affine(dtype, e, e, config.qkv_bias and config.k_bias)
        self.q_norm, self.k_norm = (
            Norm(dtype, e, config.eps, rms=True) if config.qk_norm else None for _ in range(2)
        )
        self.out = Affine(dtype, e, e)
        self.fc1, self.fc2 = Affine(dtype, e, f), Affine(dtype, f, e)
        self.n_heads = config.n_heads
        self.activation, self.norm_after = config.activation, config.norm_after
        self.scale1 = placeholder(dtype, e) if config.layer_scale else None
        self.scale2 = placeholder(dtype, e) if config.layer_scale else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, rows, n_embd] → the same shape."""
        n, t, e = x.shape
        y: torch.Tensor = x if self.norm_after else self.norm1(x)
        parts = [part(y) for part in (self.q, self.k, self.v)]
        if self.q_norm is not None and self.k_norm is not None:
            parts[:2] = self.q_norm(parts[0]), self.k_norm(parts[1])
        q, k, v = (
            part.reshape(n, t, self.n_heads, e // self.n_heads).transpose(1, 2) for part in parts
        )  # [n, heads, rows, head_dim]
        weights = torch.softmax((q * (e // self.n_heads) ** -0.5) @ k.transpose(2, 3), dim=-1)
        y = self.out((weights @ v).transpose(1, 2).reshape(n, t, e))
        y = self.norm1(y) if self.norm_after else y
        x = x + (y if self.scale1 is None else y * self.scale1)
        y = x if self.norm_after else self.norm2(x)
        y = self.fc2(gelu(self.fc1(y), self.activation))
        y = self.norm2(y) if self.norm_after else y
        return x + (y if self.scale2 is None else y * self.scale2)


class Tower(nn.Module):
    """uint8 pixels [n, size, size, 3] → features [n, patches, n_embd]."""

    def __init__(self, config: TowerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        e = config.n_embd
        self.patch = Affine(dtype, 3 * config.patch_size**2, e, config.patch_bias)
        self.position = placeholder(dtype, config.grid**2, e)
        # class and register rows, with their positions already added
        self.prefix = placeholder(dtype, config.n_prefix, e) if config.n_prefix else None
        self.norm_first = Norm(dtype, e, config.eps) if config.norm_first else None
        self.layers = nn.ModuleList(EncoderLayer(config, dtype) for _ in range(config.n_layers))
        eps_last = config.eps if config.eps_last is None else config.eps_last
        self.norm_last = Norm(dtype, e, eps_last, config.rms) if config.norm_last else None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [n, size, size, 3] → features [n, patches (and rows of the prefix), n_embd]."""
        c = self.config
        n, g, p = pixels.shape[0], c.grid, c.patch_size
        # drop the pixels beyond the last whole patch, as a strided convolution does
        x = pixels[:, : g * p, : g * p, :].float()
        x = (x * c.rescale - torch.tensor(c.mean)) / torch.tensor(c.std)
        x = x.to(self.dtype).reshape(n, g, p, g, p, 3).permute(0, 1, 3, 2, 4, 5)
        x = self.patch(x.reshape(n, g * g, p * p * 3)) + self.position
        if self.prefix is not None:
            x = torch.cat([self.prefix.expand(n, -1, -1), x], dim=1)
        if self.norm_first is not None:
            x = self.norm_first(x)
        for layer in self.layers:
            x = layer(x)
        if self.norm_last is not None:
            x = self.norm_last(x)
        return x[:, c.n_prefix :] if c.n_prefix and not c.keeps_prefix else x


class Projector(nn.Module):
    """Features [n, patches, in] → visual tokens [n, n_tokens, out]."""

    def __init__(self, config: ProjectorConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.norm = Norm(dtype, config.widths[0], 1e-5) if config.has_norm else None
        self.linears = nn.ModuleList(
            Affine(dtype, *widths, bias=not config.plain)
            for widths in itertools.pairwise(config.widths)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features [n, patches, n_embd] → visual tokens [n, n_tokens, width]."""
        if self.config.downsample > 1:
            x = join_cells(x, self.config.downsample)
        if self.config.transposed:
            side = int(x.shape[1] ** 0.5)
            x = x.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)
        if self.norm is not None:
            x = self.norm(x)
        for i, linear in enumerate(self.linears):
            x = linear(x if i == 0 else gelu(x, "gelu"))
        return x


class VisionGraph(GraphModule):
    """uint8 pixels [n, size, size, 3] → visual tokens [n, n_tokens, n_embd of the LM], float32.

    The graph does everything between: each tower's normalisation, patches and layers, the
    concatenation of the features, the projector and, in some families, dropping the first patch.
    With `newline`, a second output is the learned row of that name, [n, n_embd]: repeated for each
    tile, so that no optimizer folds the placeholder's value into a constant. With `n_views`, each
    tower has three channels of its own: pixels [n, size, size, 3 · n_views]. With `pooling`, the
    last output has the visual tokens of the tile as a frame of a video.
    """

    def __init__(
        self,
        towers: Sequence[TowerConfig],
        projector: ProjectorConfig,
        drop_first_patch: bool,
        dtype: torch.dtype,
        newline: bool = False,
        n_views: int = 1,
        pooling: FramePooling | None = None,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.image_size, self.dtype, self.n_views = towers[0].image_size, dtype, n_views
        self.configs = (*towers, projector)
        self.drop_first_patch = drop_first_patch
        self.towers = nn.ModuleList(Tower(config, dtype) for config in towers)
        self.projector = Projector(projector, dtype)
        self.newline_row = placeholder(dtype, 1, projector.widths[-1]) if newline else None
        newlines, frames = (NEWLINE,) * bool(newline), (FRAMES,) * (pooling is not None)
        self.outputs = (OUTPUT, *newlines, *frames)

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Pixels of any number of tiles."""
        return tile_inputs(self.image_size, self.n_views)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Pixels [n, size, size, 3 · views] → what `outputs` names, one of them alone."""
        views = pixels.split(3, dim=-1) if self.n_views > 1 else [pixels] * len(self.towers)
        features = [tower(view) for tower, view in zip(self.towers, views, strict=True)]
        x = features[0] if len(features) == 1 else torch.cat(features, dim=-1)
        if self.drop_first_patch:
            x = x[:, 1:]
        results = [*self._projected(x)]
        if self.newline_row is not None:
            results.insert(1, self.newline_row.expand(pixels.shape[0], -1))
        made = tuple(result.float() for result in results)
        return made[0] if len(made) == 1 else made

    def _projected(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Features [n, patches, n_in] → visual tokens, and those of frames if there is `pooling`.

        The projector sees patches and cells as rows of one product, so its weights are read once,
        and are in memory once.
        """
        if self.pooling is None:
            return (self.projector(x),)
        if self.pooling.after_projector:
            tokens: torch.Tensor = self.projector(x)
            return tokens, pool_cells(tokens, self.pooling.stride)
        both = self.projector(torch.cat([x, pool_cells(x, self.pooling.stride)], dim=1))
        return both[:, : x.shape[1]], both[:, x.shape[1] :]


def join_cells(x: torch.Tensor, s: int) -> torch.Tensor:
    """[n, g · g, e] → [n, ⌈g/s⌉², s · s · e]: concatenate each s × s cell's patches, row by row."""
    n, t, e = x.shape
    g = int(t**0.5)
    spare = -g % s
    x = functional.pad(x.reshape(n, g, g, e), (0, 0, 0, spare, 0, spare))
    side = (g + spare) // s
    x = x.reshape(n, side, s, side, s, e).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(n, side * side, s * s * e)


def gelu(x: torch.Tensor, activation: str) -> torch.Tensor:
    """Apply GELU in CLIP's own form, the tanh form or the erf form, by transformers' name."""
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="tanh" if activation != "gelu" else "none")
