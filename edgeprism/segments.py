"""The pieces of a prompt: text, token ids, and rows of visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Text:
    """A piece of a prompt; `template` says whether special tokens in it are parsed."""

    text: str
    template: bool = False


@dataclass(frozen=True)
class Tokens:
    """A piece of a prompt that is tokenised already."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class ImageRows:
    """Visual tokens [start, stop) of the picture stand here.

    `positions` is int32 [axes, stop - start], counted from where these rows begin (M-RoPE: time,
    down, across, unused); without it each row stands one position behind the one before.
    """

    start: int
    stop: int
    causal: bool = True  # False: each row looks at all of these rows, later ones too
    positions: np.ndarray | None = None


Segment = Text | Tokens | ImageRows
