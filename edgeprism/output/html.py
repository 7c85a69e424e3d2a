"""Pieces of HTML that the pages of `bench` and `eval` share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

SERIES = 8  # number of colours in the pages' style sheets


def table_to_html(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts, in a box that scrolls sideways on a narrow screen."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def legend_to_html(names: Iterable[tuple[int, str]]) -> str:
    """Return a list of names, each with the colour of its series."""
    items = "".join(f'<li class="s{i % SERIES}">{escape(name)}</li>' for i, name in names)
    return f'<ul class="legend">{items}</ul>'
