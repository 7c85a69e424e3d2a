"""manifest.json → Manifest, strictly: one error lists every fault, each with its field's path."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path, PurePosixPath

from edgeprism.bundle.check_language import language_faults
from edgeprism.bundle.check_video import video_faults
from edgeprism.bundle.manifest import (
    FILE_NAME,
    MAX_EDGE,
    MODES,
    RESAMPLINGS,
    SCHEMA,
    FreeShape,
    Manifest,
    Tiling,
)
from edgeprism.bundle.text_faults import connector_faults, text_faults
from edgeprism.choices import VISION_QUANTS
from edgeprism.errors import ManifestError
from edgeprism.files.regular import open_regular
from edgeprism.files.strict_json import json_without_duplicates, record_from_data

MAX_MANIFEST_BYTES = 1 << 20
_FILLED = ("pad", "letterbox")
# {how a free shape is chosen: how a picture is then cut}
FREE_SHAPES = {"smart-resize": "closest-ratio", "equal-area": "by-pixels", "shrink-to-fit": ""}
CHOICES = ("best-fit", "closest-ratio", "longest-edge", "by-pixels", "most-across")
OVERVIEWS = ("first", "last")
OVERVIEW_FILTERS = ("", "bicubic")
ORDERS = ("tiles", "rows", "rows-unpadded")
MAX_MARKER = 1000  # characters; published models need a few tokens
MAX_GRID = 1024  # visual tokens along an edge of a tile
MAX_UNPLACED = 16384  # visual tokens of a tile that are in no order of place
MAX_PENALTY = 10  # of repetition; published models are used with 1.5 at most
MAX_TILES = 256  # of one picture; more would take too much memory and time


def manifest_from_json(text: str | bytes, where: str) -> Manifest:
    """Parse and check a manifest; raises ManifestError, which lists every fault with its path."""
    data = json_without_duplicates(text, where)
    if isinstance(data, dict) and data.get("schema") != SCHEMA:
        schema = data.get("schema", "none")
        raise ManifestError(where, [f"schema: {schema!r} is not supported; known: {SCHEMA}"])
    manifest = record_from_data(Manifest, data, where)
    faults = _value_faults(manifest)
    if faults:
        raise ManifestError(where, faults)
    return manifest


def manifest_from_bundle(bundle: Path) -> Manifest:
    """Read `bundle`/manifest.json; raises ManifestError, and OSError if it cannot be read."""
    path = bundle / FILE_NAME
    with open_regular(path) as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(str(path), [f"larger than {MAX_MANIFEST_BYTES} bytes"])
    return manifest_from_json(data, str(path))


def _value_faults(m: Manifest) -> list[str]:
    """Return the faults of values that have the right type but make no sense."""
    checks = [
        ("name", bool(m.name.strip()), "is empty"),
        ("image.mode", m.image.mode in MODES, f"{m.image.mode!r}; known: {', '.join(MODES)}"),
        ("image.size", 1 <= m.image.size <= MAX_EDGE, f"must lie in 1…{MAX_EDGE}"),
        ("image.fill", _is_colour(m.image.fill), "must be three numbers in 0…255"),
        (
            "image.second_fill",
            not m.image.second_fill
            or (_is_colour(m.image.second_fill) and m.image.mode in _FILLED and not m.image.tiling),
            f"three numbers in 0…255, for the modes {' and '.join(_FILLED)} without image.tiling",
        ),
        (
            "image.resample",
            m.image.resample in RESAMPLINGS,
            f"{m.image.resample!r}; known: {', '.join(RESAMPLINGS)}",
        ),
        ("vision.variants", bool(m.vision.variants), "is empty"),
        (
            "prompts.focus_instruction",
            not m.prompts.focus_instruction or m.prompts.focus_instruction.count("{focus}") == 1,
            'must hold "{focus}" exactly once, or be empty for a model that takes no focus',
        ),
        ("prompts.unknown", all(text.strip() for text in m.prompts.unknown), "holds an empty text"),
        ("prompts.stop", all(m.prompts.stop), "holds an empty string"),
        (
            "prompts.repetition_penalty",
            1 <= m.prompts.repetition_penalty <= MAX_PENALTY,
            f"must lie in 1…{MAX_PENALTY}",
        ),
        ("prompts.max_tokens", 1 <= m.prompts.max_tokens <= 1 << 16, "must lie in 1…65536"),
    ]
    faults = [f"{path}: {text}" for path, holds, text in checks if not holds]
    faults += language_faults(m, is_unplaced=_is_unplaced(m))
    faults += _marker_faults(m) + video_faults(m, MAX_GRID, MAX_MARKER) + _constant_row_faults(m)
    if m.vision.mmproj is not None:
        return faults + _mmproj_faults(m) + _file_faults(m, ())
    faults += _tiling_faults(m) + _free_faults(m) + _graph_faults(m) + text_faults(m)
    return faults + _file_faults(m, VISION_QUANTS)


def _marker_faults(m: Manifest) -> list[str]:
    """Return the faults of texts that a prompt may repeat for each tile or picture."""
    repeated = {"markers": m.prompts.markers, "several": m.prompts.several}
    return [
        f"prompts.{part}.{name}: longer than {MAX_MARKER} characters"
        for part, texts in repeated.items()
        if texts is not None
        for name, text in dataclasses.asdict(texts).items()
        if len(text) > MAX_MARKER
    ]


def _is_unplaced(m: Manifest) -> bool:
    """Return whether visual tokens stand for the whole tile, in no order of place."""
    if m.image.free is not None:
        return m.image.free.tokens != 0
    return m.vision.grid[:1] == [1] and m.vision.grid != [1, 1]


def _constant_row_faults(m: Manifest) -> list[str]:
    rows, path = m.vision.constant_rows, "vision.constant_rows"
    if len(rows) != 2 or min(rows) < 0:
        return [f"{path}: must be two numbers, neither negative"]
    if any(rows) and not _is_unplaced(m):
        return [f"{path}: need visual tokens in no order of place, vision.grid [1, n]"]
    if any(rows) and sum(rows) >= m.vision.tokens_per_tile:
        return [f"{path}: as many as a tile has visual tokens, or more"]
    return []


def _is_colour(values: list[int]) -> bool:
    return len(values) == 3 and all(0 <= v <= 255 for v in values)


def _mmproj_faults(m: Manifest) -> list[str]:
    vision = m.vision
    checks = [
        ("image.mode", m.image.mode == "shrink", "must be shrink with vision.mmproj"),
        ("image.tiling", m.image.tiling is None, "libmtmd makes the tiles of vision.mmproj"),
        ("image.free", m.image.free is None, "libmtmd shapes the tiles of vision.mmproj"),
        ("image.max_tiles", m.image.max_tiles == 1, "must be 1 with vision.mmproj"),
        ("prompts.markers", m.prompts.markers is None, "libmtmd writes those of vision.mmproj"),
        ("vision.variants", len(vision.variants) < 2, "more than one with vision.mmproj"),
        ("vision.input", not vision.input, "must be empty with vision.mmproj"),
        ("vision.output", not vision.output, "must be empty with vision.mmproj"),
        ("vision.newline", not vision.newline, "must be empty with vision.mmproj"),
        ("vision.separator", not vision.separator, "must be empty with vision.mmproj"),
        ("vision.text", vision.text is None, "not with vision.mmproj"),
        ("vision.grid", not vision.grid, "must be empty with vision.mmproj"),
        ("vision.drop_first_patch", not vision.drop_first_patch, "not with vision.mmproj"),
        ("vision.tokens_per_tile", vision.tokens_per_tile > 0, "must be positive"),
        (
            "vision.n_embd",
            vision.n_embd > 0 and vision.n_embd % max(m.lm.n_embd, 1) == 0,
            "is no multiple of lm.n_embd",
        ),
    ]
    return [f"{path}: {text}" for path, holds, text in checks if not holds]


def _uncut_faults(m: Manifest) -> list[str]:
    """Return the faults of what belongs to tiles, where a picture is one."""
    faults = [] if m.image.max_tiles == 1 else ["image.max_tiles: only 1 without image.tiling"]
    if m.vision.separator:
        faults.append("vision.separator: needs image.tiling")
    placed = not _is_unplaced(m) and not m.vision.drop_first_patch
    if m.vision.newline and not (placed and m.lm.image_positions == "one-by-one"):
        faults.append(
            "vision.newline: needs whole rows of visual tokens, and lm.image_positions one-by-one"
        )
    if m.vision.newline and m.vision.newline == m.vision.output:
        faults.append("vision.newline: is vision.output")
    return faults


def _tiling_faults(m: Manifest) -> list[str]:
    tiling = m.image.tiling
    if tiling is None:
        return _uncut_faults(m)
    by_edge = tiling.choose == "longest-edge"
    checks = [
        (f"choose: {tiling.choose!r}; known: {', '.join(CHOICES)}", tiling.choose in CHOICES),
        (f"overview: {tiling.overview!r}; known: {', '.join(OVERVIEWS)}",
         tiling.overview in OVERVIEWS),
        (f"order: {tiling.order!r}; known: {', '.join(ORDERS)}", tiling.order in ORDERS),
        ("grids: must be empty for longest-edge" if by_edge else "grids: is empty",
         bool(tiling.grids) != by_edge),
        (f"grids: each must be two numbers in 1…{MAX_TILES}",
         all(len(g) == 2 and all(1 <= v <= MAX_TILES for v in g) for g in tiling.grids)),
        (f"longest_edge: must be more than image.size and at most {MAX_EDGE}" if by_edge else
         "longest_edge: must be 0 but for longest-edge",
         m.image.size < tiling.longest_edge <= MAX_EDGE if by_edge else tiling.longest_edge == 0),
        ("order: rows-unpadded needs best-fit, which pads",
         tiling.order != "rows-unpadded" or tiling.choose == "best-fit"),
        ("uncut_pixels: needs image.free, and must not be negative",
         tiling.uncut_pixels == 0 or (tiling.uncut_pixels > 0 and m.image.free is not None)),
        ("choose: most-across needs [1, 1] among the grids",
         tiling.choose != "most-across" or [1, 1] in tiling.grids),
        (f"overview_filter: {tiling.overview_filter!r}; known: bicubic",
         tiling.overview_filter in OVERVIEW_FILTERS),
        ("overview_filter: not with image.free or image.second_fill",
         not tiling.overview_filter or not (m.image.free or m.image.second_fill)),
        ("choose: by-pixels needs image.free, and no uncut_pixels",
         tiling.choose != "by-pixels" or (m.image.free is not None and not tiling.uncut_pixels)),
    ]  # fmt: skip
    faults = [f"image.tiling.{text}" for text, holds in checks if not holds]
    if not faults and m.image.size >= 1:
        max_tiles = _max_tiles(m.image.size, tiling)
        if not max_tiles == m.image.max_tiles <= MAX_TILES:
            faults.append(
                f"image.max_tiles: {m.image.max_tiles}, but the tiling makes {max_tiles}; at most "
                f"{MAX_TILES} are supported"
            )
    faults += _learned_row_faults(m, tiling)
    markers = m.prompts.markers
    if (
        markers is not None
        and tiling.order != "tiles"
        and any((markers.before_tile, markers.after_tile, markers.after_row, markers.between_rows))
    ):
        faults.append(
            "prompts.markers: before_tile, after_tile, after_row and between_rows need "
            "image.tiling.order tiles"
        )
    if m.vision.drop_first_patch and tiling.order != "tiles":
        faults.append("vision.drop_first_patch: breaks the rows of image.tiling.order")
    return faults


def _learned_row_faults(m: Manifest, tiling: Tiling) -> list[str]:
    """Return the faults of the graph's outputs that stand between patches."""
    vision, faults = m.vision, []
    outputs = {"newline": vision.newline, "separator": vision.separator}
    for name in filter(outputs.get, outputs):
        if tiling.order == "tiles":
            faults.append(f"vision.{name}: needs image.tiling.order rows or rows-unpadded")
        if outputs[name] == vision.output:
            faults.append(f"vision.{name}: is vision.output")
    if vision.separator and vision.separator == vision.newline:
        faults.append("vision.separator: is vision.newline")
    if tiling.overview_lines and not vision.newline:
        faults.append("image.tiling.overview_lines: needs vision.newline")
    return faults


def _max_tiles(size: int, tiling: Tiling) -> int:
    """Return the most tiles, with the overview, that `tiling` cuts a picture into."""
    if tiling.choose == "longest-edge":
        return 1 + math.ceil(tiling.longest_edge / size) ** 2
    largest = max(down * across for down, across in tiling.grids)
    return 1 if largest == 1 and tiling.choose == "closest-ratio" else 1 + largest


def _free_faults(m: Manifest) -> list[str]:
    free, image, vision = m.image.free, m.image, m.vision
    if free is None:
        return ["image.free: is missing for the mode free"] if image.mode == "free" else []
    checks = [
        ("free", image.mode == "free", "is for the mode free"),
        (
            "free.choose",
            free.choose in FREE_SHAPES,
            f"{free.choose!r}; known: {', '.join(FREE_SHAPES)}",
        ),
        ("free.unit", 1 <= free.unit <= MAX_EDGE, f"must lie in 1…{MAX_EDGE}"),
        (
            "free.most_pixels",
            free.unit**2 <= free.most_pixels <= MAX_EDGE**2,
            f"must have room for a unit, and be at most {MAX_EDGE}²",
        ),
        (
            "free.least_pixels",
            1 <= free.least_pixels <= free.most_pixels,
            "must be positive and at most most_pixels",
        ),
        ("free.tokens", 0 <= free.tokens <= MAX_GRID, f"must lie in 0…{MAX_GRID}"),
        (
            "free.canvas",
            _is_canvas(free) if free.choose == "shrink-to-fit" else not free.canvas,
            "must be a width and a height of whole units, with most_pixels between them, for "
            "shrink-to-fit, and empty for other shapes",
        ),
        (
            "tiling",
            image.tiling is None
            or (
                image.tiling.choose == FREE_SHAPES.get(free.choose, image.tiling.choose)
                and image.tiling.order == "tiles"
            ),
            f"needs the choice {FREE_SHAPES.get(free.choose, 'of its own')} and the order tiles "
            f"for the shapes {free.choose}",
        ),
    ]
    faults = [f"image.{path}: {text}" for path, holds, text in checks if not holds]
    if vision.drop_first_patch:
        faults.append("vision.drop_first_patch: not for the mode free")
    if faults:
        return faults
    if free.choose == "shrink-to-fit":
        edge = min(free.canvas) // free.unit
    else:
        pixels = free.least_pixels if free.choose == "equal-area" else free.most_pixels
        edge = math.isqrt(pixels) // free.unit
    if image.size != edge * free.unit:
        faults.append(
            f"image.size: {image.size}, but the largest square tile has {edge * free.unit}"
        )
    grid = [1, free.tokens] if free.tokens else [edge, edge]
    if vision.grid != grid:
        faults.append(f"vision.grid: {vision.grid}, but the largest square tile has {grid}")
    return faults


def _is_canvas(free: FreeShape) -> bool:
    edges = free.canvas
    whole = all(0 < edge <= MAX_EDGE and edge % free.unit == 0 for edge in edges)
    return len(edges) == 2 and whole and edges[0] * edges[1] == free.most_pixels


def _tokens_of_tile(m: Manifest) -> int:
    """Return the visual tokens of a tile, or of the largest one where shapes are free."""
    if m.image.free is not None:
        return m.image.free.tokens or m.image.free.most_pixels // max(1, m.image.free.unit) ** 2
    return m.vision.grid[0] * m.vision.grid[1] - int(m.vision.drop_first_patch)


def _graph_faults(m: Manifest) -> list[str]:
    vision, faults = m.vision, []
    if m.image.mode == "shrink":
        faults.append("image.mode: shrink, but the graph takes squares")
    # a decoder's rows have their own width, which its second graph takes
    if vision.n_embd != m.lm.n_embd and m.lm.decoder is None:
        faults.append("vision.n_embd: differs from lm.n_embd")
    longest = MAX_UNPLACED if _is_unplaced(m) else MAX_GRID
    if len(vision.grid) != 2 or not all(1 <= v <= longest for v in vision.grid):
        return [*faults, f"vision.grid: must be two numbers in 1…{longest}"]
    expected = _tokens_of_tile(m)
    if vision.tokens_per_tile != expected:
        source = "grid makes" if m.image.free is None else "largest tile has"
        faults.append(
            f"vision.tokens_per_tile: {vision.tokens_per_tile}, but the {source} {expected}"
        )
    return faults


def _file_faults(m: Manifest, quants: tuple[str, ...]) -> list[str]:
    """Return the faults of the files and variants; `quants` are the known ones, empty: any."""
    faults = []
    earlier: set[str] = set()
    for i, variant in enumerate(m.vision.variants):
        if quants and variant.quant not in quants:
            known = ", ".join(quants)
            faults.append(f"vision.variants[{i}].quant: {variant.quant!r}; known: {known}")
        if variant.quant in earlier:
            faults.append(f"vision.variants[{i}].quant: {variant.quant!r} is listed twice")
        if variant.file.lower().endswith(".ort"):
            faults.append(
                f"vision.variants[{i}].file: {variant.file!r} is no name of an ONNX graph"
            )
        earlier.add(variant.quant)
        if variant.file not in m.files:
            faults.append(f"vision.variants[{i}].file: {variant.file!r} is not among files")
    faults += connector_faults(m)
    for name, entry in m.files.items():
        if not _is_plain(name):
            faults.append(f"files.{name}: must be a plain file name inside the bundle")
        if len(entry.sha256) != 64 or set(entry.sha256) - set("0123456789abcdef"):
            faults.append(f"files.{name}.sha256: must be 64 lower-case hexadecimal digits")
        if entry.size < 0:
            faults.append(f"files.{name}.size: is negative")
    return faults


def _is_plain(name: str) -> bool:
    """Return whether no system takes `name` for a folder, a drive or a path out of the bundle."""
    if PurePosixPath(name).name != name or name in ("", "..", FILE_NAME):
        return False
    # refuse control characters, and halves of UTF-16 pairs, which file systems cannot store
    return not any(c in "\\:" or c < " " or "\ud800" <= c <= "\udfff" for c in name)
