"""Tables of `benchmarks/README.md`, written from the kept figures in `benchmarks/results/`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
README, RESULTS = BENCHMARKS / "README.md", BENCHMARKS / "results"


def marks(name: str) -> tuple[str, str]:
    """Return what stands before and behind the tables that `benchmarks NAME-table` writes."""
    begin = f"<!-- {name}: begin, written by `python -m benchmarks {name}-table` -->"
    return begin, f"<!-- {name}: end -->"


def between_marks(text: str, name: str, tables: str) -> str:
    """Return a page with `tables` in the place of those between the marks of `name`."""
    begin, end = marks(name)
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def write_or_check(
    argv: Sequence[str], name: str, description: str | None, page: Callable[[str], str]
) -> None:
    """Write the page that `page` makes of README's text, or with --check compare the two."""
    parser = argparse.ArgumentParser(f"python -m benchmarks {name}-table", description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args(argv)
    text = README.read_text(encoding="utf-8")
    made = page(text)
    if not arguments.check:
        README.write_text(made, encoding="utf-8")
    elif made != text:
        raise SystemExit(f"{README} differs from the figures in {RESULTS}: write it again")
