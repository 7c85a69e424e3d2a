"""Writes a run's figures as a table for the terminal, JSON, and CSV with a line per answer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.evaluation.analysis import (
    CHANCE,
    CellResult,
    cell_to_dict,
    chance_to_dict,
    failures,
    pairs,
)
from edgeprism.evaluation.matrix import Matrix
from edgeprism.evaluation.published_data import identify
from edgeprism.evaluation.questions import EvalQuestion, QuestionFile
from edgeprism.evaluation.statistics import CONFIDENCE, RESAMPLES
from edgeprism.files.atomic import AtomicFile, write_atomically
from edgeprism.files.safe_text import counted, printable_line
from edgeprism.machine import facts
from edgeprism.output.streams import csv_row
from edgeprism.reason.base import BaseReasoner
from edgeprism.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
_FIGURES_WIDTH = 75  # characters of a row in the terminal, without its name
CSV_COLUMNS = (
    "index", "category", "l2_category", "question", "expected", "cell", "captioner", "mode",
    "reasoner", "focus", "captions", "answer", "choice", "right", "matched_by", "error",
    "seconds_focus", "seconds_perceive", "seconds_reason",
)  # fmt: skip


@dataclass(frozen=True)
class ReportInput:
    """The input of a report: the data, the matrix, the chosen questions and their results."""

    file: QuestionFile
    md5: str
    matrix: Matrix
    questions: Sequence[EvalQuestion]
    results: Sequence[CellResult]
    options: dict[str, Any]  # splits, limit, sample, seed
    judge: BaseReasoner | None = None


def to_report(inputs: ReportInput) -> dict[str, Any]:
    """Return data, settings, models, cells, pairs and failures, without the single answers."""
    seed = int(inputs.options["seed"])
    matrix, file = inputs.matrix, inputs.file
    return {
        "schema": SCHEMA,
        "version": __version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": {
            "cpu": facts.cpu_name(),
            "cores": facts.available_cores(),
            "memory_bytes": facts.memory_bytes(),
            "threads": {n: c.engines.vision_threads() for n, c in matrix.captioners.items()},
        },
        "data": {
            "file": file.tsv.path.name,
            "md5": inputs.md5,
            "identified": identify(file.tsv.path, inputs.md5),
            "questions": len(file.questions),
            "asked": len(inputs.questions),
            "skipped": [asdict(skip) for skip in file.skipped],
            **inputs.options,
        },
        "settings": asdict(matrix.settings) | _visual_tokens(matrix),
        "statistics": {
            "interval": f"{CONFIDENCE:.0%} percentile bootstrap over questions",
            "resamples": RESAMPLES,
            "pairs": "McNemar's exact test, Holm's correction; bootstrap of the difference",
        },
        "models": {
            "captioners": {
                name: asdict(captioner.model) | {"device": captioner.device}
                for name, captioner in matrix.captioners.items()
            },
            "reasoners": {name: asdict(r.model) for name, r in matrix.reasoners.items()},
            "judge": asdict(inputs.judge.model) if inputs.judge else None,
        },
        "cells": [
            chance_to_dict(inputs.questions, seed),
            *(cell_to_dict(result, inputs.questions, seed) for result in inputs.results),
        ],
        "pairs": pairs(inputs.results, inputs.questions, seed),
        "failures": list(failures(inputs.results)),
    }


def _visual_tokens(matrix: Matrix) -> dict[str, Any]:
    """Return the limits of visual tokens, by captioner, where there are any."""
    limits = {name: c.engines.visual_tokens for name, c in matrix.captioners.items()}
    limited = {name: limit for name, limit in limits.items() if limit is not None}
    return {"visual_tokens": limited} if limited else {}


def write_json(report: dict[str, Any], path: Path) -> None:
    """Write the report as JSON."""
    text = json.dumps(report, ensure_ascii=False, indent=2, allow_nan=False)
    write_atomically(path, text.encode("utf-8", "backslashreplace") + b"\n")


def write_csv(inputs: ReportInput, path: Path) -> None:
    """Write a line for each question and cell."""
    with AtomicFile(path) as file:
        for row in _csv_rows(inputs):
            file.write(csv_row(row).encode("utf-8", "backslashreplace"))


def _csv_rows(inputs: ReportInput) -> Iterable[Sequence[Any]]:
    yield CSV_COLUMNS
    for question in inputs.questions:
        for result in inputs.results:
            outcome, cell = result.outcomes[question.index], result.cell
            verdict = outcome.verdict
            yield (
                question.index, question.category, question.l2_category, question.text,
                question.answer, cell.name, cell.captioner, cell.mode, cell.reasoner,
                outcome.focus, "\n".join(outcome.captions), outcome.answer,
                verdict.choice if verdict else "", int(verdict.right) if verdict else "",
                verdict.by if verdict else "", outcome.error,
                *(f"{outcome.seconds.get(s, 0.0):.4f}" for s in ("focus", "perceive", "reason")),
            )  # fmt: skip


# ---- the terminal


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print the scores, the comparisons of perception, and what no score counts."""
    from rich.table import Table
    from rich.text import Text

    data = report["data"]
    console.print(
        printable_line(f"{data['file']}: {data['identified']}"), highlight=False, markup=False
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    rows = [cell_to_texts(cell) for cell in report["cells"]]
    if max(len(row[0]) for row in rows) > console.width - _FIGURES_WIDTH:
        # the names stand above, because beside the figures they would be cut or broken
        for number, row in enumerate(rows, 1):
            line = printable_line(f"{number}  {row[0]}")
            console.print(line, highlight=False, markup=False)
            row[0] = str(number)
    table.add_column("perception → reasoning" if rows[0][0] != "1" else "")
    for name in ("right", "95 % interval", "scored", "failed", "unmatched", "s/question", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable_line(text)) for text in row))
    console.print(table, highlight=False, markup=False)
    for pair in pairs_of_interest(report):
        console.print(printable_line(pair_to_text(pair)), highlight=False, markup=False)
    for line in left_out(report):
        console.print(printable_line(line), highlight=False, markup=False)


def cell_to_texts(cell: dict[str, Any]) -> list[str]:
    """Return the columns of a cell's line in a table."""
    seconds, memory = cell["seconds"].get("total"), cell["memory_bytes"]
    return [
        cell["name"],
        percent(cell["accuracy"]),
        f"{percent(cell['low'])} to {percent(cell['high'])}",
        str(cell["scored"]),
        str(cell["failed"]),
        str(cell["unmatched"]) if cell["name"] != CHANCE else "–",
        "–" if seconds is None else f"{seconds:.2f}",
        "–" if memory is None else f"{memory / 1e6:.0f} MB",
    ]


def pairs_of_interest(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the pairs that differ only in perception: in mode, or in having captions at all."""
    by_name = {cell["name"]: cell for cell in report["cells"]}
    chosen = []
    for pair in report["pairs"]:
        a, b = by_name[pair["a"]], by_name[pair["b"]]
        if a["reasoner"] == b["reasoner"] and (
            not a["captioner"] or a["captioner"] == b["captioner"]
        ):
            chosen.append(_reversed(pair))
    return chosen


def _reversed(pair: dict[str, Any]) -> dict[str, Any]:
    """Compare the later cell with the earlier, so that a better perception counts as a gain."""
    minus = {n: None if pair[n] is None else 0 - pair[n] for n in ("difference", "low", "high")}
    return pair | {
        "a": pair["b"], "b": pair["a"], "only_a": pair["only_b"], "only_b": pair["only_a"],
        "difference": minus["difference"], "low": minus["high"], "high": minus["low"],
    }  # fmt: skip


def pair_to_text(pair: dict[str, Any]) -> str:
    """One line about two cells: their difference, its interval, McNemar's test."""
    if pair["difference"] is None:
        return f"{pair['a']} against {pair['b']}: no question was scored in both"
    test = "" if pair["p"] is None else f", McNemar p = {pair['p']:.2g}"
    return (
        f"{pair['a']} against {pair['b']}: {pair['difference']:+.1%} "
        f"({pair['low']:+.1%} to {pair['high']:+.1%}){test}"
    )


def left_out(report: dict[str, Any]) -> list[str]:
    """Return sentences on the questions and rows that no score counts."""
    data, lines = report["data"], []
    if data["asked"] < data["questions"]:
        lines.append(f"{data['asked']} of {data['questions']} questions were asked.")
    if data["skipped"]:
        rows, verb, them = _agreeing(len(data["skipped"]), "row")
        lines.append(f"{rows} of the file {verb} skipped; no score counts {them}.")
    failed = {failure["index"] for failure in report["failures"]}
    if failed:
        questions, _, them = _agreeing(len(failed), "question")
        lines.append(f"{questions} failed somewhere; those cells do not count {them}.")
    return lines


def _agreeing(number: int, noun: str) -> tuple[str, str, str]:
    """Return a counted noun, with the verb and the pronoun that agree with it."""
    return counted(number, noun), *(("was", "it") if number == 1 else ("were", "them"))


def percent(share: float | None) -> str:
    """A share as text; a dash for none."""
    return "–" if share is None else f"{share * 100:.1f} %"
