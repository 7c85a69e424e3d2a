"""Write the tables of two engines on one decoder from the kept figures in `benchmarks/results/`.

    python -m benchmarks decoders-table [--check]

With --check nothing is written; the exit code is 1 where the page and the figures differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.decoders.files import LLAMA, ORT, PAIRS
from benchmarks.machine import spread
from benchmarks.page import RESULTS, between_marks, write_or_check

SCHEMA = 1
# stage → how the table names it
STAGES = {
    "prefill_short": "prefill of 128",
    "prefill_long": "prefill of 728",
    "decode_one": "decode of one",
    "decode_many": "decode of eight",
}


def main(argv: Sequence[str]) -> None:
    """Write the page, or compare it with the figures."""
    write_or_check(argv, "decoders", __doc__, page_with_tables)


def page_with_tables(text: str) -> str:
    """Return a page with the tables between its marks."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("decoders-*.json"))]
    return between_marks(text, "decoders", "\n\n".join(table(result) for result in results))


def table(result: dict[str, Any]) -> str:
    """Return one run's figures in Markdown."""
    if result["schema"] != SCHEMA:
        raise SystemExit(f"figures of schema {result['schema']}; this script reads {SCHEMA}")
    machine, ways = result["machine"], result["ways"]
    dots = "with" if machine["int8_dot"] else "without"
    lines = [
        f"**InternLM2-1.8B's decoder**, {result['layers']} layers, {machine['cores']} cores of "
        f"{machine['cpu']} {dots} 8-bit dot products, {len(ways[0]['rounds'])} rounds, "
        f"{result['date']}; tokens per second, minimum / median / maximum:",
        "",
        f"| engine | weights | file | {' | '.join(STAGES.values())} | peak |",
        f"|---|---|---|{'---|' * len(STAGES)}---|",
        *(_row(way) for way in ways),
        "",
        *(f"- {line}" for line in _ratio_lines(ways)),
    ]
    return "\n".join(lines)


def _row(way: dict[str, Any]) -> str:
    rates = [spread([turn[stage] for turn in way["rounds"]]) for stage in STAGES]
    cells = [way["engine"], way["quant"], _megabytes(way["file"]), *rates, _megabytes(way["peak"])]
    return f"| {' | '.join(cells)} |"


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"


def _ratio_lines(ways: list[dict[str, Any]]) -> Iterator[str]:
    """Yield, of weights of about as many bits, how the engines compare round by round."""
    found = {(way["engine"], way["quant"]): way for way in ways}
    for bits, quant in PAIRS:
        own, other = found[ORT, bits], found[LLAMA, quant]
        parts = []
        for stage, name in STAGES.items():
            pairs = zip(own["rounds"], other["rounds"], strict=True)
            parts.append(f"{name} {spread([a[stage] / b[stage] for a, b in pairs])}")
        parts.append(f"peak {own['peak'] / other['peak']:.2f}")
        yield f"{ORT}, {bits} / {LLAMA} {quant}: {', '.join(parts)}"
