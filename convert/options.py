"""The options of every conversion; imports nothing heavy, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeprism.errors import UsageError

LEAST_GAIN = 1.1  # times libmtmd's speed: less is within what two such measurements differ


@dataclass(frozen=True)
class ConvertOptions:
    """The options that all families share."""

    vision_quants: tuple[str, ...] = ("int8",)
    lm_quant: str = ""  # "": the family's default
    overwrite: bool = False
    force: bool = False
    name: str = ""


@dataclass(frozen=True)
class PairOptions:
    """The options of a pair's graph; `always` writes it even if it gains no time."""

    vision_quants: tuple[str, ...] = ("int8",)
    always: bool = False


def check_vision_quants(chosen: Sequence[str], known: Sequence[str]) -> None:
    """Raise UsageError if `chosen` are not quantizations of a vision graph that go together."""
    check_known(chosen, known, "vision quantization")
    if "auto" in chosen and {"int8", "fp32"} & set(chosen):
        raise UsageError(
            "auto is int8, or fp32 where int8 is too coarse: it excludes both.",
            "Leave them out of `vision_quants`.",
        )


def check_known(chosen: Sequence[str], known: Sequence[str], what: str) -> None:
    """Raise UsageError unless `chosen` has values, all of them in `known`."""
    unknown = [value for value in chosen if value not in known]
    if unknown or not chosen:
        raise UsageError(
            f"The {what} {', '.join(unknown)} is not known.", f"Known: {', '.join(known)}."
        )
