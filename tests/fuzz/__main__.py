"""`python -m tests.fuzz --minutes 60`: mutate files of every kind and see what becomes of them.

Run it in the root of the repository. Exit code 1 means that a file ended or hung the process, took
too much memory, or raised an error that is not EdgePrism's.
"""

from __future__ import annotations

from pathlib import Path

import click

from tests.fuzz.harness import Report, case, fuzz
from tests.fuzz.targets import TARGETS


@click.command()
@click.option("--minutes", default=2.0, show_default=True, help="How long in all.")
@click.option("--seed", default=0, show_default=True, help="Number of the first file.")
@click.option("--target", "names", multiple=True, type=click.Choice([t.name for t in TARGETS]))
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path),
              help="Write every file that failed into this folder.")  # fmt: skip
def main(minutes: float, seed: int, names: tuple[str, ...], keep: Path | None) -> None:
    """Mutate files of every kind, and print what became of them."""
    chosen = [target for target in TARGETS if not names or target.name in names]
    total = sum(target.share for target in chosen)
    reports: list[Report] = []
    for target in chosen:
        report = fuzz(target, seed, 60 * minutes * target.share / total)
        reports.append(report)
        click.echo(str(report))
        for finding in report.findings:
            click.echo(f"  {finding}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{finding.target}-{finding.seed}").write_bytes(case(target, finding.seed))
    if any(report.findings for report in reports):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
