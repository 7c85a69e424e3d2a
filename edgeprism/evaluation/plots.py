"""Draws the plots of a report as SVG, without a library, a script or a network.

Colours and fonts come from the page's style sheet; marks of series n have the class `sN`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from edgeprism.output.html import SERIES

_WIDTH, _LEFT, _RIGHT, _TOP = 760, 190, 24, 16
_ROW, _BAND = 18, 14  # pixels of a mark's row, and around a group of rows
_SCATTER_WIDTH = 500
_MARK = 5
_LABEL_CHARS, _LINE = 26, 14  # of a row's name, which is wrapped
_NUMBER = 16  # pixels between a number and what it must not cover


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
        lines = textwrap.wrap(label, _LABEL_CHARS) or [""]
        height = max(_ROW * max(1, len(marks)), _LINE * len(lines)) + _BAND
        first = y + height / 2 + 4 - _LINE * (len(lines) - 1) / 2
        parts += [_text(_LEFT - 10, first + _LINE * n, line, "end") for n, line in enumerate(lines)]
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" '
                     f'y1="{y + height:.1f}" y2="{y + height:.1f}"/>')  # fmt: skip
        for number, mark in enumerate(marks):
            middle = y + height / 2 + _ROW * (number - (len(marks) - 1) / 2)
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
    """Draw accuracy over cost; the axis is logarithmic if costs span widely.

    The points are numbered from 1 in their order, because their names are too long for the plot.
    """
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
    centres = [(to_x(point.cost), to_y(point.mark.value)) for point in points]
    for point in points:
        mark, x = point.mark, to_x(point.cost)
        parts.append(
            f'<g class="mark s{mark.series % SERIES}"><title>{escape(_tooltip(mark))}, '
            f"{point.cost:.3g} {escape(cost)}</title>"
            f'<line x1="{x:.1f}" x2="{x:.1f}" '
            f'y1="{to_y(mark.low):.1f}" y2="{to_y(mark.high):.1f}"/>'
            f'<circle cx="{x:.1f}" cy="{to_y(mark.value):.1f}" r="{_MARK}"/></g>'
        )
    names = [point.mark.name for point in points]
    for number, (x, y) in enumerate(_places_of_numbers(centres, (left, width, bottom))):
        parts.append(_text(x, y + 4, str(number + 1), "middle", title=names[number]))
    return _svg(height, parts, title, width)


def _places_of_numbers(
    centres: Sequence[tuple[float, float]], frame: tuple[float, float, float]
) -> list[tuple[float, float]]:
    """Return a place beside each mark that is on no mark and on no other number.

    `frame` is (left, right, bottom) of the plot. Marks that crowd get numbers further away.
    """
    left, right, bottom = frame
    taken = [*centres]
    places: list[tuple[float, float]] = []
    for x, y in centres:
        around = (
            (x + radius * math.cos(turn), y + radius * math.sin(turn))
            for radius in range(_NUMBER, 20 * _NUMBER, 4)
            for turn in (step * math.pi / 6 for step in range(12))
        )
        inside = (p for p in around if left + 8 < p[0] < right - 8 and _TOP < p[1] < bottom - 6)
        place = next((p for p in inside if all(math.dist(p, t) >= _NUMBER for t in taken)), (x, y))
        taken.append(place)
        places.append(place)
    return places


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


def _svg(height: float, parts: Sequence[str], title: str, width: int = _WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>'
        + "".join(parts) + "</svg>"
    )  # fmt: skip
