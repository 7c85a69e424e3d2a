"""MiniCPM-V's encoder: tiny mmproj files, and its rows in torch from the published description.

transformers holds no MiniCPM-V with a resampler. The tower's layers are its SigLIP's; what stands
before and behind them is written here once more, in float64, but for the places in the table of
positions, which the authors' code computes in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from tests.helpers import bundles, mmprojs

V25, V26 = 2, 3  # llama.cpp's numbers of MiniCPM-V 2.5 and 2.6
EDGE, PATCH, TABLE, HEAD = 112, 14, 70, 128
N_EMBD = 2 * HEAD  # two heads of the resampler
EPS = 1e-6
MARKS = ("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>")
LM = bundles.LmShape(n_embd=N_EMBD)
KIND = mmprojs.Kind("resampler", size=EDGE, patch=PATCH)


def minicpm_parts(
    version: int = V26, queries: int = 0, seed: int = 0, edge: int = EDGE
) -> bundles.GgufParts:
    """Return an mmproj file as llama.cpp's converter writes it.

    Parameters:
        queries: visual tokens of a tile; 0, as older files have it: 96 of version 2.5, else 64.
    """
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        values: np.ndarray = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return values.astype(np.float32)

    def vector(n: int, around: float = 0.0) -> np.ndarray:
        return (around + 0.2 * rng.standard_normal(n)).astype(np.float32)

    width, n_ffn = mmprojs.WIDTH, mmprojs.FF
    parts = bundles.GgufParts(architecture="clip")
    parts.metadata = mmprojs.header(
        "resampler", eps=EPS, image_size=edge, patch_size=PATCH, embedding_length=width,
        feed_forward_length=n_ffn, block_count=mmprojs.LAYERS, projection_dim=0,
        attention__head_count=mmprojs.HEADS,
    )  # fmt: skip
    parts.metadata |= {
        "clip.use_gelu": ("bool", True),
        "clip.has_minicpmv_projector": ("bool", True),
        "clip.minicpmv_version": ("int32", version),
        "clip.minicpmv_query_num": ("uint32", queries),
    }
    t = parts.tensors
    t["v.patch_embd.weight"], t["v.patch_embd.bias"] = weight(width, 3, PATCH, PATCH), vector(width)
    t["v.position_embd.weight"] = weight(TABLE**2, width) * 3
    # the converter calls the matrices up and down by each other's names
    layer = {"attn_q": (width, width), "attn_k": (width, width), "attn_v": (width, width),
             "attn_out": (width, width), "ffn_down": (n_ffn, width),
             "ffn_up": (width, n_ffn)}  # fmt: skip
    for i in range(mmprojs.LAYERS):
        for name, (rows, columns) in layer.items():
            t[f"v.blk.{i}.{name}.weight"] = weight(rows, columns)
            t[f"v.blk.{i}.{name}.bias"] = vector(rows)
    norms = {f"v.blk.{i}.ln{n}": width for i in range(mmprojs.LAYERS) for n in (1, 2)}
    norms |= {"v.post_ln": width, **{f"resampler.ln_{n}": N_EMBD for n in ("q", "kv", "post")}}
    for name, n in norms.items():
        t[f"{name}.weight"], t[f"{name}.bias"] = vector(n, 1.0), vector(n)
    t["resampler.query"] = weight(queries or {V25: 96}.get(version, 64), N_EMBD) * 3
    t["resampler.kv.weight"] = weight(N_EMBD, width)
    for name in ("q", "k", "v", "out"):
        t[f"resampler.attn.{name}.weight"] = weight(N_EMBD, N_EMBD)
        t[f"resampler.attn.{name}.bias"] = vector(N_EMBD)
    t["resampler.proj.weight"] = weight(N_EMBD, N_EMBD)
    t["resampler.pos_embed_k"] = waves(TABLE, TABLE).astype(np.float32)
    return parts


# ---- what the authors' code does


def waves(down: int, across: int) -> np.ndarray:
    """Return the keys' positions float64 [patches, N_EMBD]: of the column, then of the row."""
    rates = 10000.0 ** -(np.arange(N_EMBD // 4) / (N_EMBD // 4))
    y, x = (place.reshape(-1, 1) for place in np.mgrid[:down, :across])
    return np.concatenate([np.sin(x * rates), np.cos(x * rates),
                           np.sin(y * rates), np.cos(y * rates)], axis=1)  # fmt: skip


def table_places(length: int) -> torch.Tensor:
    """Return the place in the table, along one edge, of each of `length` patches."""
    bounds = torch.arange(1 / TABLE, 1.0, 1 / TABLE)
    shares = torch.arange(0, 1 - 1e-6, float(1 / torch.tensor(length)))
    return torch.bucketize(shares, bounds, right=True)


class Reference:
    """The encoder of an mmproj file in torch."""

    def __init__(self, parts: bundles.GgufParts, version: int) -> None:
        self._in_one_row = version == V25
        t = {name: torch.from_numpy(value).double() for name, value in parts.tensors.items()}
        self._t = t
        config: Any = SiglipVisionConfig(
            hidden_size=mmprojs.WIDTH, intermediate_size=mmprojs.FF, layer_norm_eps=EPS,
            num_hidden_layers=mmprojs.LAYERS, num_attention_heads=mmprojs.HEADS,
        )  # fmt: skip
        config._attn_implementation = "eager"
        self._layers = SiglipEncoder(config).double().eval()
        swapped = {"fc1": "ffn_down", "fc2": "ffn_up"}
        state = {}
        for name in self._layers.state_dict():
            _, number, part, end = name.split(".", 2)[0:2] + _halves(name.split(".", 2)[2])
            theirs = swapped.get(part.removeprefix("mlp."))
            theirs = theirs or part.replace("self_attn.", "attn_").removesuffix("_proj")
            theirs = theirs.replace("layer_norm", "ln")
            state[name] = t[f"v.blk.{number}.{theirs}.{end}"]
        self._layers.load_state_dict(state)
        self._attention = torch.nn.MultiheadAttention(N_EMBD, N_EMBD // HEAD, batch_first=True)
        self._attention.double().eval().load_state_dict({
            **{f"in_proj_{end}": torch.cat([t[f"resampler.attn.{p}.{end}"] for p in "qkv"])
               for end in ("weight", "bias")},
            **{f"out_proj.{end}": t[f"resampler.attn.out.{end}"] for end in ("weight", "bias")},
        })  # fmt: skip

    @torch.no_grad()
    def rows(self, tile: np.ndarray) -> np.ndarray:
        """Return the visual tokens [queries, N_EMBD] of a tile, uint8 [height, width, 3]."""
        t = self._t
        pixels = (tile / 255.0 - np.array(mmprojs.MEAN)) / np.array(mmprojs.STD)
        x = torch.nn.functional.conv2d(
            torch.from_numpy(pixels).permute(2, 0, 1)[None],
            t["v.patch_embd.weight"], t["v.patch_embd.bias"], stride=PATCH,
        )  # fmt: skip
        down, across = x.shape[2:]
        x = x.flatten(2).transpose(1, 2) + t["v.position_embd.weight"][self._places(down, across)]
        x = self._layers(x).last_hidden_state
        x = self._norm(self._norm(x, "v.post_ln") @ t["resampler.kv.weight"].T, "resampler.ln_kv")
        queries = self._norm(t["resampler.query"], "resampler.ln_q")[None]
        y, _ = self._attention(queries, x + torch.from_numpy(waves(down, across)), x)
        y = self._norm(y, "resampler.ln_post") @ t["resampler.proj.weight"].T
        return y[0].numpy()

    def _places(self, down: int, across: int) -> torch.Tensor:
        if self._in_one_row:  # version 2.5 hands the tower its patches side by side
            return table_places(down * across)
        return (table_places(down)[:, None] * TABLE + table_places(across)).flatten()

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self._t[f"{name}.weight"], self._t[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def _halves(name: str) -> list[str]:
    part, _, end = name.rpartition(".")
    return [part, end]


def published_sizes(
    width: int, height: int, edge: int = EDGE
) -> tuple[tuple[int, int], tuple[int, int] | None, tuple[int, int]]:
    """Return the overview's size, the slices (across, down) or None, and a slice's size.

    Sizes are (width, height).
    """

    def of_equal_area(w: float, h: float) -> tuple[int, int]:
        ratio = w / h
        lower = int(edge / math.sqrt(ratio))
        edges = int(lower * ratio), lower
        return tuple(max(round(n / PATCH) * PATCH, PATCH) for n in edges)  # type: ignore[return-value]

    overview = of_equal_area(width, height)
    wanted = min(math.ceil(width * height / edge**2), 9)
    if wanted <= 1:
        return overview, None, (0, 0)
    best, least = (1, 1), math.inf
    for count in (wanted - 1, wanted, wanted + 1):
        if count in (1, 10):
            continue
        for across in (n for n in range(1, count + 1) if count % n == 0):
            down = count // across
            error = abs(math.log(width / height) - math.log(across / down))
            if error < least:
                best, least = (across, down), error
    whole = [max(round(n / parts) * parts, parts)
             for n, parts in zip((width, height), best, strict=True)]  # fmt: skip
    return overview, best, of_equal_area(whole[0] / best[0], whole[1] / best[1])


def published_tiles(picture: Image.Image) -> list[np.ndarray]:
    """Return the overview and then the slices, each uint8 [height, width, 3]."""
    overview, grid, (width, height) = published_sizes(*picture.size)
    tiles = [np.asarray(picture.resize(overview, Image.Resampling.BICUBIC))]
    if grid is None:
        return tiles
    canvas = picture.resize((width * grid[0], height * grid[1]), Image.Resampling.BICUBIC)
    return tiles + [
        np.asarray(canvas.crop((x, y, x + width, y + height)))
        for y in range(0, canvas.height, height)
        for x in range(0, canvas.width, width)
    ]


def published_text(version: int, grid: tuple[int, int] | None, rows: str) -> str:
    """Return the text around a picture, with `rows` in the place of each tile's visual tokens."""
    image = f"<image>{rows}</image>"
    number = "" if version == V25 else "<image_id>0</image_id>"
    if grid is None:
        return f"{number}{image}\n"
    one = image if version == V25 else f"<slice>{rows}</slice>"
    lines: Sequence[str] = [one * grid[0]] * grid[1]
    cut = "\n".join(lines)
    return f"{number}{image}<slice>{cut}</slice>\n" if version == V25 else f"{number}{image}{cut}\n"
