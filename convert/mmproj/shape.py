"""The header of an mmproj file → the dimensions of its encoder, or why no graph is built for it.

Key names and defaults: llama.cpp's `tools/mtmd/clip.cpp` and `clip-impl.h`, of the version in
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.bundle.gguf import Array, GgufHeader
from edgeprism.bundle.manifest import MAX_EDGE
from edgeprism.errors import NoGraphError
from edgeprism.vision.mmproj_checks import projector_of

LEAVE_IT = "Leave the encoder to llama.cpp: `encoder` mtmd."
# each picture has a shape of its own, and patches have rotary positions down and across
_ROTATING = ("qwen2.5vl_merger", "qwen2vl_merger")
PROJECTORS = ("gemma3", "idefics3", "internvl", "lfm2", "mlp", *_ROTATING)
_OWN_SHAPE = "it takes each picture at a shape of its own, and nobody has written its graph"
# Projectors that are met often, and why libmtmd keeps them
_WHY_NOT = {
    "resampler": _OWN_SHAPE,
    "minicpmv4_6": _OWN_SHAPE,
    "pixtral": _OWN_SHAPE,
    "kimivl": _OWN_SHAPE,
    "qwen3vl_merger": _OWN_SHAPE,
    "glm4v": _OWN_SHAPE,
    "ldp": "its convolutions are not among the graph's parts",
    "ldpv2": "its convolutions are not among the graph's parts",
}
# The large InternViT alone has root-mean-square norms, and no key says so: libmtmd tells it by this
_RMS_TOWER = (3200, 45)
_MERGE = {"gemma3": 4}  # where the file does not say; 1 for other projectors
_INTERNVL_TILES = (1, 12)
_MERGED = 2  # Qwen's visual tokens join 2 × 2 patches
_FREE_TOKENS = (8, 4096)  # the least and the most of a picture, as llama.cpp bounds them
# LFM2-VL: edge of a tile, the least and the most tiles, the least and most tokens of the overview
_LFM2_TILE, _LFM2_TILES, _LFM2_TOKENS = 512, (2, 10), (64, 256)
_WINDOW_PIXELS = 112  # edge of a window of Qwen2.5-VL's attention; no key says it
_MOST_WEIGHTS = 1_900_000_000  # in int8: a protobuf message ends at 2 GiB


@dataclass(frozen=True)
class EncoderShape:
    """The dimensions of a tower and its projector.

    Parameters:
        n_layers: the layers that run; a file may hold one more.
        size: edge of a tile in pixels; of the largest square one where shapes are free.
        activation: of the tower's layers: "gelu" (erf), "gelu_tanh", "quick_gelu" or "silu".
        merge: a visual token joins merge × merge patches.
        class_row: whether a learned row stands before the patches.
        rms: whether the tower's norms are root-mean-square norms.
        longest_edge: of a picture before it is cut, for Idefics3; else 0.
        tiles: the least and the most tiles of a picture that is cut, for InternVL and LFM2-VL;
            else (1, 1).
        free_tokens: the least and the most visual tokens of a tile whose shape follows the
            picture's; (0, 0) where all tiles are squares of one size.
        table: edge in patches of the learned positions, where it differs from a tile's; else 0.
        rotates: whether patches have rotary positions, down and across, instead of learned ones.
        window: visual tokens along an edge of a window of attention; 0 without windows.
        full_every: each layer of this number attends to all patches, the others in windows.
    """

    projector: str
    size: int
    patch: int
    width: int
    heads: int
    n_layers: int
    eps: float
    activation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    merge: int
    class_row: bool
    rms: bool
    longest_edge: int
    tiles: tuple[int, int]
    free_tokens: tuple[int, int] = (0, 0)
    table: int = 0
    rotates: bool = False
    window: int = 0
    full_every: int = 1

    @property
    def is_free(self) -> bool:
        """Whether a tile's shape follows the picture's."""
        return self.free_tokens[1] > 0

    @property
    def unit(self) -> int:
        """Pixels along an edge of what becomes one visual token."""
        return self.patch * self.merge

    @property
    def grid(self) -> int:
        """Patches along an edge; pixels beyond the last whole patch are dropped."""
        return self.size // self.patch

    @property
    def side(self) -> int:
        """Visual tokens along an edge."""
        return self.grid // self.merge


def why_no_graph(header: GgufHeader) -> str:
    """Return why libmtmd has to run this mmproj file, or "" if a graph can be built."""
    projector = projector_of(header)
    if projector not in PROJECTORS:
        other = "it is none that a graph is built for"
        return f"its projector is {projector}: {_WHY_NOT.get(projector, other)}"
    return next(_obstacles(header, projector), "")


def read_shape(path: Path, header: GgufHeader) -> EncoderShape:
    """Return the encoder's dimensions; raises NoGraphError with the reason if it has no graph."""
    if reason := why_no_graph(header):
        raise NoGraphError(
            f"{path}: no ONNX graph is built for it: {reason}.",
            LEAVE_IT,
        )
    projector, vision = projector_of(header), _Vision(header)
    if projector in _ROTATING:
        return _rotating_shape(header, vision, projector)
    if projector == "lfm2":
        return _lfm2_shape(header, vision)
    width, n_layers = vision.number("embedding_length"), vision.number("block_count")
    least, most = _INTERNVL_TILES if projector == "internvl" else (1, 1)
    return EncoderShape(
        projector=projector,
        size=vision.number("image_size"),
        patch=vision.number("patch_size"),
        width=width,
        heads=vision.number("attention.head_count"),
        n_layers=_used_layers(vision, n_layers) if projector == "mlp" else n_layers,
        eps=float(header.metadata["clip.vision.attention.layer_norm_epsilon"]),
        activation=_activation(header, projector),
        mean=vision.colour("image_mean"),
        std=vision.colour("image_std"),
        merge=_merge(vision, projector),
        class_row="v.class_embd" in header.tensors,
        rms=(width, n_layers) == _RMS_TOWER,
        longest_edge=vision.number("preproc_image_size") if projector == "idefics3" else 0,
        tiles=(
            vision.number("preproc_min_tiles", least),
            vision.number("preproc_max_tiles", most),
        ),
    )


def _rotating_shape(header: GgufHeader, vision: _Vision, projector: str) -> EncoderShape:
    """Return the dimensions of Qwen2-VL's or Qwen2.5-VL's encoder."""
    patch = vision.number("patch_size")
    full_every = vision.number("n_wa_pattern") if projector == "qwen2.5vl_merger" else 0
    return EncoderShape(
        projector=projector,
        size=_largest_square(patch),
        patch=patch,
        width=vision.number("embedding_length"),
        heads=vision.number("attention.head_count"),
        n_layers=vision.number("block_count"),
        eps=float(header.metadata["clip.vision.attention.layer_norm_epsilon"]),
        activation=_activation(header, projector),
        mean=vision.colour("image_mean"),
        std=vision.colour("image_std"),
        merge=_MERGED,
        class_row=False,
        rms=projector == "qwen2.5vl_merger",
        longest_edge=0,
        tiles=(1, 1),
        free_tokens=_FREE_TOKENS,
        rotates=True,
        window=_WINDOW_PIXELS // (patch * _MERGED) if full_every else 0,
        full_every=full_every or 1,
    )


def _lfm2_shape(header: GgufHeader, vision: _Vision) -> EncoderShape:
    """Return the dimensions of LFM2-VL's encoder; the file does not say how pictures are cut."""
    patch = vision.number("patch_size")
    return EncoderShape(
        projector="lfm2",
        size=_LFM2_TILE,
        patch=patch,
        width=vision.number("embedding_length"),
        heads=vision.number("attention.head_count"),
        n_layers=vision.number("block_count"),
        eps=float(header.metadata["clip.vision.attention.layer_norm_epsilon"]),
        activation=_activation(header, "lfm2"),
        mean=vision.colour("image_mean"),
        std=vision.colour("image_std"),
        merge=_merge(vision, "lfm2"),
        class_row=False,
        rms=False,
        longest_edge=0,
        tiles=_LFM2_TILES,
        free_tokens=_LFM2_TOKENS,
        table=vision.number("image_size") // patch,
    )


def _largest_square(patch: int) -> int:
    return math.isqrt(_FREE_TOKENS[1]) * patch * _MERGED


class _Vision:
    """The metadata whose keys begin with `clip.vision.`."""

    def __init__(self, header: GgufHeader) -> None:
        self._metadata = header.metadata

    def get(self, name: str) -> object:
        return self._metadata.get(f"clip.vision.{name}")

    def number(self, name: str, default: int = 0) -> int:
        value = self.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def colour(self, name: str) -> tuple[float, ...]:
        value: Any = self.get(name)
        return tuple(float(v) for v in value.items[:3])

    def numbers(self, name: str) -> tuple[int, ...]:
        value = self.get(name)
        return tuple(value.items) if isinstance(value, Array) else ()


def _merge(vision: _Vision, projector: str) -> int:
    return vision.number("projector.scale_factor", _MERGE.get(projector, 1))


def _used_layers(vision: _Vision, n_layers: int) -> int:
    """LLaVA takes the features before the last layer, unless the file names another layer."""
    layers = vision.numbers("feature_layer")
    return max(layers) if layers else n_layers - 1


def _activation(header: GgufHeader, projector: str) -> str:
    """Return the activation that the model was trained with.

    The file says GELU, SiLU or, with neither, quick GELU. Of the towers here only InternViT has
    the erf form of GELU.
    """
    if header.metadata.get("clip.use_silu") is True:
        return "silu"
    if header.metadata.get("clip.use_gelu") is not True:
        return "quick_gelu"
    return "gelu" if projector == "internvl" else "gelu_tanh"


def _obstacles(header: GgufHeader, projector: str) -> Iterator[str]:
    """Yield what a file of a known projector has that the graph has no place for."""
    vision = _Vision(header)
    if projector in _ROTATING:
        yield from _obstacles_of_rotating(vision)
    elif projector == "lfm2":
        yield from _obstacles_of_lfm2(header, vision)
    else:
        yield from _obstacles_of_squares(header, vision, projector)
    width, n_ffn = vision.number("embedding_length"), vision.number("feed_forward_length")
    if vision.number("block_count") * width * (4 * width + 2 * n_ffn) > _MOST_WEIGHTS:
        yield "its tower has more weights than an ONNX file can hold"
    if not isinstance(header.metadata.get("clip.vision.attention.layer_norm_epsilon"), float):
        yield "it does not say the epsilon of its norms"
    if min(vision.colour("image_std")) <= 0:
        yield "its image_std is not positive"
    if projector == "internvl" and "v.class_embd" not in header.tensors:
        yield "its tower has no class row"
    if projector == "mlp":
        yield from _obstacles_of_llava(header, vision)


def _obstacles_of_squares(header: GgufHeader, vision: _Vision, projector: str) -> Iterator[str]:
    size, patch, merge = (
        vision.number("image_size"),
        vision.number("patch_size"),
        _merge(vision, projector),
    )
    if not 1 <= patch <= size <= MAX_EDGE:
        yield f"it takes tiles of {size} pixels in patches of {patch}"
        return
    if merge < 1 or (size // patch) % merge:
        yield f"its {size // patch} patches along an edge cannot be joined by {merge}"
    if header.metadata.get("clip.use_silu") is True:
        yield "its tower uses SiLU"
    if projector == "idefics3":
        longest = vision.number("preproc_image_size")
        if not size < longest <= MAX_EDGE or longest % size:
            yield (
                f"a picture's longest edge becomes {longest or 'nothing known'} pixels, which are "
                f"no whole tiles of {size}; files of older converters do not say it"
            )


def _obstacles_of_rotating(vision: _Vision) -> Iterator[str]:
    patch, heads = vision.number("patch_size"), vision.number("attention.head_count")
    if patch < 1 or _largest_square(patch) > MAX_EDGE:
        yield f"it takes patches of {patch} pixels"
        return
    if vision.number("spatial_merge_size", _MERGED) != _MERGED:
        yield f"it joins {vision.number('spatial_merge_size')} patches along an edge, not {_MERGED}"
    if heads < 1 or vision.number("embedding_length") % (4 * heads):
        yield f"its width cannot be shared by {heads} heads of four parts each"
    if patch * _MERGED > _WINDOW_PIXELS:
        yield f"a window of {_WINDOW_PIXELS} pixels has no room for its patches"


def _obstacles_of_lfm2(header: GgufHeader, vision: _Vision) -> Iterator[str]:
    patch, merge = vision.number("patch_size"), _merge(vision, "lfm2")
    if patch < 1 or patch * merge * math.isqrt(_LFM2_TOKENS[1]) != _LFM2_TILE:
        yield (
            f"its visual tokens join {merge} × {merge} patches of {patch} pixels, of which a tile "
            f"of {_LFM2_TILE} pixels has no {_LFM2_TOKENS[1]}"
        )
    if header.metadata.get("clip.use_silu") is True:
        yield "its tower uses SiLU"


def _obstacles_of_llava(header: GgufHeader, vision: _Vision) -> Iterator[str]:
    if "mm.2.weight" not in header.tensors or "mm.3.weight" in header.tensors:
        yield "its projector has another number of layers than two"
    if vision.get("image_grid_pinpoints") is not None or "v.image_newline" in header.tensors:
        yield "it cuts pictures into tiles (`edgeprism convert llava-next` reads published models)"
    if len(vision.numbers("feature_layer")) > 1:
        yield "it joins the features of several layers"
