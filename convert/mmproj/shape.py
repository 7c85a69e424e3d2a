"""The header of an mmproj file → the dimensions of its encoder, or why no graph is built for it.

Key names and defaults: llama.cpp's `tools/mtmd/clip.cpp` and `clip-impl.h`, of the version in
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.bundle.gguf import Array, GgufHeader
from edgeprism.bundle.manifest import MAX_EDGE
from edgeprism.errors import NoGraphError
from edgeprism.vision.mmproj_checks import projector_of

LEAVE_IT = "Leave the encoder to llama.cpp: `encoder` mtmd."
PROJECTORS = ("gemma3", "idefics3", "internvl", "mlp")
_OWN_SHAPE = "it takes each picture at a shape of its own, and a bundle's graph takes squares"
_IN_SPACE = f"{_OWN_SHAPE}; its rows also have positions in time, down and across"
# Projectors that are met often, and why libmtmd keeps them
_WHY_NOT = {
    "lfm2": _OWN_SHAPE,
    "resampler": _OWN_SHAPE,
    "minicpmv4_6": _OWN_SHAPE,
    "pixtral": _OWN_SHAPE,
    "kimivl": _OWN_SHAPE,
    "qwen2vl_merger": _IN_SPACE,
    "qwen2.5vl_merger": _IN_SPACE,
    "qwen3vl_merger": _IN_SPACE,
    "glm4v": _IN_SPACE,
    "ldp": "its convolutions are not among the graph's parts",
    "ldpv2": "its convolutions are not among the graph's parts",
}
# The large InternViT alone has root-mean-square norms, and no key says so: libmtmd tells it by this
_RMS_TOWER = (3200, 45)
_MERGE = {"gemma3": 4}  # where the file does not say; 1 for other projectors
_INTERNVL_TILES = (1, 12)
_MOST_WEIGHTS = 1_900_000_000  # in int8: a protobuf message ends at 2 GiB


@dataclass(frozen=True)
class EncoderShape:
    """The dimensions of a tower and its projector.

    Parameters:
        n_layers: the layers that run; a file may hold one more.
        activation: of the tower's layers: "gelu" (erf), "gelu_tanh" or "quick_gelu".
        merge: a visual token joins merge × merge patches.
        class_row: whether a learned row stands before the patches.
        rms: whether the tower's norms are root-mean-square norms.
        longest_edge: of a picture before it is cut, for Idefics3; else 0.
        tiles: the least and the most tiles of a picture, for InternVL; else (1, 1).
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

    The file says GELU or quick GELU. Of the towers here only InternViT has the erf form.
    """
    if header.metadata.get("clip.use_gelu") is not True:
        return "quick_gelu"
    return "gelu" if projector == "internvl" else "gelu_tanh"


def _obstacles(header: GgufHeader, projector: str) -> Iterator[str]:
    """Yield what a file of a known projector has that the graph has no place for."""
    vision = _Vision(header)
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
    width, n_ffn = vision.number("embedding_length"), vision.number("feed_forward_length")
    if vision.number("block_count") * width * (4 * width + 2 * n_ffn) > _MOST_WEIGHTS:
        yield "its tower has more weights than an ONNX file can hold"
    if header.metadata.get("clip.use_silu") is True:
        yield "its tower uses SiLU"
    if not isinstance(header.metadata.get("clip.vision.attention.layer_norm_epsilon"), float):
        yield "it does not say the epsilon of its norms"
    if min(vision.colour("image_std")) <= 0:
        yield "its image_std is not positive"
    if projector == "idefics3":
        longest = vision.number("preproc_image_size")
        if not size < longest <= MAX_EDGE or longest % size:
            yield (
                f"a picture's longest edge becomes {longest or 'nothing known'} pixels, which are "
                f"no whole tiles of {size}; files of older converters do not say it"
            )
    if projector == "internvl" and "v.class_embd" not in header.tensors:
        yield "its tower has no class row"
    if projector == "mlp":
        yield from _obstacles_of_llava(header, vision)


def _obstacles_of_llava(header: GgufHeader, vision: _Vision) -> Iterator[str]:
    if "mm.2.weight" not in header.tensors or "mm.3.weight" in header.tensors:
        yield "its projector has another number of layers than two"
    if vision.get("image_grid_pinpoints") is not None or "v.image_newline" in header.tensors:
        yield "it cuts pictures into tiles (`edgeprism convert llava-next` reads published models)"
    if len(vision.numbers("feature_layer")) > 1:
        yield "it joins the features of several layers"
