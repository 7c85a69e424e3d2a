"""The header of an mmproj file → why no graph is built for its encoder."""

from __future__ import annotations

import math
from collections.abc import Iterator

from edgeprism.bundle.gguf import GgufHeader
from edgeprism.bundle.manifest import MAX_EDGE
from edgeprism.bundle.read_manifest import MAX_GRID
from edgeprism.convert.mmproj.header import (
    LFM2_TILE,
    LFM2_TOKENS,
    MERGED,
    MINICPM_HEAD,
    MINICPM_QUERIES,
    ROTATING,
    WINDOW_PIXELS,
    VisionKeys,
    largest_square,
    merge_of,
    minicpm_version,
)
from edgeprism.vision.mmproj_checks import projector_of

PROJECTORS = ("gemma3", "idefics3", "internvl", "lfm2", "mlp", "resampler", *ROTATING)
_OWN_SHAPE = "it takes each picture at a shape of its own, and nobody has written its graph"
# Projectors that are met often, and why libmtmd keeps them
_WHY_NOT = {
    "minicpmv4_6": _OWN_SHAPE,
    "pixtral": _OWN_SHAPE,
    "kimivl": _OWN_SHAPE,
    "qwen3vl_merger": _OWN_SHAPE,
    "glm4v": _OWN_SHAPE,
    "ldp": "its convolutions are not among the graph's parts",
    "ldpv2": "its convolutions are not among the graph's parts",
}
_MOST_WEIGHTS = 1_900_000_000  # in int8: a protobuf message ends at 2 GiB


def why_no_graph(header: GgufHeader) -> str:
    """Return why libmtmd has to run this mmproj file, or "" if a graph can be built."""
    projector = projector_of(header)
    if projector not in PROJECTORS:
        other = "it is none that a graph is built for"
        return f"its projector is {projector}: {_WHY_NOT.get(projector, other)}"
    return next(_obstacles(header, projector), "")


def _obstacles(header: GgufHeader, projector: str) -> Iterator[str]:
    """Yield what a file of a known projector has that the graph has no place for."""
    vision = VisionKeys(header)
    if projector in ROTATING:
        yield from _obstacles_of_rotating(vision)
    elif projector == "lfm2":
        yield from _obstacles_of_lfm2(header, vision)
    elif projector == "resampler":
        yield from _obstacles_of_minicpm(header, vision)
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


def _obstacles_of_squares(header: GgufHeader, vision: VisionKeys, projector: str) -> Iterator[str]:
    size, patch, merge = (
        vision.number("image_size"),
        vision.number("patch_size"),
        merge_of(vision, projector),
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


def _obstacles_of_rotating(vision: VisionKeys) -> Iterator[str]:
    patch, heads = vision.number("patch_size"), vision.number("attention.head_count")
    if patch < 1 or largest_square(patch) > MAX_EDGE:
        yield f"it takes patches of {patch} pixels"
        return
    if vision.number("spatial_merge_size", MERGED) != MERGED:
        yield f"it joins {vision.number('spatial_merge_size')} patches along an edge, not {MERGED}"
    if heads < 1 or vision.number("embedding_length") % (4 * heads):
        yield f"its width cannot be shared by {heads} heads of four parts each"
    if patch * MERGED > WINDOW_PIXELS:
        yield f"a window of {WINDOW_PIXELS} pixels has no room for its patches"


def _obstacles_of_lfm2(header: GgufHeader, vision: VisionKeys) -> Iterator[str]:
    patch, merge = vision.number("patch_size"), merge_of(vision, "lfm2")
    if patch < 1 or patch * merge * math.isqrt(LFM2_TOKENS[1]) != LFM2_TILE:
        yield (
            f"its visual tokens join {merge} × {merge} patches of {patch} pixels, of which a tile "
            f"of {LFM2_TILE} pixels has no {LFM2_TOKENS[1]}"
        )
    if header.metadata.get("clip.use_silu") is True:
        yield "its tower uses SiLU"


def _obstacles_of_minicpm(header: GgufHeader, vision: VisionKeys) -> Iterator[str]:
    size, patch = vision.number("image_size"), vision.number("patch_size")
    version, queries = minicpm_version(header)
    if version not in MINICPM_QUERIES:
        yield f"its version of MiniCPM-V is {version}, and nobody has written its graph"
    elif not 1 <= queries <= MAX_GRID:
        yield f"it makes {queries} visual tokens of each tile"
    if not 1 <= patch <= size or size % patch or 3 * size**2 // 2 > MAX_EDGE**2:
        yield f"it takes tiles of about {size} × {size} pixels in patches of {patch}"
    width = header.tensors.get("resampler.query", (0,))[0]
    if not width or width % MINICPM_HEAD:
        yield f"its visual tokens of width {width} cannot be shared by heads of {MINICPM_HEAD}"
    if header.metadata.get("clip.use_silu") is True:
        yield "its tower uses SiLU"


def _obstacles_of_llava(header: GgufHeader, vision: VisionKeys) -> Iterator[str]:
    if "mm.2.weight" not in header.tensors or "mm.3.weight" in header.tensors:
        yield "its projector has another number of layers than two"
    if vision.get("image_grid_pinpoints") is not None or "v.image_newline" in header.tensors:
        yield "it cuts pictures into tiles (`edgeprism convert llava-next` reads published models)"
    if len(vision.numbers("feature_layer")) > 1:
        yield "it joins the features of several layers"
