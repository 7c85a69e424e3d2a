"""Draw scenes: scene → picture → the tower's pixels."""

from __future__ import annotations

import io
import math
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from edgeprism.models.nano.recipe.world import plain_scene
from edgeprism.models.nano.recipe.world.scene import TOP_VALUE, Item, Scene
from edgeprism.models.nano.recipe.world.things import THINGS

FRAME = 144  # side of the model's square input, pixels
PATCH = 16
GRID = FRAME // PATCH
MASK = 96  # side of a shape's coverage mask, pixels
NAME_TO_INDEX = {name: i for i, name in enumerate(THINGS)}
Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]


class Assets:
    """The rasterised icons, fonts and photographs in a folder that ``assets`` has filled."""

    def __init__(self, folder: Path) -> None:
        self.sprites: Pixels = np.load(folder / "sprites.npy", mmap_mode="r")
        fonts = sorted((folder / "fonts").glob("*.woff"))
        self.fonts: list[Path | None] = list(fonts) or [None]
        self._sized: dict[tuple[int, int], ImageFont.FreeTypeFont] = {}
        self._photographs = sorted((folder / "photographs" / "train").glob("*.jpg"))

    def sprite(self, style: int, name: str) -> Image.Image:
        """The icon of a thing in one of the styles."""
        pixels = self.sprites[
            style % len(self.sprites), NAME_TO_INDEX[name] % self.sprites.shape[1]
        ]
        return Image.fromarray(np.ascontiguousarray(pixels), "RGBA")

    def photograph(self, number: int) -> Image.Image | None:
        """Return one of the training photographs; None if none were fetched."""
        if not self._photographs:
            return None
        return _open_photograph(self._photographs[number % len(self._photographs)])

    def font(self, number: int, size: int) -> ImageFont.FreeTypeFont:
        """Return one of the fonts, or Pillow's own if there are none."""
        size = max(6, size)
        key = (number % len(self.fonts), size)
        if key not in self._sized:
            path = self.fonts[key[0]]
            sized = ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)
            if not isinstance(sized, ImageFont.FreeTypeFont):
                raise RuntimeError("Pillow without FreeType draws no text of a given size")
            self._sized[key] = sized
        return self._sized[key]


@cache
def _open_photograph(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _corners(shape: str) -> list[tuple[float, float]] | None:
    """Return corners in the square [-1, 1]², y down; None for a shape with round parts."""
    if shape == "diamond":
        return [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)]
    if shape == "hexagon":
        return [(math.cos(math.pi * i / 3), math.sin(math.pi * i / 3)) for i in range(6)]
    if shape == "arrow":
        return [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)]
    return None if shape in ("circle", "ring", "crescent", "oval") else plain_scene._outline(shape)


@cache
def shape_to_mask(shape: str) -> Image.Image:
    """Return the coverage of an upright shape, ``MASK`` × ``MASK`` pixels."""
    side = 3 * MASK
    half = side / 2
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    corners = _corners(shape)
    if corners is not None:
        draw.polygon([(half + half * x, half + half * y) for x, y in corners], fill=255)
    elif shape == "oval":
        draw.ellipse((0, half * 0.42, side - 1, half * 1.58), fill=255)
    else:
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
        if shape == "ring":
            r = half * 0.55
            draw.ellipse((half - r, half - r, half + r, half + r), fill=0)
        elif shape == "crescent":
            r, x = half * 0.82, half * 1.52
            draw.ellipse((x - r, half - r, x + r, half + r), fill=0)
    return mask.reduce(3)


def _paste(image: Image.Image, drawn: Image.Image, mask: Image.Image, item: Item) -> None:
    left = round(item.cx * image.width - drawn.width / 2)
    top = round(item.cy * image.height - drawn.height / 2)
    image.paste(drawn, (left, top), mask)


def _draw_picture(image: Image.Image, item: Item, assets: Assets) -> None:
    """Shrink, turn and paste a named thing or a shape."""
    pixels = max(4, round(item.w * max(image.size)))
    if item.kind == "thing":
        sprite = assets.sprite(item.look, item.name)
        sprite = sprite.resize((pixels, pixels), Image.Resampling.BILINEAR, reducing_gap=2.0)
        sprite = sprite.rotate(item.angle, Image.Resampling.BILINEAR)
        _paste(image, sprite.convert("RGB"), sprite.getchannel("A"), item)
    else:
        mask = shape_to_mask(item.name).rotate(item.angle, Image.Resampling.BILINEAR)
        mask = mask.resize((pixels, pixels), Image.Resampling.BILINEAR, reducing_gap=2.0)
        _paste(image, Image.new("RGB", mask.size, item.rgb), mask, item)


def text_to_mask(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Return the coverage of a printed text, cropped to its ink."""
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (max(1, math.ceil(right - left)), max(1, math.ceil(bottom - top))), 0)
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    return mask


def _draw_text(image: Image.Image, item: Item, assets: Assets) -> None:
    """Draw a word, slightly turned, that fills its box without distortion."""
    long_side = max(image.size)
    wide, high = item.w * long_side, item.h * long_side
    mask = text_to_mask(item.name, assets.font(item.look, 48))
    scale = min(wide / mask.width, high / mask.height)
    size = (max(2, round(mask.width * scale)), max(2, round(mask.height * scale)))
    mask = mask.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    mask = mask.rotate(item.angle, Image.Resampling.BILINEAR, expand=True)
    _paste(image, Image.new("RGB", mask.size, item.rgb), mask, item)


def _write(image: Image.Image, text: str, centre: tuple[float, float], high: float, item: Item,
           assets: Assets, ink: tuple[int, int, int]) -> None:  # fmt: skip
    """Print centred at `centre` (shares of the canvas), ``high`` pixels tall."""
    mask = text_to_mask(text, assets.font(item.look, 48))
    scale = high / text_to_mask("H", assets.font(item.look, 48)).height
    size = (max(2, round(mask.width * scale)), max(2, round(mask.height * scale)))
    mask = mask.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    corner = (round(centre[0] * image.width - size[0] / 2),
              round(centre[1] * image.height - size[1] / 2))  # fmt: skip
    image.paste(ink, corner, mask)


def _ink(scene: Scene) -> tuple[int, int, int]:
    return (240, 240, 240) if sum(scene.paint[0]) < 380 else (25, 25, 30)


def _draw_chart(image: Image.Image, scene: Scene, assets: Assets) -> None:
    """Draw the axis box from 0 to ``TOP_VALUE`` with a line at every second step, bars, letters."""
    draw = ImageDraw.Draw(image)
    w, h = image.size
    ink = _ink(scene)
    faint = tuple((3 * p + i) // 4 for p, i in zip(scene.paint[0], ink, strict=True))
    for step in range(0, TOP_VALUE + 1, 2):
        level = round((0.8 - 0.72 * step / TOP_VALUE) * h)
        draw.line(
            (0.04 * w, level, 0.97 * w, level),
            fill=ink if step == 0 else faint,
            width=max(1, w // 150),
        )
    for bar in scene.items:
        half_w, half_h = bar.w * max(w, h) / 2, bar.h * max(w, h) / 2
        x, y = bar.cx * w, bar.cy * h
        draw.rectangle((x - half_w, y - half_h, x + half_w, y + half_h), fill=bar.rgb)
        _write(image, bar.name, (bar.cx, 0.9), 0.11 * h, bar, assets, ink)


TABLE_COLUMNS = (0.28, 0.7)  # centres of the two columns


def _draw_table(image: Image.Image, scene: Scene, assets: Assets) -> None:
    """Draw ruled rows of two cells."""
    draw = ImageDraw.Draw(image)
    w, h = image.size
    width = max(1, max(w, h) // 120)
    ink = scene.items[0].rgb
    step = scene.items[0].h * max(w, h)
    for row in scene.items:
        y = row.cy * h
        draw.rectangle((0.07 * w, y - step / 2, 0.93 * w, y + step / 2), outline=ink, width=width)
        high = min(step * 0.6, 0.14 * max(w, h))
        _write(image, row.name, (TABLE_COLUMNS[0], row.cy), high, row, assets, ink)
        _write(image, str(row.value), (TABLE_COLUMNS[1], row.cy), high, row, assets, ink)
    draw.line((0.47 * w, 0.06 * h, 0.47 * w, 0.94 * h), fill=ink, width=width)


def _octaves(rng: np.random.Generator, size: tuple[int, int], roughness: float) -> Floats:
    """Return smooth random colour [h, w, 3], about -1 to 1: noise of all scales, mostly coarse."""
    # Compute a ninth of the pixels and enlarge them: the tower's frame would lose finer grain.
    small = (math.ceil(size[0] / 3), math.ceil(size[1] / 3))
    total = np.zeros((small[1], small[0], 3), np.float32)
    strength, cells = 1.0, 2
    while cells < max(small):
        grid = rng.normal(0, 1, (cells, cells, 3))
        grid += rng.normal(0, 1, (cells, cells, 1))  # the three channels correlate
        for c in range(3):
            plane = Image.fromarray(grid[..., c].astype(np.float32), "F")
            total[..., c] += strength * np.asarray(plane.resize(small, Image.Resampling.BILINEAR))
        strength *= roughness
        cells *= 2
    return total.repeat(3, 0).repeat(3, 1)[: size[1], : size[0]] / 3


def _gradient(scene: Scene, rng: np.random.Generator) -> Floats:
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0 : scene.height, 0 : scene.width].astype(np.float32)
    along: Floats = x / scene.width * math.cos(angle) + y / scene.height * math.sin(angle)
    along = (along - along.min()) / (along.max() - along.min() + 1e-6)
    one, two = (np.array(p, np.float32) for p in scene.paint[:2])
    return one + (two - one) * along[..., None]


def _photo(scene: Scene, rng: np.random.Generator) -> Floats:
    """Return lit surfaces with soft and hard borders: as busy as a photograph, without content."""
    size = (scene.width, scene.height)
    base = _gradient(scene, rng) * rng.uniform(0.5, 1.0) + 60 * _octaves(
        rng, size, rng.uniform(0.5, 0.8)
    )
    for _ in range(rng.integers(2, 8)):
        mask = Image.new("L", size, 0)
        draw = ImageDraw.Draw(mask)
        cx, cy = rng.uniform(-0.1, 1.1, 2) * size
        radius = rng.uniform(0.05, 0.6) * max(size)
        turns = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 12)))
        reach = radius * rng.uniform(0.4, 1.0, len(turns))
        draw.polygon(
            [
                (cx + r * math.cos(t), cy + r * math.sin(t))
                for r, t in zip(reach, turns, strict=True)
            ],
            fill=255,
        )
        if rng.random() < 0.6:
            mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 8)))
        cover = np.asarray(mask, np.float32)[..., None] / 255 * rng.uniform(0.4, 1.0)
        tone = rng.uniform(0, 255, 3) * rng.uniform(0.3, 1)
        inside = tone + rng.uniform(10, 50) * _octaves(rng, size, 0.7)
        base = base * (1 - cover) + inside * cover
    return base


def _crop(photograph: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Return a random part of a photograph, perhaps mirrored, grey, or in other light."""
    share = rng.uniform(0.25, 1.0) * min(photograph.width / size[0], photograph.height / size[1])
    wide, high = size[0] * share, size[1] * share
    left = rng.uniform(0, photograph.width - wide)
    top = rng.uniform(0, photograph.height - high)
    part = photograph.resize(size, Image.Resampling.BICUBIC, (left, top, left + wide, top + high))
    if rng.random() < 0.5:
        part = ImageOps.mirror(part)
    part = ImageEnhance.Color(part).enhance(rng.choice((0.0, rng.uniform(0.5, 1.6))))
    part = ImageEnhance.Contrast(part).enhance(rng.uniform(0.6, 1.3))
    return ImageEnhance.Brightness(part).enhance(rng.uniform(0.6, 1.4))


def _background(scene: Scene, assets: Assets) -> Image.Image:
    size = (scene.width, scene.height)
    if scene.background in plain_scene.BACKGROUNDS or scene.background == "blank":
        return Image.new("RGB", size, scene.paint[0])
    rng = np.random.default_rng(scene.seed)
    photograph = assets.photograph(scene.seed) if scene.background == "photograph" else None
    if photograph is not None:
        return _crop(photograph, size, rng)
    if scene.background == "gradient":
        pixels = _gradient(scene, rng)
    elif scene.background == "noise":
        pixels = rng.normal(rng.uniform(60, 190, 3), rng.uniform(25, 90), (size[1], size[0], 3))
        if rng.random() < 0.5:
            pixels = np.broadcast_to(pixels[..., :1], pixels.shape)
    elif scene.background in ("patterned", "texture"):
        one, two = (np.array(p, np.float32) for p in scene.paint[:2])
        strength = 0.5 if scene.background == "patterned" else 1.5
        waves = _octaves(rng, size, 0.9).mean(-1, keepdims=True) * strength
        pixels = (one + two) / 2 + (one - two) * np.clip(waves, -1, 1)
    else:  # "photo", or "photograph" if none were fetched
        pixels = _photo(scene, rng)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def _blemish(image: Image.Image, seed: int) -> Image.Image:
    """Apply one or two of: blur, scaling down and up, noise, JPEG."""
    rng = np.random.default_rng([seed, 1])
    if rng.random() < 0.35:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.006 * max(image.size))))
    if rng.random() < 0.3:
        share = rng.uniform(0.45, 0.8)
        small = image.resize(
            (max(1, int(image.width * share)), max(1, int(image.height * share))),
            Image.Resampling.BILINEAR,
        )
        image = small.resize(image.size, Image.Resampling.BILINEAR)
    if rng.random() < 0.35:
        noise = rng.normal(0, rng.uniform(2, 12), (image.height, image.width, 1))
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8), "RGB")
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(25, 85)))
        image = Image.open(buffer).convert("RGB")
    return image


def scene_to_image(scene: Scene, assets: Assets) -> Image.Image:
    """Return the picture as a user would pass it: RGB, ``scene.width`` × ``scene.height``."""
    if scene.plain is not None:
        return plain_scene.scene_to_image(scene.plain)
    image = _background(scene, assets)
    if scene.kind == "chart":
        _draw_chart(image, scene, assets)
    elif scene.kind == "table":
        _draw_table(image, scene, assets)
    else:
        for item in scene.items:
            (_draw_text if item.kind == "text" else _draw_picture)(image, item, assets)
    return _blemish(image, scene.seed) if scene.blemished else image


def image_to_pixels(image: Image.Image) -> Pixels:
    """Apply the bundle's image policy: centre on a square of 127, bicubic; [FRAME, FRAME, 3]."""
    side = max(image.size)
    if image.size != (side, side):
        square = Image.new("RGB", (side, side), plain_scene.PAD_FILL)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    return np.asarray(image.resize((FRAME, FRAME), Image.Resampling.BICUBIC))
