"""Data + matrix → a run that can be continued, and its reports, in one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgeprism.evaluation.matrix import Matrix
from edgeprism.evaluation.page import write_page
from edgeprism.evaluation.questions import QuestionFile, choose_questions
from edgeprism.evaluation.report import ReportInput, to_report, write_csv, write_json
from edgeprism.evaluation.results import FILE_NAME, Results
from edgeprism.evaluation.run import Progress, Run
from edgeprism.files.regular import open_regular
from edgeprism.output.places import check_report_folder
from edgeprism.output.written import (
    remember_reports,
    set_edited_reports_aside,
    set_reports_aside,
)
from edgeprism.reason.base import BaseReasoner

PAGE, JSON, CSV = "report.html", "report.json", "answers.csv"
_REPORTS = (PAGE, JSON, CSV)


def own_questions() -> Path:
    """Return the path of the built-in captioner's question set."""
    return Path(str(files("edgeprism.models.nano").joinpath("questions.tsv")))


def check_out(out: Path, data: Path) -> None:
    """Check that the reports can be written to `out` without loss; writes nothing.

    Raises UsageError if that would replace `data` or `out` is a model's folder, OutputError if
    `out` cannot be written or holds another program's files under the reports' names.
    """
    names = (*_REPORTS, FILE_NAME)
    check_report_folder(out, names, keyword="out", own=Results.is_in(out), inputs=[data])


def _keep_earlier(out: Path, report: dict[str, Any]) -> None:
    """Give earlier reports another name if new ones would lose something.

    A larger matrix, or more models, continues the same report; other settings, or other questions
    of the data, make another one. So do a person's edits.
    """
    try:
        with open_regular(out / JSON) as file:
            earlier = json.load(file)
        chosen = ("splits", "limit", "sample", "seed")
        same = earlier["settings"] == report["settings"] and all(
            earlier["data"][name] == report["data"][name] for name in chosen
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        same = True  # there is none, or it is no report of this version
    if same:
        set_edited_reports_aside(out, _REPORTS)
        return
    set_reports_aside(out, _REPORTS)


def evaluate(
    file: QuestionFile,
    matrix: Matrix,
    out: Path,
    *,
    splits: Sequence[str] = (),
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    judge: BaseReasoner | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Answer every question with every cell, write the reports to `out`, and return the report.

    Records that `out` has already are not made again. Raises UsageError if `out` belongs to other
    data or no question is left, OutputError if `out` cannot be used (`check_out`), Interrupted if
    stopped; the records made by then stay.
    """
    check_out(out, file.tsv.path)
    questions = choose_questions(
        file.questions, splits=splits, limit=limit, sample=sample, seed=seed
    )
    md5 = file.tsv.md5()
    with Results(out, md5) as results:
        run = Run(matrix, file, questions, results, judge=judge, progress=progress)
        run.complete()
        outcomes = run.outcomes()
    inputs = ReportInput(
        file, md5, matrix, questions, outcomes,
        {"splits": list(splits), "limit": limit, "sample": sample, "seed": seed},
        judge,
    )  # fmt: skip
    report = to_report(inputs)
    _keep_earlier(out, report)
    write_csv(inputs, out / CSV)
    write_page(inputs, report, out / PAGE)
    write_json(report, out / JSON)
    remember_reports(out, _REPORTS)
    return report
