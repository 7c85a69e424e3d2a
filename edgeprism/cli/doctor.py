"""`edgeprism doctor`: prints the findings, the faults, and the exact fix for each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from edgeprism.cli import completion
from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.errors import with_options
from edgeprism.cli.options import visual_tokens_option
from edgeprism.cli.settings import check_settings
from edgeprism.cli.sizes import text_to_bytes
from edgeprism.cli.terminal import print_json
from edgeprism.errors import EXIT_DONE, EXIT_FAILED, UsageError
from edgeprism.files.safe_text import printable_line

if TYPE_CHECKING:
    from edgeprism.vision.token_reduction import TokenLimit

_MARKS = {"ok": ("ok  ", "green"), "warn": ("note", "yellow"), "bad": ("BAD ", "red")}


@with_examples(
    "edgeprism doctor",
    "edgeprism doctor --plan nano --reasoner smollm2-135m",
    "edgeprism doctor --plan ./my-bundle --memory 8G --json",
)
@click.command("doctor", cls=Command)
@click.option("--plan", "model", metavar="NAME|BUNDLE|REFERENCE",
              shell_complete=completion.captioners,
              help="Only count what this captioner takes in memory.")  # fmt: skip
@click.option("--reasoner", metavar="NAME|FILE.gguf|REFERENCE",
              shell_complete=completion.reasoners,
              help="With --plan: the reasoner that answers from its captions.")  # fmt: skip
@visual_tokens_option
@click.option("--memory", metavar="SIZE",
              help="With --plan: for a machine of so much memory, e.g. 8G.")  # fmt: skip
@click.option("--lm", type=click.Path(dir_okay=False), metavar="MODEL.gguf",
              help="With --mmproj: also report what this pair can do.")  # fmt: skip
@click.option("--mmproj", type=click.Path(dir_okay=False), metavar="MMPROJ.gguf",
              help="With --lm: the vision side.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    context: click.Context,
    model: str | None,
    reasoner: str | None,
    visual_tokens: TokenLimit | None,
    memory: str | None,
    lm: str | None,
    mmproj: str | None,
    as_json: bool,
) -> int:
    """Check engines, machine, data folder and models, without a network.

    With --plan, count instead what models will take in memory, before they load: weights, what is
    computed with, and the cache of the prompt; together, and one model at a time.

    Exit code 0: usable. 5: an engine is missing or broken. 4: the default model is missing or
    damaged. 1: the models of --plan do not fit.
    """
    if model is not None:
        if lm or mmproj:
            raise UsageError("--plan names the captioner.", "Leave out --lm and --mmproj.")
        return _plan(model, reasoner, visual_tokens, memory, as_json)
    if reasoner or memory or visual_tokens:
        raise UsageError(
            "--reasoner, --visual-tokens and --memory belong to --plan.", "Name a captioner: --plan"
        )
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


def _plan(
    model: str,
    reasoner: str | None,
    visual_tokens: TokenLimit | None,
    memory: str | None,
    as_json: bool,
) -> int:
    """Print what the models take; return 1 if they do not fit even one at a time."""
    from edgeprism.cli.memory_plan import print_plan
    from edgeprism.cli.options import open_captioner, open_reasoner
    from edgeprism.language.gpu import find_gpu
    from edgeprism.memory.plan import Plan, machine_memory

    size = text_to_bytes("--memory", memory) if memory else None
    answering = open_reasoner(reasoner).memory_parts() if reasoner else None
    captioner = open_captioner(model, visual_tokens=visual_tokens).engines.memory_parts()
    plan = Plan((captioner,), answering, machine_memory(find_gpu(), size=size))
    if as_json:
        print_json(plan.to_dict(), indent=2)
    else:
        print_plan(plan)
    return EXIT_DONE if plan.fits() else EXIT_FAILED
