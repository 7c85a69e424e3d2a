"""The same mmproj file in libmtmd and as a graph: layouts token for token, rows, and their speed.

The graph that is compared computes and prepares pictures as libmtmd does (`as_mtmd`), so that any
difference is a mistake in reading the file.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from edgeprism.bundle.manifest import Manifest
from edgeprism.convert.gate.data import SHOWN, gate_picture
from edgeprism.convert.gate.judge import VisionLimit
from edgeprism.convert.mmproj.layout import mtmd_image_policy, mtmd_markers
from edgeprism.convert.mmproj.mtmd_slices import fitted, slices_by_mtmd
from edgeprism.convert.mmproj.shape import EncoderShape
from edgeprism.language.model import LanguageModel
from edgeprism.picture.layout import PictureLayout, picture_to_layout, tiles_by_shape
from edgeprism.picture.read import Picture
from edgeprism.picture.tile import picture_to_tiles
from edgeprism.segments import ImageRows, Segment, Text, Tokens
from edgeprism.vision.mtmd import MtmdEncoder
from edgeprism.vision.onnx import VisionEncoder

# (width, height) in halves of a tile's edge, or in `_STEP` visual tokens where shapes are free
SHAPES = ((3, 3), (4, 3), (3, 4), (12, 1), (1, 12), (6, 4))
# libmtmd takes GELU from a table in half precision and rounds the activations to the weights' type:
# two dozen layers of F16 give 0.002 to 0.01, of Q8_0 0.02. A shifted row or a transposed matrix
# gives far more.
LIMIT = VisionLimit(0.05, 0.998)
# patches that libmtmd encodes for the comparison: a small tower's six pictures, or fewer
_MOST_PATCHES = 8192
# Patches of a tile from which on a pass through the tower takes so long (half a minute and more on
# two cores) that each one has to serve every check at once.
LARGE_TILE = 2048
# of the measurement (rounds, seconds): seven if they take little, three unless they take long
_ROUNDS = ((7, 10.0), (3, 40.0))
_CLEAR_GAIN = 1.5  # times libmtmd's speed: more than other programs or its attention change
# in quarters of the edge of a square tile: two that are not cut, and cut ones of each direction.
# llama.cpp also cuts pictures that are long and have few pixels.
_OF_SLICES = ((4, 4), (3, 2), (6, 4), (3, 12), (12, 3), (8, 8))
_STEP = 3  # so that pictures end within a window of attention
_GREY = (122, 116, 104)  # libmtmd's fill for LLaVA's pictures


def picture_sizes(shape: EncoderShape) -> list[tuple[int, int]]:
    """Return the sizes (width, height) of the pictures that are compared."""
    if shape.is_free:
        step = _STEP * shape.unit
        if shape.queries:
            return [(wide * shape.size // 4, high * shape.size // 4) for wide, high in _OF_SLICES]
        sizes = [(wide * step, high * step) for wide, high in SHAPES]
        if shape.tiles[1] > 1:  # one that becomes two tiles and an overview
            sizes[-1] = (5 * shape.size // 2, 5 * shape.size // 4)
        return sizes
    size = shape.size
    return [(max(1, wide * size // 2), max(1, high * size // 2)) for wide, high in SHAPES]


def is_large(shape: EncoderShape) -> bool:
    """Return whether the gate has to spare passes; tiles of free shapes are chosen small there."""
    return not shape.is_free and shape.grid**2 >= LARGE_TILE


@dataclass(frozen=True)
class MtmdRows:
    """What libmtmd makes of a picture."""

    size: tuple[int, int]
    tiles: np.ndarray  # uint8, as `picture_to_tiles` makes them; libmtmd's rows are those of them
    rows: np.ndarray  # [n_rows, n_embd], in the prompt's order
    layout: PictureLayout
    seconds: float  # for all tiles

    @property
    def pixels(self) -> int:
        """The pixels of all tiles."""
        return _pixels(self.layout)


def as_mtmd(manifest: Manifest, shape: EncoderShape) -> Manifest:
    """Return a bundle's manifest with libmtmd's own rules for pictures."""
    return dataclasses.replace(
        manifest,
        image=mtmd_image_policy(shape),
        prompts=dataclasses.replace(manifest.prompts, markers=mtmd_markers(shape)),
    )


def encode_by_mtmd(
    lm: LanguageModel, mmproj: Path, manifest: Manifest, shape: EncoderShape
) -> tuple[list[MtmdRows], list[str]]:
    """Let libmtmd lay out pictures of six shapes and encode as many as are cheap, one at least.

    Parameters:
        manifest: of the bundle to be, with libmtmd's rules, see `as_mtmd`.

    Returns the pictures that were encoded, and a sentence on the layouts that differ.
    """
    encoder = MtmdEncoder(mmproj, lm, threads=lm.threads)
    try:
        laid_out, differing = [], []
        for size in picture_sizes(shape):
            layout = picture_to_layout(size, manifest)
            if is_same_layout(encoder.layout(size), layout.segments, lm):
                laid_out.append((size, layout))
            else:
                differing.append(f"{size[0]} × {size[1]}")
        # a square comes last, because it does not show where a picture lies within its tile
        laid_out.sort(key=lambda item: (_pixels(item[1]), item[0][0] == item[0][1]))
        cheap: list[tuple[tuple[int, int], PictureLayout]] = []
        left = 0 if is_large(shape) else _MOST_PATCHES
        for size, layout in laid_out:
            left -= _pixels(layout) // shape.patch**2
            if left >= 0 or not cheap:
                cheap.append((size, layout))
        # making a picture takes as long as encoding it, so all are parts of one
        picture = gate_picture(max((max(size) for size, _ in cheap), default=1), SHOWN)
        encoded = [
            _encode(encoder, picture[: size[1], : size[0]], layout, manifest, shape)
            for size, layout in cheap
        ]
        sizes = ", ".join(differing)
        return encoded, [f"pictures of {sizes} pixels are laid out differently"] if sizes else []
    finally:
        encoder.close()


def _pixels(layout: PictureLayout) -> int:
    return sum(height * width for height, width in layout.shapes)


def _encode(encoder: MtmdEncoder, pixels: np.ndarray, layout: PictureLayout,
            manifest: Manifest, shape: EncoderShape) -> MtmdRows:  # fmt: skip
    rgb = Image.fromarray(pixels)
    began = time.perf_counter()
    rows, _ = encoder.encode_picture(np.asarray(rgb)[None])
    seconds = time.perf_counter() - began
    if shape.queries:
        tiles, shapes = slices_by_mtmd(rgb, (shape.size, shape.patch), layout.grid)
        layout = dataclasses.replace(layout, shapes=shapes)
    else:
        tiles = mtmd_tiles(rgb, layout, manifest, shape)
    return MtmdRows(rgb.size, tiles, rows, layout, seconds)


def mtmd_tiles(
    rgb: Image.Image, layout: PictureLayout, manifest: Manifest, shape: EncoderShape
) -> np.ndarray:
    """Return the tiles [n, height, width, 3] that libmtmd makes of a picture."""
    if manifest.image.tiling is None:
        fill = _GREY if shape.projector == "mlp" else (0, 0, 0)
        resample = Image.Resampling[manifest.image.resample.upper()]
        ((height, width),) = layout.shapes
        return np.asarray(fitted(rgb, (width, height), resample, fill))[None]
    picture = Picture(rgb, "", "", rgb.size, (), 0.0)
    return picture_to_tiles(picture, manifest.image, layout.grid)


def is_same_layout(theirs: Sequence[Segment], ours: Sequence[Segment], lm: LanguageModel) -> bool:
    """Return whether two layouts have the same tokens, rows and positions of rows."""
    positions = [
        [s.positions for s in segments if isinstance(s, ImageRows) and s.positions is not None]
        for segments in (theirs, ours)
    ]
    if [it.shape for it in positions[0]] != [it.shape for it in positions[1]]:
        return False
    if any((a != b).any() for a, b in zip(*positions, strict=True)):
        return False
    return segments_to_ids(theirs, lm) == segments_to_ids(ours, lm)


def segments_to_ids(
    segments: Sequence[Segment], lm: LanguageModel
) -> list[tuple[int, int] | list[int]]:
    """Return rows as (first, last + 1) and texts as token ids; neighbouring rows become one run.

    libmtmd hands on the rows of each tile by themselves. That is the same, because only Gemma 3's
    attend both ways, and its pictures are not cut.
    """
    ids: list[tuple[int, int] | list[int]] = []
    for segment in segments:
        match segment:
            case ImageRows(start, stop):
                if ids and isinstance(ids[-1], tuple):
                    start = ids.pop()[0]
                ids.append((start, stop))
            case Tokens(tokens):
                ids.append(list(tokens))
            case Text(text):
                ids.append(lm.vocabulary.tokenize(text, parse_special=True))
    return ids


def graph_rows(
    encoded: Sequence[MtmdRows], graph: Path, manifest: Manifest, threads: int
) -> list[np.ndarray]:
    """Return a graph's rows [n_rows, n_embd] of each picture that libmtmd encoded.

    Parameters:
        graph: float32, and written with `as_mtmd`.
    """
    encoder = VisionEncoder(graph, manifest, threads=threads)
    return [encoder.encode_picture(it.tiles, it.layout) for it in encoded]


def judge_rows(
    encoded: Sequence[MtmdRows], rows: Sequence[np.ndarray]
) -> tuple[dict[str, float], list[str]]:
    """Return figures and failures of a graph's rows of pictures against libmtmd's."""
    ours, theirs = np.concatenate(rows), np.concatenate([it.rows for it in encoded])
    error = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    cosine = float(((ours * theirs).sum(axis=-1) / np.maximum(lengths, 1e-20)).mean())
    failures = []
    # `not … <=` rather than `>`: a NaN must fail
    if not error <= LIMIT.relative_error:
        failures.append(f"relative error {error:.3g} > {LIMIT.relative_error:g}")
    if not cosine >= LIMIT.cosine:
        failures.append(f"mean cosine {cosine:.6f} < {LIMIT.cosine:g}")
    figures = {"relative_error": error, "mean_cosine": cosine, "pictures": float(len(encoded))}
    return figures, failures


def seconds_of_passes(
    lm: LanguageModel, mmproj: Path, picture: MtmdRows, seconds: Sequence[float]
) -> tuple[float, float]:
    """Return the seconds for a tile, of libmtmd and of a graph, from passes that were made anyway.

    For a large tower. Where the graph is not clearly faster than libmtmd as it took `picture`,
    libmtmd shows once what it takes without flash attention, and the shorter time counts.

    Parameters:
        seconds: of the graph for tiles one at a time.
    """
    theirs, ours = picture.seconds / picture.layout.n_tiles, median(seconds)
    if theirs < _CLEAR_GAIN * ours:
        without = seconds_without_flash(lm, mmproj, picture)
        theirs = min(theirs, without / picture.layout.n_tiles)
    return theirs, ours


def seconds_per_tile(
    lm: LanguageModel, mmproj: Path, graph: Path, manifest: Manifest, picture: MtmdRows
) -> tuple[float, float]:
    """Return the seconds for a tile of `picture`, of libmtmd and of the graph.

    Where shapes are free, the picture should be the largest one: attention grows with its square.

    The two encode it in turns, so that another program that runs for a while slows both, and the
    medians count. libmtmd is taken with or without flash attention, whichever is faster.
    """
    blank = _blank(picture)
    encoder = VisionEncoder(graph, manifest, threads=lm.threads)
    (first, *_) = tiles_by_shape(picture.tiles, picture.layout.shapes)
    encoder.encode(first[:1])  # the first run also lays out memory
    with_flash = picture.seconds <= seconds_without_flash(lm, mmproj, picture)
    # None: as libmtmd decides, which is how `picture` was encoded
    flash = None if with_flash else False
    mtmd = MtmdEncoder(mmproj, lm, threads=lm.threads, flash_attention=flash)
    try:
        theirs, ours = alternate(
            lambda: mtmd.encode_picture(blank),
            lambda: encoder.encode_picture(picture.tiles, picture.layout),
        )
    finally:
        mtmd.close()
    n_tiles = picture.layout.n_tiles
    return theirs / n_tiles, ours / n_tiles


def seconds_without_flash(lm: LanguageModel, mmproj: Path, picture: MtmdRows) -> float:
    """Return the seconds that libmtmd takes for `picture` where it computes all scores at once."""
    blank = _blank(picture)
    mtmd = MtmdEncoder(mmproj, lm, threads=lm.threads, flash_attention=False)
    try:
        return _seconds(lambda: mtmd.encode_picture(blank))
    finally:
        mtmd.close()


def _blank(picture: MtmdRows) -> np.ndarray:
    return np.zeros((1, picture.size[1], picture.size[0], 3), np.uint8)


def alternate(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Run two calls in turns; return the median of each one's seconds.

    It goes on while any of `_ROUNDS` has room for another round, in rounds and in seconds.
    """
    began = time.perf_counter()
    times: list[tuple[float, float]] = []
    spent = 0.0
    while not times or any(len(times) < rounds and spent < most_s for rounds, most_s in _ROUNDS):
        times.append((_seconds(first), _seconds(second)))
        spent = time.perf_counter() - began
    return median(a for a, _ in times), median(b for _, b in times)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
