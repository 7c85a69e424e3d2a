"""`edgeprism doctor`: prints the findings, the faults, and the exact fix for each."""

from __future__ import annotations

from dataclasses import replace

import click

from edgeprism.cli.command import Command
from edgeprism.cli.errors import with_options
from edgeprism.cli.settings import check_settings
from edgeprism.cli.terminal import print_json
from edgeprism.errors import UsageError
from edgeprism.files.safe_text import printable_line

_MARKS = {"ok": ("ok  ", "green"), "warn": ("note", "yellow"), "bad": ("BAD ", "red")}


@click.command("doctor", cls=Command)
@click.option("--lm", type=click.Path(dir_okay=False), metavar="MODEL.gguf",
              help="With --mmproj: also report what this pair can do.")  # fmt: skip
@click.option("--mmproj", type=click.Path(dir_okay=False), metavar="MMPROJ.gguf",
              help="With --lm: the vision side.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(context: click.Context, lm: str | None, mmproj: str | None, as_json: bool) -> int:
    """Check engines, machine, data folder and models, without a network.

    Exit code 0: usable. 5: an engine is missing or broken. 4: the default model is missing or
    damaged.
    """
    from edgeprism.install.doctor import examine

    if bool(lm) != bool(mmproj):
        raise UsageError("--lm and --mmproj belong together.", "Name both files of the pair.")
    diagnosis = examine(pair=(lm, mmproj) if lm and mmproj else None, check_settings=check_settings)
    diagnosis.findings = [replace(f, fix=with_options(f.fix)) for f in diagnosis.findings]
    if as_json:
        print_json(diagnosis.to_dict(), indent=2)
        return diagnosis.exit_code
    width = max(len(finding.topic) for finding in diagnosis.findings)
    for finding in diagnosis.findings:
        mark, colour = _MARKS[finding.state]
        click.echo(
            f"{click.style(mark, fg=colour)}  {finding.topic.ljust(width)}  "
            f"{printable_line(finding.text)}",
            color=context.color,
        )
        if finding.fix:
            click.echo(f"{'':6}{'':{width}}  fix: {printable_line(finding.fix)}")
    return diagnosis.exit_code
