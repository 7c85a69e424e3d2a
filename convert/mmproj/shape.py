"""The header of an mmproj file → the dimensions of its encoder.

Key names and defaults: llama.cpp's `tools/mtmd/clip.cpp` and `clip-impl.h`, of the version in
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeprism.bundle.gguf import GgufHeader
from edgeprism.convert.mmproj.header import (
    FREE_TOKENS,
    LFM2_TILE,
    LFM2_TOKENS,
    MERGED,
    ROTATING,
    WINDOW_PIXELS,
    VisionKeys,
    largest_square,
    merge_of,
    minicpm_version,
)
from edgeprism.convert.mmproj.obstacles import why_no_graph
from edgeprism.errors import NoGraphError
from edgeprism.vision.mmproj_checks import projector_of

LEAVE_IT = "Leave the encoder to llama.cpp: `encoder` mtmd."
# The large InternViT alone has root-mean-square norms, and no key says so: libmtmd tells it by this
_RMS_TOWER = (3200, 45)
# the least and the most tiles of a picture that is cut
_INTERNVL_TILES, _LFM2_TILES, _MINICPM_TILES = (1, 12), (2, 10), (2, 9)
_MINICPM_TABLE = 70  # edge in patches of the learned positions; no key says it


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
        tiles: the least and the most tiles of a picture that is cut, for InternVL, LFM2-VL and
            MiniCPM-V; else (1, 1).
        free_tokens: the least and the most visual tokens of a tile whose shape follows the
            picture's, with `queries` its patches; (0, 0) where all tiles are squares of one size.
        table: edge in patches of the learned positions, where it differs from a tile's; else 0.
        rotates: whether patches have rotary positions, down and across, instead of learned ones.
        window: visual tokens along an edge of a window of attention; 0 without windows.
        full_every: each layer of this number attends to all patches, the others in windows.
        queries: visual tokens of each tile where a resampler makes them; else 0.
        version: of MiniCPM-V, as llama.cpp counts them; 0 for other models.
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
    queries: int = 0
    version: int = 0

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


def read_shape(path: Path, header: GgufHeader) -> EncoderShape:
    """Return the encoder's dimensions; raises NoGraphError with the reason if it has no graph."""
    if reason := why_no_graph(header):
        raise NoGraphError(
            f"{path}: no ONNX graph is built for it: {reason}.",
            LEAVE_IT,
        )
    projector, vision = projector_of(header), VisionKeys(header)
    if projector in ROTATING:
        return _rotating_shape(header, vision, projector)
    if projector == "lfm2":
        return _lfm2_shape(header, vision)
    if projector == "resampler":
        return _minicpm_shape(header, vision)
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
        merge=merge_of(vision, projector),
        class_row="v.class_embd" in header.tensors,
        rms=(width, n_layers) == _RMS_TOWER,
        longest_edge=vision.number("preproc_image_size") if projector == "idefics3" else 0,
        tiles=(
            vision.number("preproc_min_tiles", least),
            vision.number("preproc_max_tiles", most),
        ),
    )


def _rotating_shape(header: GgufHeader, vision: VisionKeys, projector: str) -> EncoderShape:
    """Return the dimensions of Qwen2-VL's or Qwen2.5-VL's encoder."""
    patch = vision.number("patch_size")
    full_every = vision.number("n_wa_pattern") if projector == "qwen2.5vl_merger" else 0
    return EncoderShape(
        projector=projector,
        size=largest_square(patch),
        patch=patch,
        width=vision.number("embedding_length"),
        heads=vision.number("attention.head_count"),
        n_layers=vision.number("block_count"),
        eps=float(header.metadata["clip.vision.attention.layer_norm_epsilon"]),
        activation=_activation(header, projector),
        mean=vision.colour("image_mean"),
        std=vision.colour("image_std"),
        merge=MERGED,
        class_row=False,
        rms=projector == "qwen2.5vl_merger",
        longest_edge=0,
        tiles=(1, 1),
        free_tokens=FREE_TOKENS,
        rotates=True,
        window=WINDOW_PIXELS // (patch * MERGED) if full_every else 0,
        full_every=full_every or 1,
    )


def _lfm2_shape(header: GgufHeader, vision: VisionKeys) -> EncoderShape:
    """Return the dimensions of LFM2-VL's encoder; the file does not say how pictures are cut."""
    patch = vision.number("patch_size")
    return EncoderShape(
        projector="lfm2",
        size=LFM2_TILE,
        patch=patch,
        width=vision.number("embedding_length"),
        heads=vision.number("attention.head_count"),
        n_layers=vision.number("block_count"),
        eps=float(header.metadata["clip.vision.attention.layer_norm_epsilon"]),
        activation=_activation(header, "lfm2"),
        mean=vision.colour("image_mean"),
        std=vision.colour("image_std"),
        merge=merge_of(vision, "lfm2"),
        class_row=False,
        rms=False,
        longest_edge=0,
        tiles=_LFM2_TILES,
        free_tokens=LFM2_TOKENS,
        table=vision.number("image_size") // patch,
    )


def _minicpm_shape(header: GgufHeader, vision: VisionKeys) -> EncoderShape:
    """Return the dimensions of MiniCPM-V's encoder; the file does not say how pictures are cut."""
    size, patch = vision.number("image_size"), vision.number("patch_size")
    version, queries = minicpm_version(header)
    square = (size // patch) ** 2
    return EncoderShape(
        projector="resampler",
        size=size,
        patch=patch,
        width=vision.number("embedding_length"),
        heads=vision.number("attention.head_count"),
        n_layers=vision.number("block_count"),
        eps=float(header.metadata["clip.vision.attention.layer_norm_epsilon"]),
        activation=_activation(header, "resampler"),
        mean=vision.colour("image_mean"),
        std=vision.colour("image_std"),
        merge=1,
        class_row=False,
        rms=False,
        longest_edge=0,
        tiles=_MINICPM_TILES,
        free_tokens=(square, square + square // 2),
        table=_MINICPM_TABLE,
        queries=queries,
        version=version,
    )


def _used_layers(vision: VisionKeys, n_layers: int) -> int:
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
