"""What every engine of the comparison does, and the flags that it is tried with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.peers.weights import Weights

INSTRUCTION = "Describe this picture in detail."
DECODED = 16  # tokens after the first
VISUAL_TOKENS = 196  # of a picture at most, for EdgePrism with fewer rows
Setting = dict[str, object]


@dataclass(frozen=True)
class Seconds:
    """One picture's stages; None for a stage that the engine does not have.

    `encode` holds the preparation of pixels that are in memory. `first_token` lies between the
    pixels and the first token; `decode` is one of the tokens after it.
    """

    encode: float
    first_token: float | None = None
    decode: float | None = None

    def of(self, stage: str) -> float | None:
        value: float | None = asdict(self)[stage]
        return value


class Engine(ABC):
    """One engine with one setting, in a process of its own."""

    @classmethod
    @abstractmethod
    def settings(cls, cores: int) -> Mapping[str, Sequence[object]]:
        """Return the values to try of each flag; the first is tried first."""

    @classmethod
    def obstacle(cls, weights: Weights, quant: str) -> str:
        """Return why this engine cannot run these weights in these types, or ""."""
        return ""

    @abstractmethod
    def __init__(self, weights: Weights, quant: str, setting: Setting) -> None:
        """Load the files; `quant` says in which types."""

    @abstractmethod
    def look(self, pixels: np.ndarray) -> tuple[Seconds, np.ndarray]:
        """Time one picture [height, width, 3]; return its rows [n, n_embd] beside the times."""
