"""The vision engine for a manifest: ONNX Runtime runs a graph, libmtmd an mmproj file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgeprism.errors import ImageError
from edgeprism.language.llama import supports_offload
from edgeprism.language.model import LanguageModel
from edgeprism.machine.cancel import Cancel
from edgeprism.machine.device import CPU_PROVIDER, GPU_PROVIDERS
from edgeprism.machine.onnx_runtime import available_providers
from edgeprism.picture.free_size import Size
from edgeprism.picture.layout import PictureLayout, picture_to_layout, shrunk_size
from edgeprism.segments import ImageRows, Segment
from edgeprism.vision.connector import Connector, ConnectorFiles, InstructedEncoder
from edgeprism.vision.onnx import VisionEncoder
from edgeprism.vision.token_reduction import TokenLimit, reduce_segments, rows_to_tiles

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import Manifest
    from edgeprism.language.engine import LanguageEngine
    from edgeprism.vision.mtmd import MtmdEncoder

# a string, because the module of libmtmd is imported where a pair needs it
VisionEngine: TypeAlias = "VisionEncoder | InstructedEncoder | MtmdEncoder"


@dataclass(frozen=True)
class Encoding:
    """A picture's visual tokens, float32 [n_rows, n_embd], and their segments in the prompt.

    `features` [n_tiles, n_features, width] are what the rows were made of where the instruction has
    a part in them: with another one, others are made of the same features.
    """

    rows: np.ndarray
    segments: tuple[Segment, ...]
    features: np.ndarray | None = None


def vision_providers(manifest: Manifest) -> dict[str, str]:
    """Return {execution provider: why the manifest's engine cannot start on it, or ""}.

    libmtmd's devices have the names of ONNX Runtime's execution providers too.
    """
    if manifest.vision.mmproj is None:
        return available_providers(GPU_PROVIDERS)
    return dict.fromkeys([*(GPU_PROVIDERS if supports_offload() else ()), CPU_PROVIDER], "")


def open_vision(
    path: Path,
    manifest: Manifest,
    lm: Callable[[], LanguageEngine],
    *,
    provider: str,
    threads: int,
    flash_attention: bool | None,
    cancel: Cancel,
    connector: ConnectorFiles | None = None,
) -> VisionEngine:
    """Load the engine from its files; `lm` is called only if it needs the language model."""
    if manifest.vision.mmproj is None:
        tower = VisionEncoder(path, manifest, provider=provider, threads=threads, cancel=cancel)
        if connector is None:
            return tower
        second = Connector(connector, manifest, provider=provider, threads=threads, cancel=cancel)
        return InstructedEncoder(tower, second)
    from edgeprism.vision.mtmd import MtmdEncoder

    model = lm()
    if not isinstance(model, LanguageModel):
        raise TypeError("libmtmd needs a language model of llama.cpp")
    return MtmdEncoder(
        path,
        model,
        gpu=provider != CPU_PROVIDER,
        threads=threads,
        flash_attention=flash_attention,
        cancel=cancel,
    )


def tiles_to_rows(
    engine: VisionEngine, tiles: np.ndarray, layout: PictureLayout, name: str, instruction: str
) -> Encoding:
    """Encode a picture's tiles for a caption with an instruction, which few models look at.

    For a graph `layout` gives the segments of the prompt; libmtmd makes its own. Raises
    ImageError, which names the picture, for a shape that the engine cannot take.
    """
    if isinstance(engine, VisionEncoder):
        return Encoding(engine.encode_picture(tiles, layout), layout.segments)
    if isinstance(engine, InstructedEncoder):
        return features_to_rows(engine, engine.encode(tiles), layout, instruction)
    try:
        return Encoding(*engine.encode_picture(tiles))
    except ImageError as error:
        raise ImageError(f"{name}: {error.message}", error.hint) from error


def features_to_rows(
    engine: VisionEngine, features: np.ndarray, layout: PictureLayout, instruction: str
) -> Encoding:
    """Make visual tokens of features that `tiles_to_rows` returned, for another instruction."""
    if not isinstance(engine, InstructedEncoder):
        raise TypeError("only an engine that reads the instruction has features")
    rows = engine.rows_of_picture(features, layout, instruction)
    return Encoding(rows, layout.segments, features)


def picture_segments(
    engine: VisionEngine | None, size: Size, manifest: Manifest, limit: TokenLimit | None = None
) -> tuple[tuple[int, int], int, tuple[Segment, ...]]:
    """Return grid, number of tiles and segments of a picture of `size`, without encoding.

    The grid is [down, across], or (0, 0) if the picture is not cut or the grid is not known. The
    segments are those of at most `limit` visual tokens. Only libmtmd is needed for this: for a
    graph `engine` may be None.
    """
    if engine is not None and not isinstance(engine, VisionEncoder | InstructedEncoder):
        segments = engine.layout(shrunk_size(size, manifest.image.size))
        n_tiles = sum(isinstance(s, ImageRows) for s in segments)
        tile_of_row = rows_to_tiles(manifest, None, segments)
        return (0, 0), n_tiles, reduce_segments(segments, tile_of_row, limit)
    layout = picture_to_layout(size, manifest)
    tile_of_row = rows_to_tiles(manifest, layout, layout.segments)
    segments = reduce_segments(layout.segments, tile_of_row, limit)
    return layout.grid or (0, 0), layout.n_tiles, segments
