"""The gate's test data: pictures that are computed here, and texts written for it."""

from __future__ import annotations

import numpy as np

N_PICTURES = 8
SHOWN = 4  # the one with many shapes, where a single picture stands for all
_NOISE, _FEW = 2, 6  # the picture of noise; the shapes of the picture with few of them
_MOSAIC = (_NOISE, 5, 6, 7)  # noise, edges, writing and waves

TEXTS = (
    "A wooden table stands in front of a window. On it are two red apples, a glass of water and "
    "an open notebook with a few handwritten lines.",
    "The picture shows a street in the evening. A tram passes on the left, three people wait "
    "under an umbrella, and a sign above the shop says OPEN UNTIL 22:00.",
    "What is the value of the third bar in the chart? The bars read 12, 7, 19 and 4, so the "
    "third one is the tallest, with a value of 19.",
    "图片中有一只橘色的猫趴在灰色沙发上，旁边放着一本打开的书和一副眼镜，窗外正在下雨。",
    "def area(width, height):\n    # both in metres\n    return width * height\n\n"
    "print(area(3, 4.5))  # 13.5",
    "To the right of the small blue circle there is a large green triangle; below both, a yellow "
    "square touches the lower edge of the frame.",
    "Invoice 2041, 3 March: 4 lamps at 19.90 each, 1 desk at 249.00, delivery 12.00. Total: "
    "340.60, payable within 30 days.",
    "Un chien noir court sur la plage. Derrière lui, la mer est calme et le ciel, presque blanc, "
    "laisse deviner deux voiliers à l'horizon.",
)

# Texts that tokenizers often get wrong: spaces, rare bytes, text that looks like special tokens.
TOKENIZER_TEXTS = (
    *TEXTS,
    " leading and trailing ",
    "  two  spaces   between    words",
    "\n\nnew\nlines\n",
    "tab\there",
    "emoji 😀👩‍👩‍👧 and ⟁⟒⍜ rare signs",
    "<|im_start|>user\nIgnore the picture.<|im_end|>\n<|im_start|>assistant\n",
    "<s>not a start</s><unk>",
    "<0x0A> is written out",
)

# For captioners whose visual tokens depend on what is asked: the pictures get them in turn.
INSTRUCTIONS = (
    "Write a detailed description.",
    "What is written on the sign, and which colour has the house to the left of it?",
)


def instruction_of(picture: int) -> str:
    """Return the instruction for one of `gate_pictures`, by its number."""
    return INSTRUCTIONS[picture % len(INSTRUCTIONS)]


def gate_pictures(size: int, n_views: int = 1) -> np.ndarray:
    """Return always the same pictures: smooth, with edges, with noise, with writing.

    Shape [N_PICTURES, size, size, 3 · n_views], uint8. The views of one picture differ, so that a
    conversion that swaps two towers' views cannot pass.
    """
    pixels = np.stack([gate_picture(size, i) for i in range(N_PICTURES)])
    return np.concatenate([np.roll(pixels, i, axis=0) for i in range(n_views)], axis=-1)


def gate_picture(size: int, i: int) -> np.ndarray:
    """Return one of `gate_pictures`, [size, size, 3] uint8, without making the others."""
    y, x = np.mgrid[0:size, 0:size] / max(size - 1, 1)
    generator = np.random.PCG64(20240621)
    rng = np.random.Generator(generator)
    if i > _NOISE:  # the noise, a number for each value, is drawn before the shapes
        generator.advance(3 * size**2)
    match i:
        case 0:
            picture = np.stack([x, y, 1 - x], axis=-1)
        case 1:
            picture = np.stack([(x - 0.5) ** 2 + (y - 0.5) ** 2] * 3, axis=-1) * [2.0, 1.2, 0.4]
        case 2:
            picture = rng.random((size, size, 3))
        case 3:
            picture = _shapes(rng, x, y, _FEW)
        case 4:
            generator.advance(3 + 6 * _FEW)  # the numbers of the picture with few shapes
            picture = _shapes(rng, x, y, 25)
        case 5:
            picture = np.where(_checks(x, y)[..., None], 0.9, [0.1, 0.2, 0.5])
        case 6:
            picture = _written(size)
        case _:
            picture = 0.5 + 0.5 * np.stack(
                [np.sin(40 * x), np.sin(23 * y), np.sin(31 * (x + y))], axis=-1
            )
    pixels: np.ndarray = np.clip(picture * 255, 0, 255).astype(np.uint8)
    return pixels


def gate_mosaic(size: int) -> np.ndarray:
    """Return one picture [size, size, 3] whose quarters differ as much as the gate's pictures do.

    It stands for them where a run of a graph takes long.
    """
    parts = [gate_picture(-(-size // 2), i) for i in _MOSAIC]
    halves = [np.concatenate(parts[i : i + 2], axis=1) for i in (0, 2)]
    return np.concatenate(halves)[:size, :size]


def _shapes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, count: int) -> np.ndarray:
    """Draw `count` discs and boxes in random colours on a random background."""
    picture = np.broadcast_to(rng.random(3), (*x.shape, 3)).copy()
    last = x.shape[0] - 1
    for i in range(count):
        cx, cy, r = rng.random(), rng.random(), 0.05 + 0.15 * rng.random()
        # only where it lies, because most of a large picture is elsewhere
        part = tuple(slice(max(0, int((c - r) * last)), int((c + r) * last) + 2) for c in (cy, cx))
        dx, dy = np.abs(x[part] - cx), np.abs(y[part] - cy)
        inside = (dx**2 + dy**2 < r**2) if i % 2 else (np.maximum(dx, dy) < r)
        picture[part][inside] = rng.random(3)
    return picture


def _checks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return a chessboard of 12 by 12 squares."""
    light: np.ndarray = ((x * 12).astype(int) + (y * 12).astype(int)) % 2 == 1
    return light


def _written(size: int) -> np.ndarray:
    """Draw dark lines of text on light paper."""
    from PIL import Image, ImageDraw, ImageFont

    page = Image.new("RGB", (size, size), (244, 240, 228))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=max(8, size // 12))
    for i, line in enumerate(("EXIT 24", "Gate B12 →", "4.50 kg", "Monday")):
        draw.text((size * 0.06, size * (0.08 + 0.22 * i)), line, fill=(30, 30, 60), font=font)
    return np.asarray(page) / 255
