"""A picture's size + the manifest → its tiles, their cost, and the order of its rows.

This needs only sizes, so tiles and visual tokens are known before a pixel is decoded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeprism.bundle.manifest import Markers
from edgeprism.picture.free_size import Size, free_size
from edgeprism.segments import ImageRows, Segment, Text

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import ImagePolicy, Manifest

_RGB = 3  # channels
# indices of learned rows in `PictureLayout.rows`: what ends a row of patches, and what stands
# between the overview and the tiles
NEWLINE, SEPARATOR = -1, -2

_NO_MARKERS = Markers("", "", "", "", "", "")


@dataclass(frozen=True)
class PictureLayout:
    """One picture's tiles for the vision graph, and its rows in the prompt."""

    grid: tuple[int, int] | None  # tiles [down, across]; None: the whole picture is one tile
    shapes: tuple[tuple[int, int], ...]  # (height, width) of each tile, with the overview
    rows: np.ndarray  # [n_rows] int32: indices into the tokens of all tiles, one after another
    segments: tuple[Segment, ...]

    @property
    def n_tiles(self) -> int:
        """How many tiles there are, with the overview."""
        return len(self.shapes)


def picture_to_layout(size: Size, manifest: Manifest) -> PictureLayout:
    """Return the layout of an upright picture of `size` (width, height) pixels."""
    vision, image, tiling = manifest.vision, manifest.image, manifest.image.tiling
    grid = choose_grid(size, image)
    if tiling is None or grid is None:
        return _layout_of_one(size, manifest)
    n_cut = grid[0] * grid[1]
    width, height = tile_size(size, image)
    across, down = cut_size(size, image, grid)
    whole_shape, tile_shape = (height, width), (down, across)
    whole, per_tile = (tokens_of_tile(shape, manifest) for shape in (whole_shape, tile_shape))
    first = tiling.overview == "first"
    overview = np.arange(whole, dtype=np.int32) + (0 if first else n_cut * per_tile)
    if tiling.overview_lines:
        overview = _with_line_ends(overview.reshape(vision.grid)).ravel()
    cut: np.ndarray = np.arange(n_cut * per_tile, dtype=np.int32) + (whole if first else 0)
    if tiling.order != "tiles":
        # [down, across, patches down, patches across] → rows of patches across all tiles
        cut = cut.reshape(*grid, *vision.grid).transpose(0, 2, 1, 3)
        cut = cut.reshape(grid[0] * vision.grid[0], grid[1] * vision.grid[1])
        if tiling.order == "rows-unpadded":
            cut = _unpadded(cut, size)
        cut = _with_line_ends(cut) if vision.newline else cut
        lengths = [[cut.size]]
    else:
        lengths = [[per_tile] * grid[1]] * grid[0]
    parts = [overview, cut.ravel()]
    if vision.separator:
        parts.insert(1, np.array([SEPARATOR], np.int32))
    parts = parts if first else parts[::-1]
    shapes = [tile_shape] * n_cut
    shapes.insert(0 if first else n_cut, whole_shape)
    segments = _segments(len(overview) + (vision.separator != ""), lengths, manifest)
    return PictureLayout(grid, tuple(shapes), np.concatenate(parts), segments)


def _with_line_ends(rows: np.ndarray) -> np.ndarray:
    """Return `rows` [down, across] with the model's newline row at the end of each."""
    return np.pad(rows, ((0, 0), (0, 1)), constant_values=NEWLINE)


def _layout_of_one(size: Size, manifest: Manifest) -> PictureLayout:
    """Return the layout of a picture that is not cut."""
    vision, image = manifest.vision, manifest.image
    width, height = tile_size(size, image)
    n_rows = tokens_of_tile((height, width), manifest)
    rows = np.arange(n_rows, dtype=np.int32)
    if vision.newline:
        n_down = vision.grid[0] if image.free is None else height // image.free.unit
        rows = _with_line_ends(rows.reshape(n_down, -1)).ravel()
        n_rows = len(rows)
    positions = None
    if manifest.lm.image_positions == "down-across":
        n_across = vision.grid[1] if image.free is None else width // image.free.unit
        down, across = np.divmod(np.arange(n_rows, dtype=np.int32), np.int32(n_across))
        positions = np.stack([np.zeros_like(down), down, across, np.zeros_like(down)])
    elif manifest.lm.image_positions == "shared":
        positions = _shared_positions(n_rows, vision.constant_rows)
    segments = _segments(n_rows, [], manifest, positions)
    return PictureLayout(None, ((height, width),), rows, segments)


def _shared_positions(n_rows: int, constant_rows: list[int]) -> np.ndarray:
    """Return positions int32 [1, n_rows]: one for all rows, but one each for those at the ends."""
    first, last = constant_rows
    steps = np.zeros(n_rows, np.int32)  # from each row to the next
    steps[1 : first + 1] = 1
    steps[n_rows - last :] = 1
    steps[0] = 0
    positions: np.ndarray = np.cumsum(steps, dtype=np.int32)[None]
    return positions


def most_visual_tokens(manifest: Manifest) -> int:
    """Return an upper limit of the rows that one picture needs."""
    vision, tiling = manifest.vision, manifest.image.tiling
    limit = manifest.image.max_tiles * vision.tokens_per_tile
    if tiling is None and vision.newline:  # the more, the narrower; the highest tile counts
        limit += _most_lines(manifest)
    if tiling is not None and vision.newline:
        limit += max(grid[0] for grid in tiling.grids) * vision.grid[0]
        limit += vision.grid[0] * tiling.overview_lines + (vision.separator != "")
    return limit


def _most_lines(manifest: Manifest) -> int:
    """Return how many rows of patches a picture of one free tile has at the most."""
    free = manifest.image.free
    if free is None:
        return manifest.vision.grid[0]
    return (free.canvas[1] if free.canvas else free.most_pixels // free.unit) // free.unit


def choose_grid(size: Size, policy: ImagePolicy) -> tuple[int, int] | None:
    """Return the tiles [down, across] for a picture of `size`, without the overview.

    None: the picture is not cut. The rules follow the models' own preprocessing: LLaVA-NeXT
    (best-fit), InternVL 1.5 (closest-ratio), LFM2-VL (the same, if the picture has more than
    uncut_pixels), Idefics3 (longest-edge), MiniCPM-V (by-pixels) and InternLM-XComposer2-4KHD
    (most-across).
    """
    tiling, free = policy.tiling, policy.free
    if tiling is None:
        return None
    if tiling.choose == "by-pixels":
        return _by_pixels(size, policy.size, tiling.grids)
    if tiling.choose == "most-across":
        width, height = across_size(size, policy.size, tiling.grids)
        return -(-height // policy.size), -(-width // policy.size)
    if free is not None:
        width, height = (round(edge / free.unit) * free.unit for edge in size)
        if width * height <= tiling.uncut_pixels:
            return None
    if tiling.choose == "best-fit":
        return _best_fit(size, policy.size, tiling.grids)
    if tiling.choose == "closest-ratio":
        grid = _closest_ratio(size, policy.size, tiling.grids)
        return None if grid == (1, 1) else grid
    width, height = canvas_size(size, policy.size, tiling.longest_edge)
    return height // policy.size, width // policy.size


def tokens_of_tile(shape: tuple[int, int], manifest: Manifest) -> int:
    """Return the visual tokens of a tile of `shape` (height, width)."""
    free = manifest.image.free
    if free is None:
        return manifest.vision.tokens_per_tile
    return free.tokens or shape[0] // free.unit * (shape[1] // free.unit)


def tiles_by_shape(tiles: np.ndarray, shapes: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Yield a picture's tiles, uint8 [n, height, width, channels]; those of one shape together.

    Parameters:
        tiles: as `picture_to_tiles` makes them: such an array, or flat if shapes differ.
        shapes: (height, width) of each tile.
    """
    if tiles.ndim > 1:
        yield tiles
        return
    start = 0
    for (height, width), run in itertools.groupby(shapes):
        stop = start + len(list(run)) * height * width * _RGB
        yield tiles[start:stop].reshape(-1, height, width, _RGB)
        start = stop


def tile_size(size: Size, policy: ImagePolicy) -> Size:
    """Return the (width, height) of the one tile of a picture of `size` that is not cut."""
    if policy.free is not None:
        return free_size(size, policy.free)
    return policy.size, policy.size


def cut_size(size: Size, policy: ImagePolicy, grid: tuple[int, int]) -> Size:
    """Return the (width, height) of each tile [down, across] that a picture is cut into."""
    if policy.free is None or policy.tiling is None or policy.tiling.choose != "by-pixels":
        return policy.size, policy.size
    parts = zip(size, reversed(grid), strict=True)
    width, height = (max(1, round(edge / count)) for edge, count in parts)
    return free_size((width, height), policy.free)


def shrunk_size(size: Size, longest: int) -> Size:
    """Return `size` reduced to a longer edge of at most `longest`; keeps the aspect ratio."""
    share = min(1.0, longest / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def fitted_size(size: Size, canvas: Size) -> Size:
    """Return `size` scaled to fit into `canvas`, rounded up: LLaVA-NeXT's rule."""
    across, down = canvas[0] / size[0], canvas[1] / size[1]
    if across < down:
        return canvas[0], min(math.ceil(size[1] * across), canvas[1])
    return min(math.ceil(size[0] * down), canvas[0]), canvas[1]


def edge_size(size: Size, longest_edge: int) -> Size:
    """Return `size` scaled to a longer edge of `longest_edge`, the other rounded up to even.

    This is Idefics3's rule.
    """
    width, height = size
    ratio = width / height
    if width >= height:
        other = int(longest_edge / ratio)
        return longest_edge, max(1, other + other % 2)
    other = int(longest_edge * ratio)
    return max(1, other + other % 2), longest_edge


def across_size(size: Size, tile: int, grids: list[list[int]]) -> Size:
    """Return the size that a "most-across" picture is resized to, before it is padded.

    The rule is that of 4KHD's `HD_transform`, which fails where the shorter edge would have no
    pixel; here it has one.
    """
    longer, shorter = max(size), min(size)
    ratio, known = longer / shorter, set(map(tuple, grids))
    most = max(max(grid) for grid in grids)
    n_tiles = next(n for n in range(most, 0, -1) if (math.ceil(n / ratio), n) in known)
    edge = n_tiles * tile
    other = max(1, int(edge / ratio))
    return (edge, other) if size[0] >= size[1] else (other, edge)


def canvas_size(size: Size, tile: int, longest_edge: int) -> Size:
    """Return the size that a "longest-edge" picture is stretched to: `edge_size` in whole tiles."""
    width, height = edge_size(size, longest_edge)
    ratio = width / height
    if width >= height:
        across = math.ceil(width / tile)
        return across * tile, math.ceil(int(across * tile / ratio) / tile) * tile
    down = math.ceil(height / tile)
    return math.ceil(int(down * tile * ratio) / tile) * tile, down * tile


def _best_fit(size: Size, tile: int, grids: list[list[int]]) -> tuple[int, int]:
    """Return the grid that keeps the most pixels; of equals, the one with the least padding."""
    width, height = size

    def worth(grid: list[int]) -> tuple[int, int]:
        down, across = grid[0] * tile, grid[1] * tile
        scale = min(across / width, down / height)
        n_pixels = min(int(width * scale) * int(height * scale), width * height)
        return n_pixels, n_pixels - down * across

    best = max(grids, key=worth)  # the first one if several are equal
    return best[0], best[1]


def _closest_ratio(size: Size, tile: int, grids: list[list[int]]) -> tuple[int, int]:
    """Return the grid whose aspect ratio is closest to the picture's.

    Of equally close grids a later one wins if the picture has more than half as many pixels as
    the grid; otherwise the first one wins.
    """
    width, height = size
    best, least = (1, 1), math.inf
    for down, across in grids:
        difference = abs(width / height - across / down)
        is_filled = width * height > 0.5 * tile * tile * down * across
        if difference < least or (difference == least and is_filled):
            best, least = (down, across), difference
    return best


def _by_pixels(size: Size, tile: int, grids: list[list[int]]) -> tuple[int, int] | None:
    """Return the grid of about as many tiles as the picture has room for, closest in its ratio.

    None: a single square of `tile` pixels holds the picture's pixels. Of equally close grids the
    first one wins.
    """
    width, height = size
    count = -(-width * height // tile**2)
    if count <= 1:
        return None
    count = min(count, max(down * across for down, across in grids))
    near = [grid for grid in grids if abs(grid[0] * grid[1] - count) <= 1] or grids
    ratio = math.log(width / height)
    down, across = min(near, key=lambda grid: abs(ratio - math.log(grid[1] / grid[0])))
    return down, across


def _unpadded(rows: np.ndarray, size: Size) -> np.ndarray:
    """Return `rows` [down, across] without the rows or columns of patches that hold only padding.

    It computes with whole numbers, so it is exact where upstream rounds floats.
    """
    (width, height), (down, across) = size, rows.shape
    if width * down > across * height:
        padding = (down - height * across // width) // 2
        return rows[padding : down - padding]
    padding = (across - width * down // height) // 2
    return rows[:, padding : across - padding]


def _segments(
    whole: int, lengths: list[list[int]], manifest: Manifest, positions: np.ndarray | None = None
) -> tuple[Segment, ...]:
    """Return the rows and the text between them.

    Parameters:
        whole: the rows of the tile that shows the whole picture.
        lengths: those of each other tile, by row of tiles.
        positions: of the rows of a picture that is one tile, see `ImageRows`.
    """
    markers = manifest.prompts.markers or _NO_MARKERS
    overview: list[str | int] = [markers.before_overview, whole, markers.after_overview]
    cut: list[str | int] = []
    for down, tiles in enumerate(lengths, 1):
        cut += [markers.between_rows] if down > 1 else []
        for across, length in enumerate(tiles, 1):
            place = markers.before_tile.replace("{row}", str(down))
            cut += [place.replace("{column}", str(across)), length, markers.after_tile]
        cut.append(markers.after_row)
    cut += [markers.after_tiles] if cut else []
    parts = [overview, [markers.between], cut] if cut else [overview]
    if manifest.image.tiling is not None and manifest.image.tiling.overview == "last":
        parts.reverse()
    causal = manifest.lm.image_attention == "causal"
    return _joined([markers.begin, *itertools.chain(*parts), markers.end], causal, positions)


def _joined(
    pieces: list[str | int], causal: bool, positions: np.ndarray | None
) -> tuple[Segment, ...]:
    """Return texts and counts of rows as segments; neighbours of the same kind become one."""
    segments: list[Segment] = []
    stop = 0
    for kind, run in itertools.groupby((piece for piece in pieces if piece), type):
        if kind is str:
            segments.append(Text("".join(map(str, run)), template=True))
        else:
            start, stop = stop, stop + sum(map(int, run))
            segments.append(ImageRows(start, stop, causal, positions))
    return tuple(segments)
