"""The header of an mmproj file, checked in Python before libmtmd opens the file.

libmtmd reports an unknown projector or a missing tensor as an error. But it does not check
everything: heads that do not divide the width, or a layer without attention weights, end the
process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeprism.bundle.gguf import Array, GgufHeader, read_gguf_header
from edgeprism.bundle.read_manifest import MAX_TILES
from edgeprism.errors import ModelError

ARCHITECTURE = "clip"
_LIMITS = {
    "image_size": 8192,
    "patch_size": 1024,
    "embedding_length": 65536,
    "block_count": 512,
    "attention.head_count": 1024,
    "feed_forward_length": 1 << 20,
}
# Projectors whose rows have positions in time, down and across (M-RoPE). llama.cpp's converters
# write them only for language models with such positions; with any other language model llama.cpp
# counts the rows one by one, without an error.
_MULTI_AXIS = ("qwen2vl_merger", "qwen2.5vl_merger", "qwen2.5o", "qwen3vl_merger", "glm4v",
               "paddleocr")  # fmt: skip
# Projectors whose published language models count the rows one by one.
_ONE_AXIS = ("adapter", "gemma3", "idefics3", "internvl", "ldp", "ldpv2", "lfm2", "llama4", "mlp",
             "pixtral", "resampler")  # fmt: skip
# MiniCPM-V's projector, its queries [queries, width] by one name, and their number in the header,
# where 0 stands for the number that follows from the version
_RESAMPLER, _QUERY, _QUERY_COUNT = "resampler", "resampler.query", "clip.minicpmv_query_num"
_F32, _INTEGERS = 0, {24, 25, 26, 27}
# {llama.cpp's architecture: how its answers differ from those of the published model}. Sources:
# llama.cpp's `src/models/cogvlm.cpp` and `tools/mtmd/mtmd.cpp`, the published `modeling_cogvlm.py`
_DEPARTURES = {
    "cogvlm": "llama.cpp's answers differ from the published model's: it counts a picture's rows "
    "one by one, where all patches have one position, and takes the vision expert for the row "
    "behind them, which belongs to the language expert; `edgeprism convert` keeps both"
}
_OF_ANOTHER = "Use the mmproj file that was made for this language model."
_HINT = "Copy or download the mmproj file again."


def check_mmproj(path: Path, n_embd: int) -> GgufHeader:
    """Read and check the header of an mmproj file whose rows have the width `n_embd`.

    Raises ModelError, which names the file, if it is damaged, of another kind or another width.
    """
    header = read_gguf_header(path)
    if header.architecture != ARCHITECTURE:
        raise ModelError(
            f"{path}: not an mmproj file but a model of architecture {header.architecture!r}.",
            "`lm` takes the language model, `mmproj` the file with the vision tower.",
        )
    if header.metadata.get("clip.has_vision_encoder") is not True:
        raise ModelError(f"{path}: has no vision encoder.", "Use an mmproj file for pictures.")
    if not projector_of(header):
        raise ModelError(f"{path}: does not name its projector.", _HINT)
    if faults := list(_faults(header)):
        raise ModelError(f"{path}: cannot be run: it has {'; '.join(faults)}.", _HINT)
    _check_width(path, header, n_embd)
    return header


def _check_width(path: Path, header: GgufHeader, n_embd: int) -> None:
    width = header.metadata.get("clip.vision.projection_dim")
    widths = {shape[1] for shape in header.tensors.values() if len(shape) == 2}
    if shape := _query_shape(header):  # llama.cpp's converter writes a width of 0 beside it
        width, widths = shape[0], set()
    if width != n_embd and n_embd not in widths:
        raise ModelError(
            f"{path}: makes visual tokens of width {width}, but the language model takes {n_embd}.",
            _OF_ANOTHER,
        )


def departure_of(lm: GgufHeader) -> str:
    """Return how llama.cpp's answers differ from the published model's; "" if it is not known to.

    `lm` is the language model's header.
    """
    return _DEPARTURES.get(lm.architecture, "")


def check_positions(path: Path, header: GgufHeader, lm: Path, multi_axis: bool) -> None:
    """Raise ModelError if the rows of the mmproj file need positions that `lm` does not have.

    `multi_axis`: whether the language model's rows have positions in time, down and across.
    """
    projector = projector_of(header)
    if projector in _MULTI_AXIS and not multi_axis:
        raise ModelError(
            f"{path}: its projector {projector} places visual tokens in time, down and across "
            f"(M-RoPE), but {lm} counts positions one by one.",
            "Use the language model that this mmproj file was made for: the vision-language "
            "model's own, not the text model that it grew from.",
        )


def unknown_positions(path: Path, lm: Path) -> ModelError:
    """Return the error for rows that get no positions as M-RoPE has them, which `lm` needs."""
    projector = projector_of(read_gguf_header(path))
    if projector in _ONE_AXIS:
        return ModelError(
            f"{path}: its projector {projector} places visual tokens one by one, but {lm} counts "
            "positions in time, down and across (M-RoPE).",
            _OF_ANOTHER,
        )
    return ModelError(
        f"{path}: places rows in a way that EdgePrism does not know.",
        "Run it with llama.cpp's own tools.",
    )


def row_width(header: GgufHeader) -> int:
    """Return the width of the rows that a language model takes; later layers may add some."""
    layers = header.metadata.get(f"{header.architecture}.n_deepstack_layers", 0)
    return header.n_embd * (1 + (layers if isinstance(layers, int) else 0))


def projector_of(header: GgufHeader) -> str:
    """Return the projector's name in the file, or "" if there is none."""
    for key in ("clip.projector_type", "clip.vision.projector_type"):
        name = header.metadata.get(key)
        if isinstance(name, str) and name:
            return name
    return ""


def _query_shape(header: GgufHeader) -> tuple[int, ...]:
    """Return (width, queries) of MiniCPM-V's learned queries; () if there are none."""
    shape = header.tensors.get(_QUERY, ())
    return shape if projector_of(header) == _RESAMPLER and len(shape) == 2 else ()


def _faults(header: GgufHeader) -> Iterator[str]:
    numbers: dict[str, int] = {}
    for name, limit in _LIMITS.items():
        value: Any = header.metadata.get(f"clip.vision.{name}")
        least = 1 if name == "block_count" else 0
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= limit:
            yield f"{name} {value!r} (known: {least}…{limit})"
        else:
            numbers[name] = value
    width, heads = numbers.get("embedding_length", 0), numbers.get("attention.head_count", 0)
    has_head_width = "clip.vision.attention.head_dim" in header.metadata
    if heads and width % heads and not has_head_width:
        yield f"a width of {width}, which {heads} heads cannot share evenly"
    if numbers.get("patch_size") == 0:
        yield "patches of no size"
    yield from _grid_faults(header, numbers.get("image_size", 0))
    said, shape = header.metadata.get(_QUERY_COUNT), _query_shape(header)
    if shape and said not in (None, 0, shape[1]):
        yield f"{shape[1]} rows in {_QUERY}, {said} in the header"
    for name in ("image_mean", "image_std"):
        values = header.metadata.get(f"clip.vision.{name}")
        if not isinstance(values, Array) or len(values.items) < 3:
            yield f"no {name} of three channels"
    yield from _tensor_faults(header, width)


def _grid_faults(header: GgufHeader, size: int) -> Iterator[str]:
    """Yield a fault if one of the sizes that pictures are cut from has too many tiles."""
    name = "image_grid_pinpoints"
    grids = header.metadata.get(f"clip.vision.{name}")
    if grids is None:
        return
    edges = grids.items if isinstance(grids, Array) else ()
    whole = [edge for edge in edges if isinstance(edge, int) and not isinstance(edge, bool)]
    if not whole or len(whole) != len(edges) or len(whole) % 2 or size < 1:
        yield f"{name} that are no pairs of whole numbers"
        return
    pairs = list(zip(whole[::2], whole[1::2], strict=True))
    if any(min(pair) < 1 or (pair[0] // size) * (pair[1] // size) > MAX_TILES for pair in pairs):
        yield f"{name} of more than {MAX_TILES} tiles"


def _tensor_faults(header: GgufHeader, width: int) -> Iterator[str]:
    for name, kind in header.tensor_types.items():
        if kind in _INTEGERS and name.endswith((".weight", ".bias")):
            yield f"a tensor {name} with whole numbers"
        elif kind != _F32 and len(header.tensors[name]) == 1 and name.startswith("v.blk."):
            yield f"a tensor {name} that is not F32"
    layers = {match[1] for name in header.tensors if (match := re.match(r"v\.blk\.(\d+)\.", name))}
    for layer in sorted(layers, key=int):
        fused = f"v.blk.{layer}.attn_qkv.weight" in header.tensors
        missing = [part for part in "qkv"
                   if f"v.blk.{layer}.attn_{part}.weight" not in header.tensors]  # fmt: skip
        if missing and not fused:
            yield f"no attention weights {', '.join(missing)} in layer {layer}"
        for part in () if fused else "qkv":
            shape = header.tensors.get(f"v.blk.{layer}.attn_{part}.weight", (width,))
            if width and shape[0] != width:
                name = f"v.blk.{layer}.attn_{part}.weight"
                yield f"a tensor {name} of shape {list(shape)}, not {width} wide"
