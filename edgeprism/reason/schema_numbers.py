"""Bounds of numbers in JSON schemas → llama.cpp's grammar."""

from __future__ import annotations

import math
from typing import Any

from edgeprism.reason.schema_check import number_faults

MAX_LISTED = 1001  # values that are written out one by one
LARGEST = 10**15 - 1  # integers have up to 15 digits
_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def number_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of a schema that bound a number."""
    return {name: schema[name] for name in _KEYWORDS if name in schema}


def integer_gbnf(bounds: dict[str, Any]) -> str:
    """Return a grammar's body for the integers within `bounds`; "" if there are none."""
    low, high = _limits(bounds)
    if high < low:
        return ""
    step = bounds.get("multipleOf")
    if step is not None:
        # Nearest to zero first, so that a range without an end has its likeliest values.
        first = 0 if low <= 0 <= high else low if low > 0 else high
        near = range(max(low, first - 20 * MAX_LISTED), min(high, first + 20 * MAX_LISTED) + 1)
        near = _multiples(near, step)
        values = [n for n in near if _fits(n, bounds)]
        values = sorted(values, key=abs)[:MAX_LISTED]
        return " | ".join(f'"{n}"' for n in values)
    if high - low < MAX_LISTED:
        return " | ".join(f'"{n}"' for n in range(low, high + 1))
    parts = []
    if low < 0:
        parts.append(f'"-" ({_digits(max(1, -high), -low)})')
    if high >= 0:
        parts.append(f"({_digits(max(0, low), high)})")
    return " | ".join(parts)


def number_gbnf(bounds: dict[str, Any]) -> str:
    """Return a grammar's body for numbers within `bounds`, with a fraction or without.

    It writes part of them: within a narrow range hundredths (or less), within a wide one any
    fraction of the integers that lie whole inside. It is "" if there are none.
    """
    low, high = _real_limits(bounds)
    if high < low:
        return ""
    parts = []
    if "multipleOf" in bounds or high - low <= 10:
        parts += _listed(bounds, low, high)
    if "multipleOf" not in bounds:
        inner = (math.ceil(max(low, -LARGEST)), math.floor(min(high, LARGEST)))
        if bounds.get("exclusiveMinimum") == inner[0] and 0 <= inner[0] < inner[1]:
            parts.append(f'"{inner[0]}." [0-9]{{0,13}} [1-9]')
            inner = (inner[0] + 1, inner[1])
        fraction = '("." [0-9]{1,15})?'
        if inner[0] < 0:
            body = integer_gbnf({"minimum": max(1, -inner[1] + 1), "maximum": -inner[0] - 1})
            parts += [f'"-" ({body}) {fraction}'] if body else []
        if inner[1] > 0:
            body = integer_gbnf({"minimum": max(0, inner[0]), "maximum": inner[1] - 1})
            parts += [f"({body}) {fraction}"] if body else []
        if whole := integer_gbnf(bounds):
            parts.append(whole)
    return " | ".join(parts)


def _fits(value: float, bounds: dict[str, Any]) -> bool:
    return next(number_faults(value, bounds, ""), None) is None


def _multiples(near: range, step: float) -> range:
    if not isinstance(step, int) or isinstance(step, bool):
        return near
    first = near.start + -near.start % step
    return range(first, near.stop, step)


def _listed(bounds: dict[str, Any], low: float, high: float) -> list[str]:
    """Return literals of decimals within `bounds`, with two digits or as many as it takes."""
    step = bounds.get("multipleOf")
    for digits in (2, 1, 4, 6, 9):
        unit = 10**digits
        first, last = math.ceil(max(low, -1e6) * unit), math.floor(min(high, 1e6) * unit)
        if step is not None:
            first, last = max(first, -20_000), min(last, 20_000)
        texts = [f"{n / unit:.{digits}f}" for n in range(first, min(last, first + 40_000) + 1)]
        fitting = [text for text in texts if _fits(float(text), bounds)][:MAX_LISTED]
        if fitting:
            return [f'"{text}"' for text in fitting]
    return []


def _limits(bounds: dict[str, Any]) -> tuple[int, int]:
    """Return the smallest and the largest integer within `bounds`."""
    low, high = _real_limits(bounds)
    least = math.ceil(max(low, -LARGEST))
    most = math.floor(min(high, LARGEST))
    if "exclusiveMinimum" in bounds and least <= bounds["exclusiveMinimum"]:
        least += 1
    if "exclusiveMaximum" in bounds and most >= bounds["exclusiveMaximum"]:
        most -= 1
    return least, most


def _real_limits(bounds: dict[str, Any]) -> tuple[float, float]:
    low = max(bounds.get("minimum", -math.inf), bounds.get("exclusiveMinimum", -math.inf))
    high = min(bounds.get("maximum", math.inf), bounds.get("exclusiveMaximum", math.inf))
    return low, high


def _digits(low: int, high: int) -> str:
    """Return alternatives of digits that write exactly the integers from low (≥ 0) to high."""
    parts = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (length - 1) if length > 1 else 0)
        last = min(high, 10**length - 1)
        parts += _same_length(str(first), str(last))
    return " | ".join(parts)


def _same_length(low: str, high: str) -> list[str]:
    """Return alternatives for the integers between two of the same number of digits."""
    if low == high:
        return [f'"{low}"']
    if len(low) == 1:
        return [f"[{low}-{high}]"]
    rest = len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        first = low[0] if low[0] == high[0] else f"{low[0]}-{high[0]}"
        return [f"[{first}] [0-9]{{{rest},{rest}}}"]
    if low[0] == high[0]:
        return [f'"{low[0]}" ({" | ".join(_same_length(low[1:], high[1:]))})']
    parts = []
    begin, end = int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        parts.append(f'"{begin}" ({" | ".join(_same_length(low[1:], "9" * rest))})')
        begin += 1
    last = []
    if high[1:] != "9" * rest:
        last.append(f'"{end}" ({" | ".join(_same_length("0" * rest, high[1:]))})')
        end -= 1
    if begin <= end:
        parts += _same_length(f"{begin}{'0' * rest}", f"{end}{'9' * rest}")
    return parts + last
