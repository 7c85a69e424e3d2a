"""Records of a run → scores with intervals, by category, and comparisons of cells.

Scores count scored questions only; reports list failed and skipped ones separately. An answer that
no rule (and no judge) could match counts as wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from edgeprism.evaluation.matrix import Cell
from edgeprism.evaluation.questions import EvalQuestion
from edgeprism.evaluation.scoring import Verdict
from edgeprism.evaluation.statistics import bootstrap_interval, holm, mcnemar, paired_interval

CHANCE = "random choice"
LEVELS = ("category", "l2-category")


@dataclass(frozen=True)
class AnswerOutcome:
    """One cell's answer to one question; an `error` instead of a verdict if it failed."""

    answer: str = ""
    verdict: Verdict | None = None
    focus: str = ""
    focus_note: str = ""
    captions: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)  # focus, perceive, reason
    error: str = ""


@dataclass(frozen=True)
class Score:
    """The mean over the scored questions, its 95 % interval, and their number."""

    scored: int
    accuracy: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Return the score for JSON, with None instead of NaN if no question was scored."""
        values = {"accuracy": self.accuracy, "low": self.low, "high": self.high}
        return {"scored": self.scored} | {
            name: None if value != value else round(value, 6) for name, value in values.items()
        }


def to_score(scores: Sequence[float], seed: int) -> Score:
    """The mean and its bootstrap interval."""
    low, high = bootstrap_interval(scores, seed=seed)
    return Score(len(scores), float(np.mean(scores)) if scores else float("nan"), low, high)


@dataclass
class CellResult:
    """The results of one cell: outcomes by question index, and the peak memory in bytes."""

    cell: Cell
    outcomes: dict[str, AnswerOutcome]
    memory_bytes: int | None = None

    def scores(self) -> dict[str, float]:
        """Return 1 or 0 for each scored question, by index."""
        return {
            index: float(outcome.verdict.right)
            for index, outcome in self.outcomes.items()
            if outcome.verdict is not None
        }


def chance_scores(questions: Sequence[EvalQuestion]) -> dict[str, float]:
    """Return the mean score of a random choice among the options; 0 for open questions."""
    return {q.index: 1 / len(q.options) if q.options else 0.0 for q in questions}


def cell_to_dict(
    result: CellResult, questions: Sequence[EvalQuestion], seed: int
) -> dict[str, Any]:
    """Return a cell's figures, as reports print them."""
    outcomes = result.outcomes
    scored = [o for o in outcomes.values() if o.verdict is not None]
    by_rule: dict[str, int] = {}
    for outcome in scored:
        rule = (outcome.verdict.by if outcome.verdict else "") or "none"
        by_rule[rule] = by_rule.get(rule, 0) + 1
    seconds = {
        stage: round(float(np.mean([o.seconds.get(stage, 0.0) for o in scored])), 4)
        for stage in ("focus", "perceive", "reason")
        if scored
    }
    return {
        "name": result.cell.name,
        "captioner": result.cell.captioner,
        "mode": result.cell.mode,
        "reasoner": result.cell.reasoner,
        **to_score(list(result.scores().values()), seed).to_dict(),
        "failed": sum(bool(o.error) for o in outcomes.values()),
        "unmatched": by_rule.get("none", 0),
        "matched_by": dict(sorted(by_rule.items())),
        "without_focus": sum(result.cell.mode == "question" and not o.focus for o in scored),
        "seconds": seconds | {"total": round(sum(seconds.values()), 4)} if seconds else {},
        "memory_bytes": result.memory_bytes,
        "categories": _categories(result.scores(), questions, seed),
    }


def chance_to_dict(questions: Sequence[EvalQuestion], seed: int) -> dict[str, Any]:
    """The row of the report that guessing would get."""
    scores = chance_scores(questions)
    return {
        "name": CHANCE,
        "captioner": "", "mode": CHANCE, "reasoner": "",
        **to_score(list(scores.values()), seed).to_dict(),
        "failed": 0, "unmatched": 0, "matched_by": {}, "without_focus": 0, "seconds": {},
        "memory_bytes": None,
        "categories": _categories(scores, questions, seed),
    }  # fmt: skip


def _categories(
    scores: dict[str, float], questions: Sequence[EvalQuestion], seed: int
) -> list[dict[str, Any]]:
    by_category: dict[tuple[str, str], list[float]] = {}
    for question in questions:
        if question.index in scores:
            for level, name in zip(LEVELS, (question.category, question.l2_category), strict=True):
                if name:
                    by_category.setdefault((level, name), []).append(scores[question.index])
    return [
        {"level": level, "name": name, **to_score(values, seed).to_dict()}
        for (level, name), values in sorted(by_category.items())
    ]


def pairs(
    results: Sequence[CellResult], questions: Sequence[EvalQuestion], seed: int
) -> list[dict[str, Any]]:
    """Compare every two cells on the questions scored in both; then each cell with chance.

    The comparisons with chance have a bootstrap interval, but no test.
    """
    scores = {result.cell.name: result.scores() for result in results}
    compared = [_pair(a, b, scores[a], scores[b], seed) for a, b in combinations(scores, 2)]
    tested = [pair for pair in compared if pair["p"] is not None]
    for pair, p in zip(tested, holm([pair["p"] for pair in tested]), strict=True):
        pair["p_holm"] = p
    chance = chance_scores(questions)
    return compared + [
        {**_pair(name, CHANCE, scores[name], chance, seed), "only_a": None, "only_b": None,
         "p": None, "p_holm": None}
        for name in scores
    ]  # fmt: skip


def _pair(
    a: str, b: str, scores_a: dict[str, float], scores_b: dict[str, float], seed: int
) -> dict[str, Any]:
    common = [index for index in scores_a if index in scores_b]
    common_a, common_b = [scores_a[i] for i in common], [scores_b[i] for i in common]
    difference, low, high = paired_interval(common_a, common_b, seed=seed)
    only_a = sum(x > y for x, y in zip(common_a, common_b, strict=True))
    only_b = sum(x < y for x, y in zip(common_a, common_b, strict=True))
    values = {"difference": difference, "low": low, "high": high}
    return {
        "a": a, "b": b, "both": len(common), "only_a": only_a, "only_b": only_b,
        **{n: None if v != v else round(v, 6) for n, v in values.items()},
        "p": mcnemar(only_a, only_b) if common else None, "p_holm": None,
    }  # fmt: skip


def failures(results: Sequence[CellResult]) -> Iterator[dict[str, str]]:
    """Yield each failed question with its cell and error."""
    for result in results:
        for index, outcome in result.outcomes.items():
            if outcome.error:
                yield {"cell": result.cell.name, "index": index, "error": outcome.error}
