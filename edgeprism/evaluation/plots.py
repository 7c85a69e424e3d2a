"""Draws the plots of a report as SVG, without a library, a script or a network.

Colours and fonts come from the page's style sheet; marks of series n have the class `sN`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SERIES = 8  # number of colours in the style sheet
_WIDTH, _LEFT, _RIGHT, _TOP = 760, 190, 24, 16
_ROW, _BAND = 18, 14  # pixels of a mark's row, and around a group of rows
_SCATTER_WIDTH = 500
_MARK = 5
_LABEL_CHARS = 30


@dataclass(frozen=True)
class Mark:
    """A value with its interval; `series` chooses the colour."""

    series: int
    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """An accuracy with its interval, and its cost."""

    mark: Mark
    cost: float


def dot_plot(rows: Sequence[tuple[str, Sequence[Mark]]], title: str) -> str:
    """Draw a row for each group, with its marks below each other, over an axis of 0 to 100 %."""
    inner = _WIDTH - _LEFT - _RIGHT
    parts, y = [], float(_TOP)
    for label, marks in rows:
        height = _ROW * max(1, len(marks)) + _BAND
        parts.append(_text(_LEFT - 10, y + height / 2 + 4, _short(label), "end", title=label))
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" '
                     f'y1="{y + height:.1f}" y2="{y + height:.1f}"/>')  # fmt: skip
        for number, mark in enumerate(marks):
            middle = y + _BAND / 2 + _ROW * (number + 0.5)
            x = [_LEFT + inner * v for v in (mark.low, mark.value, mark.high)]
            parts.append(
                f'<g class="mark s{mark.series % SERIES}"><title>{escape(_tooltip(mark))}</title>'
                f'<line x1="{x[0]:.1f}" x2="{x[2]:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
                f'<circle cx="{x[1]:.1f}" cy="{middle:.1f}" r="{_MARK}"/></g>'
            )
        y += height
    axis = [_tick_x(_LEFT + inner * share / 4, _TOP, y, f"{share * 25} %") for share in range(5)]
    return _svg(y + 26, [*axis, *parts], title)


def scatter(points: Sequence[Point], cost: str, title: str) -> str:
    """Draw accuracy over cost with named points; the axis is logarithmic if costs span widely."""
    left, width, height, bottom = 50, _SCATTER_WIDTH, 340, 300
    inner, tall = width - left - _RIGHT, bottom - _TOP
    costs = [point.cost for point in points]
    log = min(costs) > 0 and max(costs) > 5 * min(costs)
    scale = math.log10 if log else float
    low, high = scale(min(costs)), scale(max(costs))
    low, high = (low - 0.1, high + 0.1) if log else (0.0, high * 1.1 or 1.0)

    def to_x(value: float) -> float:
        return left + inner * (scale(value) - low) / (high - low)

    def to_y(share: float) -> float:
        return bottom - tall * share

    parts = []
    for share in range(5):
        y = to_y(share / 4)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(_text(left - 8, y + 4, f"{share * 25} %", "end"))
    ticks = _log_ticks(low, high) if log else _ticks(high)
    parts += [_tick_x(to_x(value), _TOP, bottom, f"{value:g}") for value in ticks]
    parts.append(_text(left + inner / 2, height - 6, cost, "middle"))
    names: list[tuple[float, float, str, str]] = []
    for point in points:
        mark, x = point.mark, to_x(point.cost)
        parts.append(
            f'<g class="mark s{mark.series % SERIES}"><title>{escape(_tooltip(mark))}, '
            f"{point.cost:.3g} {escape(cost)}</title>"
            f'<line x1="{x:.1f}" x2="{x:.1f}" '
            f'y1="{to_y(mark.low):.1f}" y2="{to_y(mark.high):.1f}"/>'
            f'<circle cx="{x:.1f}" cy="{to_y(mark.value):.1f}" r="{_MARK}"/></g>'
        )
        anchor = "end" if x > left + inner * 0.6 else "start"
        names.append((to_y(mark.value) + 4, x + (-9 if anchor == "end" else 9), anchor, mark.name))
    parts += [_text(x, y, _short(name, 44), a, title=name) for y, x, a, name in _apart(names)]
    return _svg(height, parts, title, width)


def _apart(
    names: list[tuple[float, float, str, str]], gap: float = 13
) -> list[tuple[float, float, str, str]]:
    """Move labels down until none overlaps another."""
    placed: list[tuple[float, float, str, str]] = []
    for y, x, anchor, name in sorted(names):
        while any(abs(y - other) < gap for other, *_ in placed):
            y += 1
        placed.append((y, x, anchor, name))
    return placed


def _tooltip(mark: Mark) -> str:
    return f"{mark.name}: {mark.value:.1%} ({mark.low:.1%} to {mark.high:.1%})"


def _ticks(high: float) -> list[float]:
    step = 10 ** math.floor(math.log10(high))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if high / s <= 6)
    return [step * i for i in range(int(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(low), math.ceil(high) + 1)
    values = [m * 10.0**power for power in powers for m in (1, 2, 5)]
    return [value for value in values if low <= math.log10(value) <= high]


def _tick_x(x: float, top: float, bottom: float, label: str) -> str:
    return f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom:.1f}"/>' + _text(
        x, bottom + 18, label, "middle"
    )


def _text(x: float, y: float, text: str, anchor: str, title: str = "") -> str:
    tooltip = f"<title>{escape(title)}</title>" if title and title != text else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{tooltip}{escape(text)}</text>'


def _short(text: str, limit: int = _LABEL_CHARS) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _svg(height: float, parts: Sequence[str], title: str, width: int = _WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>'
        + "".join(parts) + "</svg>"
    )  # fmt: skip
