"""What a caller chooses about a conversion; free of heavy imports, for the command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConvertOptions:
    """Choices that every family has in common."""

    vision_quants: tuple[str, ...] = ("int8",)
    lm_quant: str = "Q4_K_M"
    overwrite: bool = False
    force: bool = False
    name: str = ""
