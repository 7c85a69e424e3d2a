"""Write the tables of `benchmarks/README.md` from the kept figures in `benchmarks/results/`.

    python -m benchmarks peers-table [--check]

With --check nothing is written; the exit code is 1 where the page and the figures differ.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import spread
from benchmarks.peers.compare import SCHEMA, STAGES, Runner, ratio_lines

BENCHMARKS = Path(__file__).resolve().parents[1]
README, RESULTS = BENCHMARKS / "README.md", BENCHMARKS / "results"
BEGIN, END = (
    "<!-- peers: begin, written by `python -m benchmarks peers-table` -->",
    "<!-- peers: end -->",
)


def main(argv: Sequence[str]) -> None:
    """Write the page, or compare it with the figures."""
    parser = argparse.ArgumentParser("python -m benchmarks peers-table", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args(argv)
    text = README.read_text(encoding="utf-8")
    page = page_with_tables(text)
    if not arguments.check:
        README.write_text(page, encoding="utf-8")
    elif page != text:
        raise SystemExit(f"{README} differs from the figures in {RESULTS}: write it again")


def page_with_tables(text: str) -> str:
    """Return a page with the tables between its marks."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("peers-*.json"))]
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    tables = "\n\n".join(_table(result) for result in results)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


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
