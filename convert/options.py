"""The options of every conversion; imports nothing heavy, for the command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConvertOptions:
    """The options that all families share."""

    vision_quants: tuple[str, ...] = ("int8",)
    lm_quant: str = "Q4_K_M"
    overwrite: bool = False
    force: bool = False
    name: str = ""


@dataclass(frozen=True)
class PairOptions:
    """The options of a pair's graph; `always` writes it even if it gains no time."""

    vision_quants: tuple[str, ...] = ("int8",)
    always: bool = False
