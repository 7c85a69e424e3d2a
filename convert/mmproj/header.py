"""The keys of an mmproj file's header, and what is known of its models besides.

Key names and defaults: llama.cpp's `tools/mtmd/clip.cpp` and `clip-impl.h`, of the version in
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import math
from typing import Any

from edgeprism.bundle.gguf import Array, GgufHeader

# each picture has a shape of its own, and patches have rotary positions down and across
ROTATING = ("qwen2.5vl_merger", "qwen2vl_merger")
MERGED = 2  # Qwen's visual tokens join 2 × 2 patches
FREE_TOKENS = (8, 4096)  # the least and the most of a picture, as llama.cpp bounds them
WINDOW_PIXELS = 112  # edge of a window of Qwen2.5-VL's attention; no key says it
LFM2_TILE, LFM2_TOKENS = 512, (64, 256)  # edge of a tile; least and most tokens of the overview
# MiniCPM-V: visual tokens of a tile by version, as llama.cpp counts them: 2 is MiniCPM-V 2.5, 3 is
# 2.6, 4 is o-2.6, 5 is 4.0, 6 is 4.5, 100045 is o-4.5. A file may say another number of tokens.
MINICPM_QUERIES = {2: 96, 3: 64, 4: 64, 5: 64, 6: 64, 100045: 64}
MINICPM_HEAD = 128  # width of a head of its resampler; no key says it
_MERGE = {"gemma3": 4}  # where the file does not say; 1 for other projectors


class VisionKeys:
    """The metadata whose keys begin with `clip.vision.`."""

    def __init__(self, header: GgufHeader) -> None:
        self._metadata = header.metadata

    def get(self, name: str) -> object:
        """Return the value, or None."""
        return self._metadata.get(f"clip.vision.{name}")

    def number(self, name: str, default: int = 0) -> int:
        """Return a whole number, or `default` for anything else."""
        value = self.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def colour(self, name: str) -> tuple[float, ...]:
        """Return the numbers of three channels, which `check_mmproj` has seen."""
        value: Any = self.get(name)
        return tuple(float(v) for v in value.items[:3])

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return a list of numbers; () without one."""
        value = self.get(name)
        return tuple(value.items) if isinstance(value, Array) else ()


def merge_of(vision: VisionKeys, projector: str) -> int:
    """Return how many patches along an edge a visual token joins."""
    return vision.number("projector.scale_factor", _MERGE.get(projector, 1))


def minicpm_version(header: GgufHeader) -> tuple[int, int]:
    """Return MiniCPM-V's version and the visual tokens of a tile, 0 for an unknown version."""
    version, queries = (
        value if isinstance(value := header.metadata.get(f"clip.minicpmv_{name}"), int) else 0
        for name in ("version", "query_num")
    )
    version = version or 2
    return version, (queries or MINICPM_QUERIES[version]) if version in MINICPM_QUERIES else 0


def largest_square(patch: int) -> int:
    """Return the edge in pixels of Qwen's largest square picture."""
    return math.isqrt(FREE_TOKENS[1]) * patch * MERGED
