"""Write the tables of `benchmarks/README.md` from the kept figures in `benchmarks/results/`.

    python -m benchmarks peers-table [--check]

With --check nothing is written; the exit code is 1 where the page and the figures differ.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.machine import spread
from benchmarks.page import RESULTS, between_marks, write_or_check
from benchmarks.peers.compare import SCHEMA, STAGES, Runner, ratio_lines


def main(argv: Sequence[str]) -> None:
    """Write the page, or compare it with the figures."""
    write_or_check(argv, "peers", __doc__, page_with_tables)


def page_with_tables(text: str) -> str:
    """Return a page with the tables between its marks."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("peers-*.json"))]
    return between_marks(text, "peers", "\n\n".join(_table(result) for result in results))


def _table(result: dict[str, Any]) -> str:
    if result["schema"] != SCHEMA:
        raise SystemExit(f"figures of schema {result['schema']}; this script reads {SCHEMA}")
    machine = result["machine"]
    dots = "with" if machine["int8_dot"] else "without"
    runners = [Runner(**engine) for engine in result["engines"]]
    width, height = result["picture"]
    lines = [
        f"**{result['size']}**, a picture of {width}×{height}, language model {result['lm_quant']} "
        f"of {result['layers']} layers, {machine['cores']} cores of {machine['cpu']} {dots} 8-bit "
        f"dot products, {result['rounds']} rounds, {result['date']}; seconds, minimum / median / "
        "maximum:",
        "",
        "| engine | encode | first token | a token of decode | peak | error of rows | setting |",
        "|---|---|---|---|---|---|---|",
        *(_row(runner) for runner in runners),
        "",
        *(f"- {line}" for stage in STAGES for line in ratio_lines(runners, stage)),
        *(f"- left out: {name}, because {why}" for name, why in result["left_out"].items()),
    ]  # fmt: skip
    return "\n".join(lines)


def _row(runner: Runner) -> str:
    cells = [runner.name]
    for stage in STAGES:
        values = [float(turn[stage] or 0) for turn in runner.rounds if turn[stage] is not None]
        cells.append(spread(values) if values else "–")
    cells.append(f"{(runner.peak or 0) / 1e6:,.0f} MB")
    cells.append("–" if runner.error is None else f"{runner.error:.2g}")
    cells.append(", ".join(f"{flag} {value}" for flag, value in runner.setting.items()))
    return f"| {' | '.join(cells)} |"
