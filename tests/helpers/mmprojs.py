"""Tiny mmproj files in libmtmd's naming, made from a seed, and their reference in numpy.

The layouts are those of llama.cpp's own converters (its `gguf-py` names and `tools/mtmd/clip.cpp`).
If libmtmd computes a model differently from its authors, `as_mtmd` selects libmtmd's way.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np

from tests.helpers import bundles

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
WIDTH, HEADS, LAYERS, FF, PATCH = 32, 2, 3, 48, 7
MARKS = ("\n\n", "\n", "<fake_token_around_image>", "<global-img>", "<img>", "</img>",
         "<|vision_start|>", "<|vision_end|>", "<start_of_image>", "<end_of_image>")  # fmt: skip

Names = list[tuple[str, str]]  # (pattern of a published name, llama.cpp's)
LAYER = r"^.*vision_.*encoder\.layers\.(\d+)\."
# transformers' names → llama.cpp's, from `gguf-py`'s tensor_mapping
_TOWER: Names = [
    (r"^.*vision_.*\.patch_embedding\.", "v.patch_embd."),
    (r"^.*vision_.*\.position_embedding\.", "v.position_embd."),
    (LAYER + r"self_attn\.([qkv])_proj\.", r"v.blk.\1.attn_\2."),
    (LAYER + r"self_attn\.out_proj\.", r"v.blk.\1.attn_out."),
    (LAYER + r"layer_norm([12])\.", r"v.blk.\1.ln\2."),
    (LAYER + r"mlp\.fc1\.", r"v.blk.\1.ffn_up."),
    (LAYER + r"mlp\.fc2\.", r"v.blk.\1.ffn_down."),
]
SIGLIP_NAMES: Names = [*_TOWER, (r"^.*vision_.*\.post_layernorm\.", "v.post_ln.")]
CLIP_NAMES: Names = [
    *_TOWER,
    (r"^.*vision_.*\.class_embedding$", "v.class_embd"),
    (r"^.*vision_.*\.pre_layrnorm\.", "v.pre_ln."),
]


def renamed(tensors: Mapping[str, Any], names: Names) -> Iterator[tuple[str, str]]:
    """Yield (published name, llama.cpp's name), without names that match no pattern."""
    for name in tensors:
        for pattern, theirs in names:
            if match := re.match(pattern, name):
                yield name, match.expand(theirs) + name[match.end() :]


@dataclass(frozen=True)
class Kind:
    """A tower and its projector."""

    projector: str
    size: int = 28  # edge of a tile in pixels
    merge: int = 1  # a visual token joins merge × merge patches
    has_class: bool = False
    layers_used: int = LAYERS
    patch: int = PATCH


CLIP_MLP = Kind("mlp", has_class=True, layers_used=LAYERS - 1)
SIGLIP_MLP = Kind("mlp", layers_used=LAYERS - 1)
INTERN = Kind("internvl", merge=2, has_class=True)
IDEFICS = Kind("idefics3", merge=2)
QWEN = Kind("qwen2vl_merger", size=56, merge=2)
# tiles of 512 pixels, or a shape of the picture's own; `size` is that of its learned positions
LFM2 = Kind("lfm2", size=128, merge=2, patch=16)
QWEN25 = Kind("qwen2.5vl_merger", size=56, merge=2)  # windows of 8 × 8 visual tokens
ROTATING = (QWEN.projector, QWEN25.projector)  # rotary positions, down and across
FULL_EVERY = 2  # of the layers, where the others attend in windows
GEMMA = Kind("gemma3", size=56, merge=2)
# these also have a patch bias; others use quick GELU
GELU_TANH = ("internvl", "idefics3", "gemma3", "lfm2")


def mmproj_parts(  # noqa: C901, PLR0912 - one case for each projector
    kind: Kind, seed: int = 0, n_embd: int = bundles.N_EMBD
) -> bundles.GgufParts:
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        inner = int(np.prod(shape[1:]))
        values: np.ndarray = rng.standard_normal(shape) / np.sqrt(inner)
        return values.astype(np.float32)

    def vector(n: int, around: float = 0.0) -> np.ndarray:
        return (around + 0.2 * rng.standard_normal(n)).astype(np.float32)

    parts = bundles.GgufParts(architecture="clip")
    parts.metadata = header(
        kind.projector, image_size=kind.size, patch_size=kind.patch, embedding_length=WIDTH,
        feed_forward_length=FF, block_count=LAYERS, projection_dim=n_embd,
        attention__head_count=HEADS,
    )  # fmt: skip
    parts.metadata["clip.use_gelu"] = ("bool", kind.projector in GELU_TANH)
    if kind == QWEN25:
        parts.metadata["clip.use_silu"] = ("bool", True)
        parts.metadata["clip.vision.n_wa_pattern"] = ("uint32", FULL_EVERY)
    if kind.merge > 1 and kind.projector not in ROTATING:
        parts.metadata["clip.vision.projector.scale_factor"] = ("uint32", kind.merge)
    if kind.projector == "idefics3":
        parts.metadata["clip.vision.preproc_image_size"] = ("uint32", 3 * kind.size)
    t = parts.tensors
    t["v.patch_embd.weight"] = weight(WIDTH, 3, kind.patch, kind.patch)
    grid = (kind.size // kind.patch) ** 2
    if kind.projector in ROTATING:
        t["v.patch_embd.weight.1"] = weight(WIDTH, 3, PATCH, PATCH)
    else:
        t["v.position_embd.weight"] = weight(grid + kind.has_class, WIDTH) * 3
    if kind.projector in GELU_TANH:
        t["v.patch_embd.bias"] = vector(WIDTH)
    if kind.has_class:
        t["v.class_embd"] = vector(WIDTH)
    with_last = ("idefics3", "gemma3", "lfm2", *ROTATING)
    norms = ["v.post_ln"] if kind.projector in with_last else []
    norms += ["v.pre_ln"] if kind == CLIP_MLP else []
    for i in range(LAYERS):
        norms += [f"v.blk.{i}.ln1", f"v.blk.{i}.ln2"]
        for name, rows, columns in (
            ("attn_q", WIDTH, WIDTH), ("attn_k", WIDTH, WIDTH), ("attn_v", WIDTH, WIDTH),
            ("attn_out", WIDTH, WIDTH), ("ffn_up", FF, WIDTH), ("ffn_down", WIDTH, FF),
        ):  # fmt: skip
            t[f"v.blk.{i}.{name}.weight"] = weight(rows, columns)
            t[f"v.blk.{i}.{name}.bias"] = vector(rows)
        if kind == QWEN25:
            t[f"v.blk.{i}.ffn_gate.weight"] = weight(FF, WIDTH)
            t[f"v.blk.{i}.ffn_gate.bias"] = vector(FF)
        if kind.projector == "internvl":
            t[f"v.blk.{i}.ls1.weight"], t[f"v.blk.{i}.ls2.weight"] = (
                vector(WIDTH, 0.8), vector(WIDTH, 0.8)
            )  # fmt: skip
    merged = WIDTH * kind.merge**2
    linear = {
        "mlp": [("mm.0", n_embd, WIDTH), ("mm.2", n_embd, n_embd)],
        "internvl": [("mm.model.mlp.1", n_embd, merged), ("mm.model.mlp.3", n_embd, n_embd)],
        "idefics3": [("mm.model.fc", n_embd, merged)],
        "lfm2": [("mm.1", FF, merged), ("mm.2", n_embd, FF)],
        **{name: [("mm.0", merged, merged), ("mm.2", n_embd, merged)] for name in ROTATING},
        "gemma3": [("mm.input_projection", WIDTH, n_embd)],  # this matrix multiplies from the left
    }[kind.projector]
    for name, rows, columns in linear:
        t[f"{name}.weight"] = weight(rows, columns)
        if kind.projector not in ("idefics3", "gemma3"):
            t[f"{name}.bias"] = vector(rows)
    if kind.projector == "gemma3":
        t["mm.soft_emb_norm.weight"] = vector(WIDTH, 1.0)
    norms += {"internvl": ["mm.model.mlp.0"], "lfm2": ["mm.input_norm"]}.get(kind.projector, [])
    for name in norms:
        n = merged if name.startswith("mm.") else WIDTH
        t[f"{name}.weight"] = vector(n, 1.0)
        if kind != QWEN25:  # its norms are root-mean-square norms
            t[f"{name}.bias"] = vector(n)
    return parts


def header(
    projector: str, mean: Sequence[float] = MEAN, std: Sequence[float] = STD, eps: float = 1e-5,
    **sizes: int,
) -> dict[str, tuple[str, object]]:  # fmt: skip
    """Return an mmproj's metadata; `sizes` are clip.vision's, with "__" for a dot in names."""
    return {
        "general.type": ("string", "mmproj"),
        "general.file_type": ("uint32", 0),
        "clip.has_vision_encoder": ("bool", True),
        "clip.projector_type": ("string", projector),
        **{f"clip.vision.{k.replace('__', '.')}": ("uint32", n) for k, n in sizes.items()},
        "clip.vision.attention.layer_norm_epsilon": ("float32", eps),
        "clip.vision.image_mean": ("array", list(mean)),
        "clip.vision.image_std": ("array", list(std)),
    }


def with_marks(
    parts: bundles.GgufParts, seed: int = 0, marks: Sequence[str] = MARKS
) -> bundles.GgufParts:
    """Return a language model whose vocabulary also has the projectors' marker words."""
    metadata, tensors = dict(parts.metadata), dict(parts.tensors)
    tokens = [*metadata["tokenizer.ggml.tokens"][1], *marks]
    n = len(tokens)
    kinds = metadata["tokenizer.ggml.token_type"][1]
    metadata["tokenizer.ggml.tokens"] = ("array", tokens)
    metadata["tokenizer.ggml.scores"] = ("array", [-float(i) for i in range(n)])
    metadata["tokenizer.ggml.token_type"] = (
        "array", [*kinds, *[int(gguf.TokenType.USER_DEFINED)] * len(marks)]
    )  # fmt: skip
    key = f"{parts.architecture}.vocab_size"
    metadata[key] = ("uint32", n)
    rng = np.random.default_rng(seed)
    for name in ("token_embd.weight", "output.weight"):
        more = rng.standard_normal((len(marks), tensors[name].shape[1])).astype(np.float32)
        tensors[name] = np.concatenate([tensors[name], more])
    return dataclasses.replace(parts, metadata=metadata, tensors=tensors)


# ---- the reference


def encoded(
    parts: bundles.GgufParts,
    kind: Kind,
    pixels: np.ndarray,
    *,
    as_mtmd: bool = False,
    exact: bool = False,
) -> np.ndarray:
    """Return the rows float64 [n, n_embd] of one tile, uint8 [height, width, 3].

    `exact`: GELU has the erf form where the models' authors have it.
    """
    wide = gelu_erf if exact else gelu_tanh
    t = {name: value.astype(np.float64) for name, value in parts.tensors.items()}
    x = (pixels / 255.0 - np.array(MEAN)) / np.array(STD)
    down, across = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    patches = x.reshape(down, PATCH, across, PATCH, 3).transpose(0, 2, 4, 1, 3)
    kernel = t["v.patch_embd.weight"] + t.get("v.patch_embd.weight.1", 0)
    x = patches.reshape(down * across, -1) @ kernel.reshape(WIDTH, -1).T
    x = x + t.get("v.patch_embd.bias", 0)
    order = np.arange(down * across)
    if kind.projector == "qwen2vl_merger":  # the four patches of a visual token are adjacent
        order = order.reshape(down // 2, 2, across // 2, 2).transpose(0, 2, 1, 3).ravel()
        x = x[order]
    if kind.has_class:
        x = np.concatenate(
            [x, t["v.class_embd"][None]] if as_mtmd else [t["v.class_embd"][None], x]
        )
    x = x + t.get("v.position_embd.weight", 0)
    if "v.pre_ln.weight" in t:
        x = _norm(x, t, "v.pre_ln")
    places = np.stack(np.divmod(order, across)) if "v.patch_embd.weight.1" in t else None
    quick = not parts.metadata["clip.use_gelu"][1]
    for i in range(kind.layers_used):
        b = f"v.blk.{i}"
        h = _attention(_norm(x, t, f"{b}.ln1"), t, b, places)
        x = x + h * t.get(f"{b}.ls1.weight", 1)
        h = _linear(_norm(x, t, f"{b}.ln2"), t, f"{b}.ffn_up")
        gelu = wide if kind.projector == "internvl" else gelu_tanh
        h = h / (1 + np.exp(-1.702 * h)) if quick else gelu(h)
        x = x + _linear(h, t, f"{b}.ffn_down") * t.get(f"{b}.ls2.weight", 1)
    if "v.post_ln.weight" in t:
        x = _norm(x, t, "v.post_ln")
    if kind == CLIP_MLP:
        x = x[1:]  # libmtmd drops the first row too, although it has put the class row last
    elif kind.has_class:
        x = x[:-1] if as_mtmd else x[1:]
    return _projected(x, t, kind, down, across, wide)


def _projected(
    x: np.ndarray,
    t: dict[str, np.ndarray],
    kind: Kind,
    down: int,
    across: int,
    gelu: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    m, gelu = kind.merge, gelu or gelu_tanh
    if kind.projector == "mlp":
        return _linear(gelu(_linear(x, t, "mm.0")), t, "mm.2")
    if kind.projector == "qwen2vl_merger":
        return _linear(gelu_tanh(_linear(x.reshape(-1, m * m * WIDTH), t, "mm.0")), t, "mm.2")
    x = x.reshape(down // m, m, across // m, m, WIDTH).transpose(0, 2, 1, 3, 4)
    if kind.projector == "gemma3":
        x = x.mean((2, 3)).reshape(-1, WIDTH)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * t["mm.soft_emb_norm.weight"]
        rows: np.ndarray = x @ t["mm.input_projection.weight"]
        return rows
    x = x.reshape(-1, m * m * WIDTH)
    if kind.projector == "idefics3":
        return _linear(x, t, "mm.model.fc")
    h = _linear(_norm(x, t, "mm.model.mlp.0"), t, "mm.model.mlp.1")
    return _linear(gelu(h), t, "mm.model.mlp.3")


def gelu_erf(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))
    return y


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return y


def _norm(x: np.ndarray, t: dict[str, np.ndarray], name: str) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    y: np.ndarray = x * t[f"{name}.weight"] + t[f"{name}.bias"]
    return y


def _linear(x: np.ndarray, t: dict[str, np.ndarray], name: str) -> np.ndarray:
    y: np.ndarray = x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)
    return y


def _attention(
    x: np.ndarray, t: dict[str, np.ndarray], block: str, places: np.ndarray | None
) -> np.ndarray:
    q, k, v = (
        _linear(x, t, f"{block}.attn_{name}").reshape(len(x), HEADS, -1).transpose(1, 0, 2)
        for name in "qkv"
    )
    if places is not None:
        q, k = _rotated(q, places), _rotated(k, places)
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return _linear((weights @ v).transpose(1, 0, 2).reshape(len(x), -1), t, f"{block}.attn_out")


def _rotated(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rotate as Qwen2-VL's tower: half of the pairs by the row, half by the column."""
    half, quarter = x.shape[-1] // 2, x.shape[-1] // 4
    frequencies = 10000.0 ** (-np.arange(quarter) / quarter)
    angles = np.concatenate([np.outer(p, frequencies) for p in places], axis=1)  # [n, half]
    a, b = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
