"""One or several reports → one HTML page with plots, which loads nothing from a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from edgeprism.bench.report import Report, Stage
from edgeprism.bench.table import (
    by_group,
    comparison_row,
    conditions_to_lines,
    facts,
    number,
    stage_to_texts,
)
from edgeprism.files.atomic import write_atomically
from edgeprism.files.regular import open_regular
from edgeprism.files.safe_text import counted
from edgeprism.output.html import SERIES, legend_to_html, table_to_html

_TITLE = "EdgePrism bench"
_HEAD_BYTES = 1000  # of a page; its title is within them
_WIDTH, _LEFT, _RIGHT, _BAR, _GAP = 760, 170, 90, 16, 14
_HEADER = ("stage", "median", "min .. max", "p95", "floor", "of the machine")


def write_page(reports: Sequence[Report], names: Sequence[str], path: Path) -> None:
    """Write the page atomically; arguments as for `to_page`."""
    write_atomically(path, to_page(reports, names).encode("utf-8", "replace"))


def is_page(path: Path) -> bool:
    """Return whether the file at `path` is such a page."""
    try:
        with open_regular(path) as file:
            return _TITLE.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False


def to_page(reports: Sequence[Report], names: Sequence[str]) -> str:
    """Return the page's text.

    Parameters:
        reports: the run that the page is about, then those to compare it with.
        names: what each of them is called on the page.
    """
    first = reports[0]
    title = f"{_TITLE}: {escape(first.title)}"
    sections = [legend_to_html(enumerate(names))] if len(reports) > 1 else []
    for group, keys in by_group(reports):
        plots = _plots(keys, reports, names)
        sections.append(f"<section><h2>{escape(group)}</h2>{plots}</section>")
    if len(reports) > 1:
        rows = [comparison_row(key, reports) for _, keys in by_group(reports) for key in keys]
        table = table_to_html(("stage", *names), rows)
        sections.append(f"<section><h2>Side by side</h2>{table}</section>")
    for name, report in zip(names, reports, strict=True):
        sections.append(_details(name, report))
    style = files("edgeprism.bench").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{title}</h1>{_lead(first)}</header>\n<main>\n" + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )  # fmt: skip


def _lead(report: Report) -> str:
    runs = counted(report.settings.runs, "run")
    lines = [f"{report.date}, {runs}. A bar is the median, the line across it the least and the "
             "most, the notch the floor."]  # fmt: skip
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    if report.conditions.disturbed:
        text += f'<p class="disturbed">{escape(conditions_to_lines(report)[-1])}</p>'
    return text


def _details(name: str, report: Report) -> str:
    rows = [stage_to_texts(stage) for stage in report.stages]
    lines = "".join(f"<li>{escape(line)}</li>" for line in facts(report))
    bases = "".join(
        f"<li>{escape(f'{stage.group} {stage.label}: {stage.floor.basis}')}</li>"
        for stage in report.stages
        if stage.floor is not None
    )
    data = escape(json.dumps(report.to_dict(), indent=1, ensure_ascii=False))
    return (
        f"<section><h2>{escape(name)}: {escape(report.title)}</h2>{table_to_html(_HEADER, rows)}"
        f"<ul>{lines}</ul><details><summary>What the floors rest on</summary><ul>{bases}</ul>"
        f"</details><details><summary>All values</summary><pre>{data}</pre></details></section>"
    )


def _plots(keys: Sequence[tuple[str, str]], reports: Sequence[Report], names: Sequence[str]) -> str:
    """Draw the stages of a group; times share one axis, and each kind of rate has its own."""
    plots = []
    rows = [(key, [report.stage(*key) for report in reports]) for key in keys]
    units = list(dict.fromkeys(stage.unit for _, row in rows for stage in row if stage))
    for unit in units:
        of_unit = [row for _, row in rows if any(stage and stage.unit == unit for stage in row)]
        plots.append(_bars(of_unit, names, unit))
    return "".join(plots)


def _bars(rows: Sequence[Sequence[Stage | None]], names: Sequence[str], unit: str) -> str:
    stages = [stage for row in rows for stage in row if stage]
    most = max((stage.max for stage in stages), default=0.0) or 1.0
    inner = _WIDTH - _LEFT - _RIGHT
    parts, y = [], 8.0
    for row in rows:
        label = next(stage.label for stage in row if stage)
        middle = y + _BAR * len(row) / 2 + 4
        parts.append(f'<text x="{_LEFT - 10}" y="{middle:.1f}" text-anchor="end">'
                     f"{escape(label)}</text>")  # fmt: skip
        for i, stage in enumerate(row):
            if stage is not None:
                parts.append(_bar(stage, names[i], i, y + _BAR * i, inner / most))
        y += _BAR * len(row) + _GAP
    title = escape(f"medians in {unit}")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {y:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{title}</title>{''.join(parts)}</svg>"
    )


def _bar(stage: Stage, name: str, series: int, y: float, scale: float) -> str:
    low, median, high = (_LEFT + scale * v for v in (stage.min, stage.median, stage.max))
    middle, thick = y + _BAR / 2, _BAR - 4
    tooltip = f"{name}, {stage.label}: {number(stage.median)} {stage.unit}"
    floor = ""
    if stage.floor is not None:
        tooltip += f"; {stage.floor.share:.0%} of what the machine can do ({stage.floor.basis})"
        x = min(_LEFT + scale * stage.floor.value, float(_WIDTH - _RIGHT))
        floor = f'<line class="floor" x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{y + _BAR:.1f}"/>'
    return (
        f'<g class="mark s{series % SERIES}"><title>{escape(tooltip)}</title>'
        f'<rect x="{_LEFT}" y="{y + 2:.1f}" width="{max(median - _LEFT, 1):.1f}" '
        f'height="{thick}"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>{floor}'
        f'<text x="{high + 8:.1f}" y="{middle + 4:.1f}">{escape(number(stage.median))} '
        f"{escape(stage.unit)}</text></g>"
    )
