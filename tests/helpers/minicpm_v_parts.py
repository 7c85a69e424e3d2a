"""What MiniCPM-V 1.0, 2.0 and Llama3-V 2.5 do to a picture, written out from upstream's code.

The code lies in the published folders (modeling_minicpmv.py, resampler.py); the tower of 1.0 and
2.0 is timm's vision transformer, and that of 2.5 is taken from transformers.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

PATCH, MOST = 14, 9
WIDTH, HEAD = 64, 128  # HEAD is the resampler's and is fixed by its code
# what upstream's slice_image gives at its published settings: (width, height) of the picture, of
# the overview, (columns, rows), (width, height) of a slice
RECORDED = [
    ((448, 448), (448, 448), (0, 0), (0, 0)),
    ((320, 240), (518, 392), (0, 0), (0, 0)),
    ((449, 448), (448, 448), (2, 1), (322, 630)),
    ((640, 480), (518, 392), (2, 1), (364, 546)),
    ((800, 600), (518, 392), (2, 2), (518, 392)),
    ((1280, 720), (602, 336), (3, 2), (490, 406)),
    ((1920, 1080), (602, 336), (4, 2), (420, 476)),
    ((1080, 1920), (336, 602), (2, 4), (476, 420)),
    ((300, 1200), (224, 896), (1, 3), (392, 518)),
    ((3000, 1000), (770, 252), (4, 2), (546, 364)),
    ((4000, 3000), (518, 392), (3, 3), (518, 392)),
    ((5000, 400), (1568, 126), (9, 1), (532, 378)),
]
# SHA-256 of a line "w h w h columns rows w h" for each of `random_sizes()`, computed with
# slice_image of modeling_minicpmv.py at commit 3d0e971 of the published folder of MiniCPM-V 2.0
RANDOM_DIGEST = "5c3f9f4b2c32b2ecfea179698065480eb7fe139548240b06eb4098d9c882f565"


@dataclass(frozen=True)
class Plan:
    """How a picture is cut; sizes are (width, height), the grid is (columns, rows)."""

    overview: tuple[int, int]
    grid: tuple[int, int] = (0, 0)
    slice: tuple[int, int] = (0, 0)


def slice_plan(size: tuple[int, int], scale: int = 448, most: int = MOST) -> Plan:
    """Return how upstream cuts a picture of `size` (width, height)."""
    width, height = size
    wanted = min(math.ceil(width * height / (scale * scale)), most)
    if wanted <= 1:
        return Plan(_best_size(width, height, scale, upscale=True))
    grid, smallest = (1, 1), math.inf
    for n in (wanted - 1, wanted, wanted + 1):
        if n == 1 or n > most:
            continue
        for columns in range(1, n + 1):
            if n % columns == 0:
                error = abs(math.log(width / height) - math.log(columns / (n // columns)))
                if error < smallest:
                    grid, smallest = (columns, n // columns), error
    refined = (_divisible(width, grid[0]) / grid[0], _divisible(height, grid[1]) / grid[1])
    cell = _best_size(*refined, scale, upscale=True)
    return Plan(_best_size(width, height, scale, upscale=False), grid, cell)


def _divisible(length: float, by: int) -> int:
    return max(round(length / by) * by, by)


def _best_size(width: float, height: float, scale: int, *, upscale: bool) -> tuple[int, int]:
    if width * height > scale * scale or upscale:
        ratio = width / height
        height = int(scale / math.sqrt(ratio))
        width = int(height * ratio)
    return _divisible(width, PATCH), _divisible(height, PATCH)


def digest(plans: Iterable[tuple[tuple[int, int], Plan]]) -> str:
    """Return what is to be compared with RANDOM_DIGEST, of sizes and how they are cut."""
    result = hashlib.sha256()
    for size, plan in plans:
        numbers = (*size, *plan.overview, *plan.grid, *plan.slice)
        result.update((" ".join(map(str, numbers)) + "\n").encode())
    return result.hexdigest()


def random_sizes(n: int = 500) -> Iterator[tuple[int, int]]:
    """Yield sizes between 8 and 6000, uniform in their logarithm."""
    generator = random.Random(7)
    for _ in range(n):
        width, height = (math.exp(generator.uniform(math.log(8), math.log(6000))) for _ in "wh")
        yield int(width), int(height)


def cut(image: Image.Image, scale: int, most: int) -> tuple[list[Image.Image], tuple[int, int]]:
    """Return the overview and the slices row by row, and the grid (columns, rows)."""
    plan = slice_plan(image.size, scale, most)
    pictures = [image.resize(plan.overview, Image.Resampling.BICUBIC)]
    columns, rows = plan.grid
    width, height = plan.slice
    if columns:
        refined = image.resize((columns * width, rows * height), Image.Resampling.BICUBIC)
        for top in range(0, rows * height, height):
            for left in range(0, columns * width, width):
                pictures.append(refined.crop((left, top, left + width, top + height)))
    return pictures, plan.grid


# ---- towers


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
        mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, length, width)
        result: torch.Tensor = self.proj(mixed)
        return result


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        inner = functional.gelu(self.mlp["fc1"](self.norm2(x)))
        result: torch.Tensor = x + self.mlp["fc2"](inner)
        return result


class TimmTower(nn.Module):
    """timm's VisionTransformer without a class token, at sizes other than its own."""

    def __init__(self, width: int, heads: int, inner: int, layers: int, side: int) -> None:
        super().__init__()
        patches = nn.Conv2d(3, width, kernel_size=PATCH, stride=PATCH)
        self.patch_embed = nn.ModuleDict({"proj": patches})
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side, width))
        self.blocks = nn.ModuleList(_Block(width, heads, inner) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[1, 3, height, width] → [1, n_patches, width]"""
        x = self.patch_embed["proj"](pixels)  # [1, width, h, w]
        x = (x + self._positions(x.shape[2], x.shape[3])).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.norm(x)
        return result

    def _positions(self, height: int, width: int) -> torch.Tensor:
        """[1, width of the rows, height, width]; timm smooths where the table is made smaller."""
        side = math.isqrt(self.pos_embed.shape[1])
        table = self.pos_embed.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        if (height, width) == (side, side):
            return table
        return functional.interpolate(
            table.float(), size=(height, width), mode="bicubic", antialias=True
        )


def idefics2_positions(n_patches: int, side: int) -> torch.Tensor:
    """Return the rows of the table of positions that transformers 4.40 gives a strip [n_patches].

    The step is a float32 tensor there, because the number of patches is counted in a mask. A step
    computed in double precision gives other rows for 282 of the lengths below 1400.
    """
    counted = torch.ones(1, n_patches, dtype=torch.bool)
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    ids = []
    for n in (counted[:, 0].sum(), counted[0].sum()):
        fractions = torch.arange(0, 1 - 1e-6, (1 / n).item())
        ids.append(torch.bucketize(fractions, boundaries, right=True))
    return (ids[0][:, None] * side + ids[1]).flatten()


def idefics2_tower() -> Idefics2VisionTransformer:
    """Return 2.5's tower, which takes a strip [1, 3, 14, 14 · n_patches]."""
    config = Idefics2VisionConfig(
        hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        image_size=980, patch_size=PATCH,
    )  # fmt: skip
    tower = Idefics2VisionTransformer(config)
    embeddings = tower.embeddings

    def forward(pixel_values: torch.Tensor, patch_attention_mask: torch.Tensor) -> torch.Tensor:
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        ids = idefics2_positions(patches.shape[1], embeddings.num_patches_per_side)
        rows: torch.Tensor = patches + embeddings.position_embedding(ids)
        return rows

    embeddings.forward = forward  # type: ignore[method-assign]
    return tower


def strip(pixels: torch.Tensor) -> torch.Tensor:
    """Lay the patches of [1, 3, h, w] side by side, row by row: [1, 3, 14, 14 · n_patches]."""
    columns = functional.unfold(pixels, PATCH, stride=PATCH)  # [1, 3 · 14 · 14, n]
    patches = columns.reshape(3, PATCH, PATCH, -1).permute(0, 1, 3, 2)
    return patches.reshape(1, 3, PATCH, -1)


# ---- the resampler


def sincos_table(height: int, width: int, n_embd: int) -> torch.Tensor:
    """[height · width, n_embd] float32: columns in the first half, rows in the second."""
    omega = np.arange(n_embd // 4, dtype=np.float32)
    omega /= n_embd / 4.0
    omega = (1.0 / 10000**omega).astype(np.float32)
    row, column = np.indices((height, width)).astype(np.float32)
    parts = []
    for place in (column, row):
        angle = place.reshape(-1, 1) * omega
        parts += [np.sin(angle), np.cos(angle)]
    return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))


class Resampler(nn.Module):
    """Queries that look at a picture's patches once.

    Parameters:
        version: "1.0" takes the patches' positions from the queries' stored table, resized; "2.0"
            computes them; "2.5" does, too, and gives the queries none.
    """

    def __init__(self, version: str, n_queries: int, n_embd: int, width: int) -> None:
        super().__init__()
        self.version = version
        self.query = nn.Parameter(torch.zeros(n_queries, n_embd))
        if version != "2.5":
            self.pos_embed = nn.Parameter(torch.zeros(n_queries, n_embd))
        self.kv_proj = nn.Linear(width, n_embd, bias=False)
        self.attn = nn.MultiheadAttention(n_embd, n_embd // HEAD)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(n_embd, eps=1e-6) for _ in range(3))
        self.proj = nn.Parameter(torch.zeros(n_embd, n_embd))

    def forward(self, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """[1, h · w, width] → [1, n_queries, n_embd]; `grid` is (h, w)."""
        values = self.ln_kv(self.kv_proj(patches)).transpose(0, 1)  # [n, 1, n_embd]
        queries = self.ln_q(self.query)
        if self.version != "2.5":
            queries = queries + self.pos_embed
        keys = values + self._places(grid)[:, None]
        rows, _ = self.attn(queries[:, None], keys, values)
        result: torch.Tensor = self.ln_post(rows.transpose(0, 1)) @ self.proj
        return result

    def _places(self, grid: tuple[int, int]) -> torch.Tensor:
        if self.version != "1.0":
            return sincos_table(*grid, self.query.shape[1])
        side = math.isqrt(len(self.query))
        table = self.pos_embed.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        resized = functional.interpolate(table, size=grid, mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1).flatten(0, 2)
