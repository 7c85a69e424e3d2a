"""How a picture becomes tiles and rows for an encoder from an mmproj file: the manifest's part.

The rules are those of the models' authors, as `convert/families` reads them from published
folders. libmtmd has its own rules for some projectors; they are here too, because the gate
compares the two engines on what both can take.

Sources: transformers' Idefics3, InternVL, Gemma 3, LLaVA, Qwen2-VL and LFM2-VL processors;
MiniCPM-V's published `image_processing_minicpmv.py`; llama.cpp's `tools/mtmd/mtmd.cpp` and
`mtmd-image.cpp`.
"""

from __future__ import annotations

import dataclasses
import math

from edgeprism.bundle.manifest import FreeShape, ImagePolicy, Markers, Tiling
from edgeprism.bundle.read_manifest import MAX_TILES
from edgeprism.convert.mmproj.shape import EncoderShape
from edgeprism.convert.read.conversations import MINICPM_SLICES

_FAKE = "<fake_token_around_image>"
_IDEFICS3 = Markers(
    begin="",
    before_overview=f"{_FAKE}<global-img>",
    before_tile=f"{_FAKE}<row_{{row}}_col_{{column}}>",
    after_row="\n",
    between="\n",
    end=_FAKE,
)
_LFM2 = Markers(
    begin="<|image_start|>",
    before_overview="",
    before_tile="<|img_row_{row}_col_{column}|>",
    after_row="",
    between="<|img_thumbnail|>",  # before the overview of a picture that is cut
    end="<|image_end|>",
)
_MINICPM_26 = dataclasses.replace(
    MINICPM_SLICES, between="", before_tile="<slice>", after_tile="</slice>", after_tiles=""
)
_UNCUT_TILES = 2  # a picture of LFM2-VL's is cut if it has more pixels than so many tiles
_OLD_MINICPM = 2  # llama.cpp's number of MiniCPM-V 2.5
_NONE = Markers("", "", "", "", "", "")


def image_policy(shape: EncoderShape) -> ImagePolicy:
    """Return how the model's authors prepare a picture."""
    match shape.projector:
        case "idefics3":
            tiling = Tiling("longest-edge", [], shape.longest_edge, "last", "tiles")
            most = 1 + math.ceil(shape.longest_edge / shape.size) ** 2
            return ImagePolicy("stretch", shape.size, [0, 0, 0], "lanczos", most, tiling)
        case "internvl":
            return _tiles(shape, "closest-ratio")
        case "gemma3":
            return ImagePolicy("stretch", shape.size, [0, 0, 0], "bilinear", 1)
        case "qwen2vl_merger" | "qwen2.5vl_merger":
            free = _free_shape(shape)
            return ImagePolicy("free", shape.size, [0, 0, 0], "bicubic", 1, free=free)
        case "lfm2":
            free, grids = _free_shape(shape), _grids_by_size(shape.tiles)
            most = 1 + shape.tiles[1]
            uncut = _UNCUT_TILES * free.most_pixels
            tiling = Tiling("closest-ratio", grids, 0, "last", "tiles", uncut)
            return ImagePolicy("free", shape.size, [0, 0, 0], "bilinear", most, tiling, free=free)
        case "resampler":
            return _slices(shape)
        case _:
            # LLaVA pads a picture to a square of its mean colour, then resizes
            fill = [int(mean * 255) for mean in shape.mean]
            return ImagePolicy("pad", shape.size, fill, "bicubic", 1)


def _free_shape(shape: EncoderShape) -> FreeShape:
    least, most = (tokens * shape.unit**2 for tokens in shape.free_tokens)
    return FreeShape("smart-resize", shape.unit, least, most)


def _slices(shape: EncoderShape) -> ImagePolicy:
    """Return MiniCPM-V's policy: an overview, then slices; all are free shapes of one area."""
    patches, square = shape.free_tokens, shape.patch**2
    free = FreeShape(
        "equal-area", shape.patch, patches[0] * square, patches[1] * square, shape.queries
    )
    least, most = shape.tiles
    grids = [
        [count // across, across]
        for count in range(least, most + 1)
        for across in range(1, count + 1)
        if count % across == 0
    ]
    tiling = Tiling("by-pixels", grids, 0, "first", "tiles")
    return ImagePolicy("free", shape.size, [0, 0, 0], "bicubic", 1 + most, tiling, free=free)


def _grids_by_size(tiles: tuple[int, int]) -> list[list[int]]:
    """Return the grids [down, across] of the least to the most tiles, those of few tiles first."""
    least, most = tiles
    counts = range(1, most + 1)
    grids = [[down, across] for across in counts for down in counts]
    return sorted(
        (grid for grid in grids if least <= grid[0] * grid[1] <= most),
        key=lambda grid: grid[0] * grid[1],
    )


def _tiles(shape: EncoderShape, choose: str) -> ImagePolicy:
    """Return InternVL's policy: all grids of the file's least to most tiles, then a thumbnail."""
    least, most = shape.tiles[0], min(shape.tiles[1], MAX_TILES - 1)
    if most < 2:
        return ImagePolicy("stretch", shape.size, [0, 0, 0], "bicubic", 1)
    counts = range(1, most + 1)
    grids = [[down, across] for across in counts for down in counts]
    grids = [grid for grid in grids if least <= grid[0] * grid[1] <= most]
    if choose == "closest-ratio":
        grids.sort(key=lambda grid: grid[0] * grid[1])
    tiling = Tiling(choose, grids, 0, "last", "tiles")
    return ImagePolicy("stretch", shape.size, [0, 0, 0], "bicubic", 1 + most, tiling)


def picture_markers(shape: EncoderShape) -> Markers:
    """Return the text that the model's authors put around a picture's rows."""
    if shape.projector == "gemma3":
        return Markers("\n\n<start_of_image>", "", "", "", "", "<end_of_image>\n\n")
    markers = _markers_of_both(shape)
    if shape.projector == "resampler":  # a line of its own
        begin = picture_index(shape).replace("{index}", "0")
        return dataclasses.replace(markers, begin=begin, end="\n")
    return markers


def picture_index(shape: EncoderShape) -> str:
    """Return the text by which the model's authors number the pictures of a prompt, or ""."""
    is_numbered = shape.projector == "resampler" and shape.version != _OLD_MINICPM
    return "<image_id>{index}</image_id>" if is_numbered else ""


def _markers_of_both(shape: EncoderShape) -> Markers:
    match shape.projector:
        case "idefics3":
            return _IDEFICS3
        case "internvl":
            return Markers("<img>", "", "", "", "", "</img>")
        case "qwen2vl_merger" | "qwen2.5vl_merger":
            return Markers("<|vision_start|>", "", "", "", "", "<|vision_end|>")
        case "lfm2":
            return _LFM2
        case "resampler":
            return MINICPM_SLICES if shape.version == _OLD_MINICPM else _MINICPM_26
        case _:
            return _NONE


# ---- libmtmd


def mtmd_image_policy(shape: EncoderShape) -> ImagePolicy:
    """Return how libmtmd prepares a picture that is larger than a tile.

    InternVL's is cut by LLaVA-NeXT's rule. LFM2-VL's is cut by the authors' rule, but padded. Gemma
    3's, LLaVA's and Qwen's are scaled and then padded, which no policy says: `peer.mtmd_tiles` does
    it, and `mtmd_slices` cuts MiniCPM-V's.
    """
    return _tiles(shape, "best-fit") if shape.projector == "internvl" else image_policy(shape)


def mtmd_markers(shape: EncoderShape) -> Markers:
    """Return the text that libmtmd puts around a picture's rows."""
    if shape.projector == "gemma3":
        return Markers("<start_of_image>", "", "", "", "", "<end_of_image>")
    return _markers_of_both(shape)
