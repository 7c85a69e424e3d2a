"""What a model takes in memory, piece by piece: the values that a plan is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

CPU, GPU = "cpu", "gpu"


@dataclass(frozen=True)
class Part:
    """One piece of memory that a model or the process takes."""

    what: str  # "language weights", "KV cache", …
    size: int  # bytes
    why: str  # what it follows from, in words
    place: str = CPU
    # False: pages of a file that is only read while a model loads; the system drops them where
    # memory is short, and EdgePrism when the model is loaded (on Linux)
    needed: bool = True


@dataclass(frozen=True)
class ModelParts:
    """Everything that one model takes."""

    name: str
    role: str  # "process" | "captioner" | "reasoner"
    parts: tuple[Part, ...]

    def size(self, place: str, *, loading: bool = False) -> int:
        """Return the bytes that it takes at a place; `loading` counts what is dropped then, too."""
        return parts_size(self.parts, place, loading=loading)


def parts_size(parts: Iterable[Part], place: str, *, loading: bool = False) -> int:
    """Return the sum of the parts at a place; `loading` counts what is dropped then, too."""
    return sum(p.size for p in parts if p.place == place and (p.needed or loading))
