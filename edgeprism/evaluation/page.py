"""A run → one HTML page with plots, tables and pictures, which loads nothing from a network."""

from __future__ import annotations

import base64
import io
import json
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgeprism.errors import ImageError
from edgeprism.evaluation.analysis import CHANCE, AnswerOutcome
from edgeprism.evaluation.plots import Mark, Point, dot_plot, scatter
from edgeprism.evaluation.questions import PictureRef, QuestionFile
from edgeprism.evaluation.report import (
    ReportInput,
    cell_to_texts,
    left_out,
    percent,
)
from edgeprism.files.atomic import write_atomically
from edgeprism.output.html import SERIES, legend_to_html, table_to_html
from edgeprism.picture.read import read_picture

PAGE_QUESTIONS = 500  # questions that the page shows with their pictures
THUMBNAIL = 384  # pixels of the longer edge
_JPEG_QUALITY = 82


def write_page(inputs: ReportInput, report: dict[str, Any], path: Path) -> None:
    """Write the page atomically."""
    write_atomically(path, to_page(inputs, report).encode("utf-8", "replace"))


def to_page(inputs: ReportInput, report: dict[str, Any]) -> str:
    """Return the page's text, which shows the first `PAGE_QUESTIONS` questions only."""
    parts = {
        "TITLE": escape(f"EdgePrism on {report['data']['file']}"),
        "LEAD": escape(" ".join([_lead(report), *left_out(report)])),
        "SCORES": table_to_html(
            ("perception → reasoning", "right", "95 % interval", "scored", "failed", "unmatched",
             "s/question", "memory"),
            [cell_to_texts(cell) for cell in report["cells"]],
        ),
        "PERCEPTION": _perception(report),
        "SECONDS": _cost(report, lambda cell: cell["seconds"].get("total"), "seconds per question"),
        "MEMORY": _cost(report, _megabytes, "peak memory in MB, stages apart"),
        "CATEGORIES": _categories(report),
        "PAIRS": _pairs(report),
        "PROVENANCE": _provenance(report),
        "DATA": _data(inputs),
        "STYLE": _resource("page.css"),
        "SCRIPT": _resource("page.js"),
    }  # fmt: skip
    page = _resource("page.html")
    # A single pass leaves markers inside the inserted text alone.
    pieces = page.split("@")
    for i in range(1, len(pieces), 2):
        pieces[i] = parts[pieces[i]]
    return "".join(pieces)


def _resource(name: str) -> str:
    return files("edgeprism.evaluation").joinpath(name).read_text(encoding="utf-8")


def _lead(report: dict[str, Any]) -> str:
    real = [cell for cell in report["cells"] if cell["reasoner"] and cell["scored"]]
    best = max(real, key=lambda cell: cell["accuracy"], default=None)
    size = f"{report['data']['asked']} questions, {len(report['cells']) - 1} combinations."
    return size if best is None else f"{size} Best: {best['name']}, {percent(best['accuracy'])}."


# ---- plots


def _mark(cell: dict[str, Any], series: int, name: str) -> Mark:
    return Mark(series, name, cell["accuracy"], cell["low"], cell["high"])


def _perception(report: dict[str, Any]) -> str:
    """Plot accuracy with a row for each captioner and mode, and a colour for each reasoner."""
    reasoners = list(report["models"]["reasoners"])
    rows: dict[str, list[Mark]] = {}
    for cell in report["cells"]:
        if cell["accuracy"] is not None:
            name = f"{cell['captioner']}, {cell['mode']}" if cell["captioner"] else cell["mode"]
            series = reasoners.index(cell["reasoner"]) if cell["reasoner"] else SERIES - 1
            rows.setdefault(name, []).append(_mark(cell, series, cell["reasoner"] or CHANCE))
    plot = dot_plot(list(rows.items()), "Accuracy by perception and reasoner")
    return legend_to_html(enumerate(reasoners)) + plot


def _categories(report: dict[str, Any]) -> str:
    """Plot accuracy with a row for each category, and a colour for each cell.

    The plot of the second level of categories is folded.
    """
    cells = report["cells"][-SERIES:]
    parts = [legend_to_html([(i, cell["name"]) for i, cell in enumerate(cells)])]
    if len(cells) < len(report["cells"]):
        parts.append(f"<p>The last {len(cells)} combinations; the JSON report has all.</p>")
    for level in ("category", "l2-category"):
        rows: dict[str, list[Mark]] = {}
        for i, cell in enumerate(cells):
            for category in cell["categories"]:
                if category["level"] == level:
                    name = f"{category['name']} ({category['scored']})"
                    rows.setdefault(name, []).append(_mark(category, i, cell["name"]))
        if rows:
            plot = dot_plot(sorted(rows.items()), f"Accuracy by {level}")
            parts.append(
                plot if level == "category"
                else f"<details><summary>Second level</summary>{plot}</details>"
            )  # fmt: skip
    return "".join(parts) if len(parts) > 1 else "<p>The data has no categories.</p>"


def _cost(report: dict[str, Any], to_cost: Any, name: str) -> str:
    points = [
        Point(_mark(cell, i, cell["name"]), to_cost(cell))
        for i, cell in enumerate(report["cells"])
        if cell["accuracy"] is not None and to_cost(cell)
    ]
    if not points:
        return "<p>Not measured.</p>"
    names = [(p.mark.series, f"{n}  {p.mark.name}") for n, p in enumerate(points, 1)]
    return scatter(points, name, f"Accuracy against {name}") + legend_to_html(names)


def _megabytes(cell: dict[str, Any]) -> float | None:
    return cell["memory_bytes"] / 1e6 if cell["memory_bytes"] else None


# ---- tables


def _pairs(report: dict[str, Any]) -> str:
    rows = [
        [
            f"{pair['a']}  against  {pair['b']}",
            f"{pair['difference']:+.1%}",
            f"{pair['low']:+.1%} to {pair['high']:+.1%}",
            str(pair["both"]),
            "–" if pair["p"] is None else f"{pair['only_a']} / {pair['only_b']}",
            "–" if pair["p"] is None else f"{pair['p']:.2g}",
            "–" if pair["p_holm"] is None else f"{pair['p_holm']:.2g}",
        ]
        for pair in report["pairs"]
        if pair["difference"] is not None
    ]
    header = ("cells", "difference", "95 % interval", "questions", "only one right",
              "McNemar p", "Holm")  # fmt: skip
    table = table_to_html(header, rows)
    return f"<details><summary>{len(rows)} comparisons</summary>{table}</details>"


def _provenance(report: dict[str, Any]) -> str:
    facts = {name: report[name] for name in ("version", "models", "settings", "statistics")}
    facts["data"] = report["data"] | {"skipped": len(report["data"]["skipped"])}
    skipped = [
        [str(skip["line"]), skip["index"], skip["reason"]] for skip in report["data"]["skipped"]
    ]
    text = f"<pre>{escape(json.dumps(facts, indent=2, ensure_ascii=False))}</pre>"
    if skipped:
        rows = table_to_html(("line", "index", "reason"), skipped[:1000])
        text += f"<details><summary>{len(skipped)} rows skipped</summary>{rows}</details>"
    return text


# ---- the questions


def _data(inputs: ReportInput) -> str:
    """Write the questions as JSON, escaped so that no text in it can end the script element."""
    questions = inputs.questions[:PAGE_QUESTIONS]
    refs = dict.fromkeys(ref for question in questions for ref in question.pictures)
    numbers = {ref: str(number) for number, ref in enumerate(refs)}  # paths are private
    data = {
        "asked": len(inputs.questions),
        "cells": [result.cell.name for result in inputs.results],
        "questions": [
            {
                "index": q.index, "text": q.text, "hint": q.hint, "options": q.options,
                "answer": q.answer, "category": q.category,
                "pictures": [numbers[ref] for ref in q.pictures],
                "outcomes": [_outcome(result.outcomes[q.index]) for result in inputs.results],
            }
            for q in questions
        ],
        "pictures": {numbers[ref]: _thumbnail(inputs.file, ref) for ref in refs},
    }  # fmt: skip
    text = json.dumps(data, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _outcome(outcome: AnswerOutcome) -> dict[str, Any]:
    verdict, seconds = outcome.verdict, outcome.seconds
    return {
        "focus": outcome.focus,
        "note": outcome.focus_note,
        "captions": outcome.captions,
        "answer": outcome.answer,
        "choice": verdict.choice if verdict else "",
        "right": bool(verdict and verdict.right),
        "by": verdict.by if verdict else "",
        "error": outcome.error,
        "seconds": ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items() if value),
    }


def _thumbnail(file: QuestionFile, ref: PictureRef) -> str:
    """Return a data URL; "" for a picture that cannot be read, whose outcome holds the error."""
    try:
        picture = read_picture(file.picture_bytes(ref), enough=THUMBNAIL)
    except ImageError:
        return ""
    picture.rgb.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    picture.rgb.save(data, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
