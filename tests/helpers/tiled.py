"""Shared by the tests of tiled captioners: pictures, and comparing a bundle with a reference."""

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
from edgeprism.perceive import steps
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture import tile
from edgeprism.progress import Progress
from tests.helpers.captions import caption_ids

N_TOKENS = 32
INSTRUCTION = "What does the picture show? Name 3 things."
# (width, height): square, wide, tall, a wide and a tall ribbon, smaller than a tile
SIZES = [(70, 70), (200, 113), (90, 160), (400, 31), (23, 300), (20, 17)]


@dataclass(frozen=True)
class ModelOutput:
    """A model's output for one picture: rows [n, n_embd] and the greedy text's ids."""

    rows: np.ndarray
    ids: list[int]


def pictures() -> list[Image.Image]:
    """Return a picture of each of SIZES: smooth backgrounds with shapes and noise."""
    images = []
    for seed, (width, height) in enumerate(SIZES):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0:height, 0:width]
        ground = np.stack([x * 255 / width, y * 255 / height, (x // 9 + y // 7) % 2 * 255], axis=-1)
        pixels = np.roll(ground, seed, axis=-1) + rng.normal(0, 25, ground.shape)
        images.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    return images


def converted(family: Family, folder: Path, out: Path, **settings: Path) -> Path:
    """Convert `folder` to a float32 bundle, even if the gate fails."""
    options = ConvertOptions(("fp32",), "F32", force=True)
    convert(family, out, options, {"captioner": folder, **settings}, Progress())
    return out


def bundle_output(bundle: Path, *images: Image.Image) -> ModelOutput:
    """Return the bundle's output for one picture, or for several in one prompt."""
    with Captioner.load(
        bundle, device="cpu", threads=1, vision_quant="fp32", kv_type="f32", flash_attention=False
    ) as it:
        encoded = it.encode_together(images) if len(images) > 1 else it.encode(images[0])
        ids = caption_ids(
            it, encoded, instruction=INSTRUCTION, caption_tokens=N_TOKENS, stop_at_end=False
        )
    return ModelOutput(encoded.visual_tokens, ids)


def equal(actual: ModelOutput, expected: ModelOutput) -> bool:
    """Return whether the rows agree to 1e-4 and the texts in every token."""
    return (
        actual.rows.shape == expected.rows.shape
        and bool(np.allclose(actual.rows, expected.rows, rtol=1e-4, atol=1e-4))
        and actual.ids == expected.ids
    )


class TinyCheckpoint(Protocol):
    """A tiny checkpoint with its torch reference."""

    def output(self, picture: Image.Image, /) -> ModelOutput: ...


SpecT = TypeVar("SpecT")
TinyT = TypeVar("TinyT")


def once_per_spec(
    write: Callable[[Path, SpecT], TinyT], places: pytest.TempPathFactory, name: str
) -> Callable[[SpecT], TinyT]:
    """Return a function that calls `write` once for each spec, with a new folder."""
    return cache(lambda spec: write(places.mktemp(name) / "c", spec))


def same_as_reference(checkpoint: TinyCheckpoint, bundle: Path) -> None:
    """Check rows and text of every picture, that texts differ, and that the gate passed."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["parity"]["failures"] == []
    texts = set()
    for picture in pictures():
        expected, actual = checkpoint.output(picture), bundle_output(bundle, picture)
        np.testing.assert_allclose(actual.rows, expected.rows, rtol=1e-4, atol=1e-4)
        assert actual.ids == expected.ids
        assert len(set(actual.ids)) >= 8
        texts.add(tuple(actual.ids))
    assert len(texts) == len(SIZES)


def several_as_reference(output: Callable[..., ModelOutput], bundle: Path) -> None:
    """Check prompts with two and three pictures, whose shapes are cut differently."""
    square, wide, tall, *_ = pictures()
    for shown in ([square, wide], [wide, square], [tall, square, wide]):
        expected, actual = output(*shown), bundle_output(bundle, *shown)
        np.testing.assert_allclose(actual.rows, expected.rows, rtol=1e-4, atol=1e-4)
        assert actual.ids == expected.ids


def generated(model: Any, **inputs: Any) -> list[int]:
    """Return greedy ids from transformers, past end tokens too."""
    with torch.inference_mode():
        ids = model.generate(
            **inputs, max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return list(ids[0, -N_TOKENS:].tolist())


def fill(model: torch.nn.Module, seed: int, tied: bool = False) -> None:
    """Fill `model` with random weights under which rows and texts depend on every input.

    With `tied` the embedding serves as head; it is small, because a large one would repeat tokens.
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


# ---- mistakes to plant in every tiled model

Mistake = Callable[[pytest.MonkeyPatch], None]


def tiles_down_first(patch: pytest.MonkeyPatch) -> None:
    def wrong(picture: Any, policy: Any, grid: tuple[int, int] | None) -> np.ndarray:
        result = tile.picture_to_tiles(picture, policy, grid)
        down, across = grid or (1, 1)
        order = np.arange(down * across).reshape(down, across).T.ravel()
        if policy.tiling.overview == "first":
            return np.concatenate([result[:1], result[1:][order]])
        return np.concatenate([result[:-1][order], result[-1:]])

    patch.setattr(steps, "picture_to_tiles", wrong)


def overview_first(patch: pytest.MonkeyPatch) -> None:
    right = tile.picture_to_tiles
    patch.setattr(steps, "picture_to_tiles", lambda *a: np.roll(right(*a), 1, axis=0))
