"""InternLM-XComposer2 and its 4KHD in plain torch: what a converted bundle is compared with.

`XComposer2` holds its tensors under the published names. Everything is float32.

Sources: `modeling_internlm2.py`, `modeling_internlm_xcomposer2.py`, `build_mlp.py` and
`ixc_utils.py` of the published folders, read in copies that others keep of them; MindIE's
`internlmxcomposer2`, lmdeploy's `xcomposer2.py` and VLMEvalKit's `XComposer2_4KHD`; and version
2.5 in InternLM-XComposer's own repository (`internlm-xcomposer2d5-ol-7b/base`), whose language
model is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionModel

from tests.helpers import tiled
from tests.helpers.tiny_captioners import CLIP_MEAN, CLIP_STD, INSTRUCTION, Reference

# `meta_instruction` that `chat` has by default; the authors' evaluation has none
META = (
    "You are an AI assistant whose name is InternLM-XComposer (浦语·灵笔).\n"
    "- InternLM-XComposer (浦语·灵笔) is a multi-modality conversational language model that is "
    "developed by Shanghai AI Laboratory (上海人工智能实验室). It is designed to be helpful, "
    "honest, and harmless.\n"
    "- InternLM-XComposer (浦语·灵笔) can understand and communicate fluently in the language "
    "chosen by the user such as English and 中文.\n"
    "- InternLM-XComposer (浦语·灵笔) is capable of comprehending and articulating responses "
    "effectively based on the provided image."
)
START, END = "[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_145]"
HD_NUM = 25  # tiles at most: `chat` of 4KHD, and lmdeploy; the README's example asks for 55


# ---- the language model


Seen = list[torch.Tensor]  # a layer's keys and values [n, groups, head]; empty at first


class PartialLoraLinear(nn.Module):
    """A matrix whose LoRA acts on rows of pictures alone; its alpha is its rank, so scale is 1."""

    def __init__(self, n_in: int, n_out: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_out, n_in))
        self.Plora_A = nn.Linear(n_in, rank, bias=False)
        self.Plora_B = nn.Linear(rank, n_out, bias=False)

    def forward(self, x: torch.Tensor, of_picture: torch.Tensor) -> torch.Tensor:
        """x [n, in], of_picture bool [n] → [n, out]"""
        change: torch.Tensor = self.Plora_B(self.Plora_A(x[of_picture]))
        return (x @ self.weight.T).index_put((of_picture,), change, accumulate=True)


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight
        return scaled


class Attention(nn.Module):
    """Grouped-query attention; `wqkv` holds, group by group, its queries, its key, its value."""

    def __init__(self, width: int, heads: int, groups: int, rank: int) -> None:
        super().__init__()
        self.head_dim, self.groups = width // heads, groups
        self.wqkv = PartialLoraLinear(width, (heads + 2 * groups) * self.head_dim, rank)
        self.wo = PartialLoraLinear(width, width, rank)

    def forward(self, x: torch.Tensor, of_picture: torch.Tensor, seen: Seen) -> torch.Tensor:
        """[n, width] → [n, width]; appends the rows' keys and values to `seen`."""
        packed = self.wqkv(x, of_picture).unflatten(1, (self.groups, -1, self.head_dim))
        start = len(seen[0]) if seen else 0
        queries = rotated(packed[:, :, :-2], start)  # [n, groups, queries of a group, head]
        new = rotated(packed[:, :, -2], start), packed[:, :, -1]
        seen[:] = [torch.cat(pair) for pair in zip(seen, new, strict=True)] if seen else new
        keys, values = seen
        scores = torch.einsum("ngqd,mgd->gqnm", queries, keys) / math.sqrt(self.head_dim)
        later = torch.ones(len(x), len(keys), dtype=torch.bool).triu(start + 1)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        attended = torch.einsum("gqnm,mgd->ngqd", weights, values)
        result: torch.Tensor = self.wo(attended.flatten(1), of_picture)
        return result


def rotated(x: torch.Tensor, start: int, base: float = 1e6) -> torch.Tensor:
    """[n, …, head] at positions from `start` on, turned by pairs of the head's two halves."""
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.outer(torch.arange(start, start + len(x)).float(), frequencies)
    angles = angles.view(len(x), *[1] * (x.dim() - 2), half)
    a, b = x[..., :half], x[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, rank: int) -> None:
        super().__init__()
        self.w1 = PartialLoraLinear(width, inner, rank)
        self.w3 = PartialLoraLinear(width, inner, rank)
        self.w2 = PartialLoraLinear(inner, width, rank)

    def forward(self, x: torch.Tensor, of_picture: torch.Tensor) -> torch.Tensor:
        gate = functional.silu(self.w1(x, of_picture))
        result: torch.Tensor = self.w2(gate * self.w3(x, of_picture), of_picture)
        return result


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, groups: int, inner: int, rank: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads, groups, rank)
        self.feed_forward = FeedForward(width, inner, rank)
        self.attention_norm, self.ffn_norm = RmsNorm(width), RmsNorm(width)

    def forward(self, x: torch.Tensor, of_picture: torch.Tensor, seen: Seen) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), of_picture, seen)
        result: torch.Tensor = x + self.feed_forward(self.ffn_norm(x), of_picture)
        return result


@dataclass(frozen=True)
class Dimensions:
    """Dimensions of a language model, by default those of the tests' tiny one."""

    n_vocab: int
    width: int = 64
    heads: int = 4
    groups: int = 2  # heads of keys and values
    inner: int = 160
    layers: int = 2
    rank: int = 256  # as published


class InternLM2(nn.Module):
    def __init__(self, d: Dimensions) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(d.n_vocab, d.width)
        self.layers = nn.ModuleList(
            Layer(d.width, d.heads, d.groups, d.inner, d.rank) for _ in range(d.layers)
        )
        self.norm = RmsNorm(d.width)

    def forward(
        self, rows: torch.Tensor, of_picture: torch.Tensor, seen: list[Seen]
    ) -> torch.Tensor:
        """[n, width] → [n, width]"""
        for layer, its_own in zip(self.layers, seen, strict=True):
            rows = layer(rows, of_picture, its_own)
        result: torch.Tensor = self.norm(rows)
        return result


class XComposer2(nn.Module):
    """The whole model; 4KHD if `merged`: its connector takes four patches at once."""

    def __init__(self, tower: CLIPVisionModel, d: Dimensions, *, merged: bool) -> None:
        super().__init__()
        self.image_size: int = tower.config.image_size
        self.model = InternLM2(d)
        self.output = nn.Linear(d.width, d.n_vocab, bias=False)
        self.vit = nn.ModuleDict({"vision_tower": tower})
        n_in = tower.config.hidden_size * (4 if merged else 1)
        self.vision_proj = nn.Sequential(
            nn.Linear(n_in, d.width), nn.GELU(), nn.Linear(d.width, d.width)
        )
        if merged:
            self.plora_glb_GN = nn.Parameter(torch.zeros(1, 1, n_in))
            self.plora_sub_GN = nn.Parameter(torch.zeros(1, 1, 1, n_in))

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, size, size] → [n, patches, width]: the last layer's, before the norm after it."""
        states = self.vit["vision_tower"](pixels, output_hidden_states=True).hidden_states
        rows: torch.Tensor = states[-1][:, 1:]
        return rows

    def logits(
        self, rows: torch.Tensor, of_picture: torch.Tensor, seen: list[Seen] | None = None
    ) -> torch.Tensor:
        """Embedded rows [n, width], which follow those in `seen` → [n, n_vocab]"""
        seen = self.nothing_seen() if seen is None else seen
        result: torch.Tensor = self.output(self.model(rows, of_picture, seen))
        return result

    def nothing_seen(self) -> list[Seen]:
        return [[] for _ in self.model.layers]


# ---- 4KHD's pictures


class HdLayout(NamedTuple):
    """How 4KHD lays a picture out; `left` or `top` is the padding before it, in pixels."""

    resized: tuple[int, int]  # width, height
    left: int
    top: int
    across: int
    down: int

    @property
    def n_tiles(self) -> int:
        return self.across * self.down


def hd_layout(width: int, height: int, hd_num: int = HD_NUM, tile: int = 336) -> HdLayout:
    """Return the layout of a picture of that size: at most `hd_num` tiles, as wide as they allow.

    Source: `HD_transform` and `padding_336`, alike in four copies of 4KHD's `ixc_utils.py`.
    Raises ValueError where upstream fails: the shorter edge would have no pixel.
    """
    if width < height:  # upstream transposes the picture, and transposes the result back
        wide = hd_layout(height, width, hd_num, tile)
        return HdLayout(wide.resized[::-1], wide.top, wide.left, wide.down, wide.across)
    ratio = width / height
    across = max(n for n in range(1, hd_num + 1) if n * math.ceil(n / ratio) <= hd_num)
    new_width = across * tile
    new_height = int(new_width / ratio)
    if new_height == 0:
        raise ValueError(f"a picture of {width} × {height} would have no row of pixels")
    down = math.ceil(new_height / tile)
    return HdLayout((new_width, new_height), 0, (down * tile - new_height) // 2, across, down)


def n_rows(layout: HdLayout, side: int = 12) -> int:
    """Return the visual tokens of a picture whose tiles have `side` × `side` merged patches.

    Source: the formula that 4KHD's `build_mlp.py` asserts, (h·w + 1)·144 + 1 + (h + 1)·12.
    """
    return (layout.n_tiles + 1) * side**2 + 1 + (layout.down + 1) * side


def hd_canvas(image: Image.Image, hd_num: int, tile: int) -> Image.Image:
    """Return the picture resized and padded with white, as upstream does it with Pillow."""
    image = image.convert("RGB")
    if image.width < image.height:
        wide = hd_canvas(image.transpose(Image.Transpose.TRANSPOSE), hd_num, tile)
        return wide.transpose(Image.Transpose.TRANSPOSE)
    layout = hd_layout(*image.size, hd_num, tile)
    canvas = Image.new("RGB", (layout.across * tile, layout.down * tile), (255, 255, 255))
    resized = image.resize(layout.resized, Image.Resampling.BILINEAR)
    canvas.paste(resized, (layout.left, layout.top))
    return canvas


def hd_views(pixels: torch.Tensor, tile: int) -> torch.Tensor:
    """Canvas [3, height, width], normalised → [1 + n_tiles, 3, tile, tile]: the whole one first.

    The whole one is torch's bicubic (a = -0.75, no antialiasing) of the normalised canvas.
    """
    overview = functional.interpolate(pixels[None], size=(tile, tile), mode="bicubic")
    rows = pixels.split(tile, dim=1)
    tiles = [piece for row in rows for piece in row.split(tile, dim=2)]
    return torch.cat([overview, torch.stack(tiles)])


def hd_rows(
    features: torch.Tensor, layout: HdLayout, line_end: torch.Tensor, between: torch.Tensor
) -> torch.Tensor:
    """Features of the views [1 + n_tiles, patches, width] → rows [n, 4 · width].

    First the whole picture, a line of patches ending with `line_end` [4 · width]; `between`; then
    the tiles as the one picture that they make, line by line across all of them.
    """
    side = math.isqrt(features.shape[1])
    grids = features.unflatten(1, (side, side))
    tiles = list(grids[1:])
    across = layout.across
    lines = [torch.cat(tiles[i : i + across], dim=1) for i in range(0, len(tiles), across)]
    whole, close = (_lines(grid, line_end) for grid in (grids[0], torch.cat(lines)))
    return torch.cat([whole, between[None], close])


def _lines(grid: torch.Tensor, line_end: torch.Tensor) -> torch.Tensor:
    """[down, across, width] → [down / 2 · (across / 2 + 1), 4 · width], four patches to a row."""
    corners = [grid[i::2, j::2] for i in range(2) for j in range(2)]
    merged = torch.cat(corners, dim=-1)
    ends = line_end.expand(len(merged), 1, -1)
    return torch.cat([merged, ends], dim=1).flatten(0, 1)


# ---- the reference


@dataclass
class XComposer2Reference(Reference):
    """`lm` is an XComposer2. With `hd_num` it is 4KHD, and a picture becomes up to so many tiles.

    `before` ends where the picture stands. `chat` of VL tokenises the texts before and after the
    picture apart and begins both with BOS (`bos_again`); its training, 4KHD's `chat` and lmdeploy
    give BOS to the first alone.
    """

    hd_num: int = 0
    bos_again: bool = False

    @property
    def size(self) -> int:
        """Edge of a view in pixels."""
        return self.whole.image_size

    @property
    def whole(self) -> XComposer2:
        model: Any = self.lm
        assert isinstance(model, XComposer2)
        return model

    def views(self, image: Image.Image) -> torch.Tensor:
        """[n, 3, size, size], normalised"""
        size = self.size
        if self.hd_num:
            return hd_views(normalised(hd_canvas(image, self.hd_num, size)), size)
        return normalised(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))[None]

    @torch.inference_mode()
    def visual_tokens(self, image: Image.Image) -> torch.Tensor:
        model = self.whole
        features = model.features(self.views(image))
        rows = features[0]
        if self.hd_num:
            layout = hd_layout(*image.size, self.hd_num, self.size)
            ends = model.plora_sub_GN[0, 0, 0], model.plora_glb_GN[0, 0]
            rows = hd_rows(features, layout, *ends)
        tokens: torch.Tensor = model.vision_proj(rows)
        return tokens

    def prompt_ids(self, instruction: str = INSTRUCTION) -> list[list[int]]:
        model = sentencepiece.SentencePieceProcessor(
            model_file=str(self.tokenizer / "tokenizer.model")
        )
        texts = (self.before, self.between or "", self.after.format(instruction))
        before, between, after = (model.encode(text) for text in texts)
        return [[1, *before], between, [1] * self.bos_again + after]

    @torch.inference_mode()
    def logits(
        self, images: list[Image.Image], instruction: str = INSTRUCTION,
        seen: list[Seen] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Return logits [n, n_vocab] of the whole prompt."""
        before, between, after = self.prompt_ids(instruction)
        parts: list[list[int] | torch.Tensor] = [before]
        for i, image in enumerate(images):
            parts += [between] * (i > 0) + [self.visual_tokens(image)]
        parts.append(after)
        rows = [part if isinstance(part, torch.Tensor) else self._embedded(part) for part in parts]
        masks = [
            torch.full((len(r),), torch.is_tensor(p)) for p, r in zip(parts, rows, strict=True)
        ]
        return self.whole.logits(torch.cat(rows), torch.cat(masks), seen)

    def _embedded(self, ids: list[int]) -> torch.Tensor:
        rows: torch.Tensor = self.whole.model.tok_embeddings(torch.tensor(ids, dtype=torch.long))
        return rows

    @torch.inference_mode()
    def greedy(
        self, image: Image.Image, n_tokens: int, *others: Image.Image,
        instruction: str = INSTRUCTION,
    ) -> list[int]:  # fmt: skip
        seen = self.whole.nothing_seen()
        logits = self.logits([image, *others], instruction, seen)
        ids = [int(logits[-1].argmax())]
        while len(ids) < n_tokens:
            logits = self.whole.logits(self._embedded(ids[-1:]), torch.tensor([False]), seen)
            ids.append(int(logits[-1].argmax()))
        return ids

    def output(self, *images: Image.Image) -> tiled.ModelOutput:
        rows = torch.cat([self.visual_tokens(image) for image in images])
        first, *others = images
        ids = self.greedy(first, tiled.N_TOKENS, *others, instruction=tiled.INSTRUCTION)
        return tiled.ModelOutput(rows.numpy(), ids)


def normalised(image: Image.Image) -> torch.Tensor:
    """RGB → [3, height, width] by CLIP's mean and standard deviation"""
    grey = torch.from_numpy(np.asarray(image, np.float32) / 255)
    return ((grey - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).permute(2, 0, 1)
