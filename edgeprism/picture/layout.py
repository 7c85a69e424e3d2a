"""A picture's size + the manifest → how it is cut, what that costs, and how its rows stand.

Arithmetic on sizes alone: tiles and visual tokens are known before a pixel is decoded.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeprism.bundle.manifest import Markers
from edgeprism.segments import ImageRows, Segment, Text

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import ImagePolicy, Manifest

Size = tuple[int, int]  # (width, height)
NEWLINE = -1  # in `PictureLayout.rows`: the model's newline row

_NO_MARKERS = Markers("", "", "", "", "", "")


@dataclass(frozen=True)
class PictureLayout:
    """How one picture goes through the vision graph and stands in the prompt."""

    grid: tuple[int, int] | None  # tiles [down, across]; None: the whole picture is one tile
    n_tiles: int  # the overview counted
    rows: np.ndarray  # [n_rows] int32: indices into the tiles' tokens [n_tiles · tokens_per_tile]
    segments: tuple[Segment, ...]


def picture_to_layout(size: Size, manifest: Manifest) -> PictureLayout:
    """The layout of a picture of `size` (width, height) pixels, upright."""
    vision, tiling = manifest.vision, manifest.image.tiling
    per_tile, grid = vision.tokens_per_tile, choose_grid(size, manifest.image)
    if tiling is None or grid is None:
        rows = np.arange(per_tile, dtype=np.int32)
        return PictureLayout(None, 1, rows, _segments([], manifest))
    n_cut = grid[0] * grid[1]
    first = tiling.overview == "first"
    overview = np.arange(per_tile, dtype=np.int32) + (0 if first else n_cut * per_tile)
    cut: np.ndarray = np.arange(n_cut * per_tile, dtype=np.int32) + (per_tile if first else 0)
    if tiling.order != "tiles":
        # [down, across, patches down, patches across] → rows of patches across all tiles
        cut = cut.reshape(*grid, *vision.grid).transpose(0, 2, 1, 3)
        cut = cut.reshape(grid[0] * vision.grid[0], grid[1] * vision.grid[1])
        if tiling.order == "rows-unpadded":
            cut = _unpadded(cut, size)
        if vision.newline:
            cut = np.pad(cut, ((0, 0), (0, 1)), constant_values=NEWLINE)
        lengths = [[cut.size]]
    else:
        lengths = [[per_tile] * grid[1]] * grid[0]
    parts = (overview, cut.ravel()) if first else (cut.ravel(), overview)
    return PictureLayout(grid, n_cut + 1, np.concatenate(parts), _segments(lengths, manifest))


def most_visual_tokens(manifest: Manifest) -> int:
    """Rows that no picture's layout goes beyond."""
    vision, tiling = manifest.vision, manifest.image.tiling
    most = manifest.image.max_tiles * vision.tokens_per_tile
    if tiling is not None and vision.newline:
        most += max(grid[0] for grid in tiling.grids) * vision.grid[0]
    return most


def choose_grid(size: Size, policy: ImagePolicy) -> tuple[int, int] | None:
    """Tiles [down, across] that a picture of `size` is cut into, besides the overview.

    None where it is not cut. The rules are those of the models' own preparation: LLaVA-NeXT's
    (best-fit), InternVL 1.5's (closest-ratio) and Idefics3's (longest-edge).
    """
    tiling = policy.tiling
    if tiling is None:
        return None
    if tiling.choose == "best-fit":
        return _best_fit(size, policy.size, tiling.grids)
    if tiling.choose == "closest-ratio":
        grid = _closest_ratio(size, policy.size, tiling.grids)
        return None if grid == (1, 1) else grid
    width, height = canvas_size(size, policy.size, tiling.longest_edge)
    return height // policy.size, width // policy.size


def shrunk_size(size: Size, longest: int) -> Size:
    """`size` with its longer edge at most `longest`, ratio kept."""
    share = min(1.0, longest / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def fitted_size(size: Size, canvas: Size) -> Size:
    """`size` scaled to fit into `canvas`, ratio kept, rounded up: LLaVA-NeXT's rule."""
    across, down = canvas[0] / size[0], canvas[1] / size[1]
    if across < down:
        return canvas[0], min(math.ceil(size[1] * across), canvas[1])
    return min(math.ceil(size[0] * down), canvas[0]), canvas[1]


def edge_size(size: Size, longest_edge: int) -> Size:
    """`size` with its longer edge at `longest_edge`, the other rounded up to even: Idefics3's."""
    width, height = size
    ratio = width / height
    if width >= height:
        other = int(longest_edge / ratio)
        return longest_edge, max(1, other + other % 2)
    other = int(longest_edge * ratio)
    return max(1, other + other % 2), longest_edge


def canvas_size(size: Size, tile: int, longest_edge: int) -> Size:
    """What a "longest-edge" picture is stretched to: whole tiles around `edge_size`."""
    width, height = edge_size(size, longest_edge)
    ratio = width / height
    if width >= height:
        across = math.ceil(width / tile)
        return across * tile, math.ceil(int(across * tile / ratio) / tile) * tile
    down = math.ceil(height / tile)
    return math.ceil(int(down * tile * ratio) / tile) * tile, down * tile


def _best_fit(size: Size, tile: int, grids: list[list[int]]) -> tuple[int, int]:
    """The grid that keeps most of the picture's pixels, then the one that pads least."""
    width, height = size

    def worth(grid: list[int]) -> tuple[int, int]:
        down, across = grid[0] * tile, grid[1] * tile
        scale = min(across / width, down / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - down * across

    best = max(grids, key=worth)  # the first of equals
    return best[0], best[1]


def _closest_ratio(size: Size, tile: int, grids: list[list[int]]) -> tuple[int, int]:
    """The grid of the closest ratio; of equally close ones a larger if the picture fills it.

    "Fills" is more than half of its pixels; the order of `grids` decides between others.
    """
    width, height = size
    best, least = (1, 1), math.inf
    for down, across in grids:
        difference = abs(width / height - across / down)
        fills = width * height > 0.5 * tile * tile * down * across
        if difference < least or (difference == least and fills):
            best, least = (down, across), difference
    return best


def _unpadded(rows: np.ndarray, size: Size) -> np.ndarray:
    """Without the rows or columns of patches [down, across] that hold padding alone.

    Whole numbers throughout: exact where upstream rounds floats.
    """
    (width, height), (down, across) = size, rows.shape
    if width * down > across * height:
        padding = (down - height * across // width) // 2
        return rows[padding : down - padding]
    padding = (across - width * down // height) // 2
    return rows[:, padding : across - padding]


def _segments(lengths: list[list[int]], manifest: Manifest) -> tuple[Segment, ...]:
    """Rows and the text between them; `lengths` are the rows of each tile, by row of tiles."""
    markers = manifest.prompts.markers or _NO_MARKERS
    overview: list[str | int] = [markers.before_overview, manifest.vision.tokens_per_tile]
    cut: list[str | int] = []
    for down, tiles in enumerate(lengths, 1):
        for across, length in enumerate(tiles, 1):
            place = markers.before_tile.replace("{row}", str(down))
            cut += [place.replace("{column}", str(across)), length]
        cut.append(markers.after_row)
    parts = [overview, [markers.between], cut] if cut else [overview]
    if manifest.image.tiling is not None and manifest.image.tiling.overview == "last":
        parts.reverse()
    causal = manifest.lm.image_attention == "causal"
    return _joined([markers.begin, *itertools.chain(*parts), markers.end], causal)


def _joined(pieces: list[str | int], causal: bool) -> tuple[Segment, ...]:
    """Texts and counts of rows as segments, neighbours of one kind made one."""
    segments: list[Segment] = []
    at = 0
    for kind, run in itertools.groupby((piece for piece in pieces if piece), type):
        if kind is str:
            segments.append(Text("".join(map(str, run)), template=True))
        else:
            start, at = at, at + sum(map(int, run))
            segments.append(ImageRows(start, at, causal))
    return tuple(segments)
