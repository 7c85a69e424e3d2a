"""What a vision encoder takes in memory: a graph of ONNX Runtime's, or an mmproj of libmtmd's."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprism.bundle.gguf import GgufHeader
from edgeprism.memory.parts import CPU, GPU, Part

_FLOAT, _CHANNELS = 4, 3
_TOKENS_AT_ONCE = 1024  # visual tokens of the tiles that libmtmd encodes together
# without weights and activations: above all the pages of their code that are in use
_SESSION_BYTES, _LIBMTMD_BYTES = 13_000_000, 5_000_000
_TILES_ON_GPU = 8
# ONNX Runtime keeps weights that stand in the graph's file twice: as they are read, and laid out
# for its products; of those in a file beside it, it keeps only the latter
_COPIES = 2
# its arena of memory grows by doubling
_ARENA = 2.0


def graph_parts(
    file: str,
    weight_bytes: int,
    beside_bytes: int,
    working_bytes: int,
    picture_bytes: int,
    *,
    on_gpu: bool = False,
    largest: bool = False,
) -> tuple[Part, ...]:
    """Return what ONNX Runtime takes for a vision graph.

    Parameters:
        weight_bytes: the size of the graph's file.
        beside_bytes: the size of the file with weights beside it.
        working_bytes: what stands between its nodes at the most while one tile is encoded.
        picture_bytes: the picture and its tiles, as they are cut.
        largest: whether tiles differ in shape and these are the figures of the largest.
    """
    place = GPU if on_gpu else CPU
    tiles = _TILES_ON_GPU if on_gpu and not largest else 1
    at_a_time = "the largest tile" if largest else f"{tiles} at a time"
    weights = _COPIES * weight_bytes + beside_bytes
    working = int(_ARENA * working_bytes * tiles)
    return (
        Part("vision weights", weights, f"{file}, copied by ONNX Runtime", place),
        Part("vision activations", working, at_a_time, place),
        Part("vision session", _SESSION_BYTES, "code, graph and threads"),
        Part("vision input", picture_bytes, "the picture and its tiles"),
    )


@dataclass(frozen=True)
class EncoderUse:
    """How libmtmd encodes a picture.

    Parameters:
        tokens: visual tokens of the whole picture.
        together: whether several tiles of a picture are encoded at once.
        in_one: whether a picture of any size is encoded as it is, without tiles.
        flash_attention: whether attention keeps no scores.
    """

    tokens: int
    together: bool = False
    in_one: bool = False
    flash_attention: bool = True


def mmproj_parts(
    file: str, header: GgufHeader, use: EncoderUse, *, on_gpu: bool = False
) -> tuple[Part, ...]:
    """Return what libmtmd takes for an mmproj file."""
    place = GPU if on_gpu else CPU
    weights = sum(map(header.tensor_bytes, header.tensors))
    patches = _patches_at_once(header, use)
    working = patches * _floats_of_patch(header, patches, use.flash_attention) * _FLOAT
    return (
        Part("vision weights", weights, f"{file}, read by libmtmd", place),
        Part("vision activations", working, f"{patches} patches at once", place),
        Part("vision session", _LIBMTMD_BYTES, "code, graph and threads"),
        Part("vision input", _input_bytes(header, use), "the picture's tiles, as float numbers"),
    )


def _input_bytes(header: GgufHeader, use: EncoderUse) -> int:
    """Return the bytes of a whole picture as libmtmd prepares it: floats, and the pixels."""
    pixels = use.tokens * _patches_of_token(header) * _number(header, "patch_size") ** 2
    return pixels * _CHANNELS * (_FLOAT + 1)


def _patches_of_token(header: GgufHeader) -> int:
    shrunk = _number(header, "projector.scale_factor") or _number(header, "spatial_merge_size")
    return max(1, shrunk) ** 2


def _patches_at_once(header: GgufHeader, use: EncoderUse) -> int:
    """Return the patches that go through the encoder together."""
    per_token = _patches_of_token(header)
    whole = use.tokens * per_token
    tile = (_number(header, "image_size") // max(1, _number(header, "patch_size"))) ** 2
    if use.in_one:
        return whole
    if use.together:
        tiles = max(1, _TOKENS_AT_ONCE * per_token // max(1, tile))
        return min(whole, tiles * tile)
    return min(whole, tile) or tile


def _floats_of_patch(header: GgufHeader, patches: int, flash_attention: bool) -> int:
    """Return how many numbers of one patch stand at once in libmtmd's buffer."""
    width, wide = _number(header, "embedding_length"), _number(header, "feed_forward_length")
    heads = _number(header, "attention.head_count")
    feeding = 2 * width + wide
    attending = 5 * width if flash_attention else 5 * width + heads * patches
    return max(feeding, attending)


def _number(header: GgufHeader, key: str) -> int:
    value = header.metadata.get(f"clip.vision.{key}")
    return value if isinstance(value, int) else 0
