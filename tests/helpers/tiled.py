"""What the tests of tiled captioners share: pictures, and a bundle against its reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image

from edgeprism.convert.family import Family
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.pipeline import convert
from edgeprism.perceive import captioner
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture import tile
from edgeprism.progress import Progress
from tests.helpers.captions import caption_ids

N_TOKENS = 32
INSTRUCTION = "What does the picture show? Name 3 things."
# (width, height): square, wide, tall, a ribbon either way, smaller than a tile
SIZES = [(70, 70), (200, 113), (90, 160), (400, 31), (23, 300), (20, 17)]


@dataclass(frozen=True)
class Seen:
    """What a model makes of one picture: rows [n, n_embd] and the greedy text's ids."""

    rows: np.ndarray
    ids: list[int]


def pictures() -> list[Image.Image]:
    """One of each of SIZES: smooth grounds with shapes and noise."""
    made = []
    for seed, (width, height) in enumerate(SIZES):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0:height, 0:width]
        ground = np.stack([x * 255 / width, y * 255 / height, (x // 9 + y // 7) % 2 * 255], axis=-1)
        pixels = np.roll(ground, seed, axis=-1) + rng.normal(0, 25, ground.shape)
        made.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    return made


def converted(family: Family, folder: Path, out: Path, **settings: Path) -> Path:
    """The float32 bundle of `folder`; a gate that fails does not stop it."""
    options = ConvertOptions(("fp32",), "F32", force=True)
    convert(family, out, options, {"captioner": folder, **settings}, Progress())
    return out


def seen_by_bundle(bundle: Path, *images: Image.Image) -> Seen:
    """Of one picture, or of several in one prompt."""
    with Captioner.load(
        bundle, device="cpu", threads=1, kv_type="f32", flash_attention=False
    ) as it:
        encoded = it.encode_together(images) if len(images) > 1 else it.encode(images[0])
        ids = caption_ids(
            it, encoded, instruction=INSTRUCTION, caption_tokens=N_TOKENS, stop_at_end=False
        )
    return Seen(encoded.visual_tokens, ids)


def equal(found: Seen, expected: Seen) -> bool:
    """Rows to 1e-4 and every token of the text."""
    return (
        found.rows.shape == expected.rows.shape
        and bool(np.allclose(found.rows, expected.rows, rtol=1e-4, atol=1e-4))
        and found.ids == expected.ids
    )


class Made(Protocol):
    """A tiny checkpoint with its torch reference."""

    def seen(self, picture: Image.Image, /) -> Seen: ...


SpecT = TypeVar("SpecT")
MadeT = TypeVar("MadeT")


def made_once(
    write: Callable[[Path, SpecT], MadeT], places: pytest.TempPathFactory, name: str
) -> Callable[[SpecT], MadeT]:
    """`write`, once for each spec, in a new folder."""
    return cache(lambda spec: write(places.mktemp(name) / "c", spec))


def same_as_reference(made: Made, bundle: Path) -> None:
    """Every picture's rows and text; the gate passed, and the pictures are told apart."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["parity"]["failures"] == []
    texts = set()
    for picture in pictures():
        expected, found = made.seen(picture), seen_by_bundle(bundle, picture)
        np.testing.assert_allclose(found.rows, expected.rows, rtol=1e-4, atol=1e-4)
        assert found.ids == expected.ids
        assert len(set(found.ids)) >= 8
        texts.add(tuple(found.ids))
    assert len(texts) == len(SIZES)


def several_as_reference(seen: Callable[..., Seen], bundle: Path) -> None:
    """Two pictures and three in one prompt, of shapes that are cut differently."""
    square, wide, tall, *_ = pictures()
    for shown in ([square, wide], [wide, square], [tall, square, wide]):
        expected, found = seen(*shown), seen_by_bundle(bundle, *shown)
        np.testing.assert_allclose(found.rows, expected.rows, rtol=1e-4, atol=1e-4)
        assert found.ids == expected.ids


def generated(model: Any, **inputs: Any) -> list[int]:
    """Greedy ids from transformers, through the end tokens."""
    with torch.inference_mode():
        ids = model.generate(
            **inputs, max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return list(ids[0, -N_TOKENS:].tolist())


def fill(model: torch.nn.Module, seed: int, tied: bool = False) -> None:
    """Random weights under which rows and texts depend on all that they are given.

    `tied`: the head is the embedding, which a large one would make repeat the last token.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                flat = name.endswith("bias") or "newline" in name or "class" in name
                parameter.copy_(0.2 * noise + (0.0 if flat else 1.0))
            elif "embed" in name:
                of_text = 0.3 if tied else 1.0
                parameter.copy_(noise * (of_text if "token" in name else 0.5))
            else:
                parameter.copy_(noise * (1.6 / parameter[0].numel() ** 0.5))


# ---- mistakes of every tiled model

Mistake = Callable[[pytest.MonkeyPatch], None]


def tiles_down_first(patch: pytest.MonkeyPatch) -> None:
    def wrong(picture: Any, policy: Any, grid: tuple[int, int] | None) -> np.ndarray:
        made = tile.picture_to_tiles(picture, policy, grid)
        down, across = grid or (1, 1)
        order = np.arange(down * across).reshape(down, across).T.ravel()
        if policy.tiling.overview == "first":
            return np.concatenate([made[:1], made[1:][order]])
        return np.concatenate([made[:-1][order], made[-1:]])

    patch.setattr(captioner, "picture_to_tiles", wrong)


def overview_first(patch: pytest.MonkeyPatch) -> None:
    right = tile.picture_to_tiles
    patch.setattr(captioner, "picture_to_tiles", lambda *a: np.roll(right(*a), 1, axis=0))
