"""The pieces of a prompt: text, token ids, and rows of visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Text:
    """Text in a prompt; the tokenizer parses special tokens in it only if `template` is set."""

    text: str
    template: bool = False


@dataclass(frozen=True)
class Tokens:
    """Text in a prompt that is already tokenised."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class ImageRows:
    """The place of the picture's visual tokens [start, stop) in a prompt.

    `positions` is int32 [axes, stop - start], counted from the position of the first of these rows
    (M-RoPE: time, down, across, unused); without it each row is one position after the previous.
    With one axis, several rows may have one position, and come one after the other all the same.
    """

    start: int
    stop: int
    causal: bool = True  # False: each row attends to all of these rows, later ones too
    positions: np.ndarray | None = None


Segment = Text | Tokens | ImageRows
