"""`edgeprism bench`: how fast a captioner and a reasoner run on this machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeprism.choices import DEFAULT_MODEL, VISION_QUANTS
from edgeprism.cli import completion
from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.named_models import told_to_pull
from edgeprism.cli.options import (
    default_captioner,
    default_reasoner,
    engine_options,
    visual_tokens_option,
)
from edgeprism.cli.terminal import StderrProgress, is_quiet, print_json, say
from edgeprism.errors import EXIT_DONE, ModelError, UsageError
from edgeprism.files.safe_text import json_text

if TYPE_CHECKING:
    from edgeprism.bench.measure import Order
    from edgeprism.bench.report import Report

_PIPE_WIDTH = 10_000  # columns


@with_examples(
    "edgeprism bench",
    "edgeprism bench --model ./my-bundle --runs 5 --json laptop.json --html laptop.html",
    "edgeprism bench --compare laptop.json --compare jetson.json --html both.html",
    "edgeprism bench --no-run --compare laptop.json --compare jetson.json",
)
@click.command("bench", cls=Command)
@click.option("--image", "images", multiple=True, metavar="FILE", shell_complete=completion.files,
              type=click.Path(dir_okay=False),
              help="A picture; repeat for several, which are taken in turn.  [default: an "
              "example picture of EdgePrism's]")  # fmt: skip
@click.option("-m", "--model", default=default_captioner, shell_complete=completion.captioners,
              show_default=f"$EDGEPRISM_MODEL, `edgeprism use`, or {DEFAULT_MODEL}",
              metavar="NAME|BUNDLE|REFERENCE", help="The captioner.")  # fmt: skip
@click.option("--vision-quant", type=click.Choice(VISION_QUANTS),
              help="Variant of the vision graph.  [default: the best for the device]")  # fmt: skip
@visual_tokens_option
@click.option("--max-tokens", "caption_tokens", type=click.IntRange(min=1), metavar="N",
              help="Longest caption.  [default: the model's]")  # fmt: skip
@click.option("--reasoner", metavar="NAME|FILE.gguf|REFERENCE", default=default_reasoner,
              shell_complete=completion.reasoners,
              show_default="`edgeprism use`, or smollm2-135m; none if it is not installed",
              help="The reasoner, on this machine.")  # fmt: skip
@click.option("--no-reasoner", is_flag=True, help="Measure no reasoner.")
@click.option("--no-folder", is_flag=True, help="Measure no folder.")
@click.option("--runs", type=click.IntRange(min=1, max=1000), default=10, show_default=True,
              metavar="N", help="How often each thing is measured.")  # fmt: skip
@click.option("--no-run", is_flag=True, help="Measure nothing; show the files of --compare.")
@click.option("--compare", multiple=True, metavar="OLD.json", type=click.Path(dir_okay=False),
              shell_complete=completion.files,
              help="Show the figures of this file too, side by side; repeatable.")  # fmt: skip
@click.option("--json", "json_file", metavar="FILE|-", shell_complete=completion.files,
              type=click.Path(dir_okay=False, allow_dash=True),
              help="Write all values as JSON; `-` prints them in place of the tables.")  # fmt: skip
@click.option("--html", "html_file", metavar="FILE", type=click.Path(dir_okay=False),
              shell_complete=completion.files,
              help="Write one page with plots, which loads nothing from a network.")  # fmt: skip
@engine_options
def command(
    compare: tuple[str, ...],
    no_run: bool,
    json_file: str | None,
    html_file: str | None,
    **options: Any,
) -> int:
    """Measure how fast models run on this machine, beside what it could do.

    Times whole processes from outside (cold) and captions in one process (warm), stage by stage,
    then the reasoner and a folder. The floor of a stage is its operations and bytes, counted from
    the model's files, at rates that are measured on the spot. Other programs' load is told, so
    close them first.
    """
    from edgeprism.bench.report import read_report

    if no_run and (not compare or json_file):
        raise UsageError(
            "--no-run measures nothing." if json_file else "--no-run leaves nothing to show.",
            "Leave out --json." if json_file else "Name files with --compare.",
        )
    reports = [read_report(Path(path)) for path in compare]
    _check_targets(json_file, html_file)
    names = [Path(path).stem for path in compare]
    if not no_run:
        reports.insert(0, _measure(options))
        names.insert(0, "this run")
    _write(reports, names, json_file, html_file)
    if json_file != "-":
        _show(reports, names, measured=not no_run)
    return EXIT_DONE


def _check_targets(json_file: str | None, html_file: str | None) -> None:
    """Refuse, before the work, files that cannot be written or that hold something else."""
    from edgeprism.bench.page import is_page
    from edgeprism.bench.report import read_report

    for name in (json_file, html_file):
        if name and name != "-" and not Path(name).absolute().parent.is_dir():
            raise UsageError(f"{name}: its folder does not exist.", "Make the folder first.")
    hint = "Name another file, or remove this one."
    if json_file and json_file != "-" and os.path.lexists(json_file):
        try:
            read_report(Path(json_file))
        except UsageError as error:
            raise UsageError(f"{json_file} exists and holds something else.", hint) from error
    if html_file and os.path.lexists(html_file) and not is_page(Path(html_file)):
        raise UsageError(f"{html_file} exists and holds something else.", hint)


def _measure(options: dict[str, Any]) -> Report:
    from edgeprism.bench.run import bench

    order, notes = _order(options)
    with _progress() as progress:
        report = bench(order, progress)
    report.notes.extend(notes)
    return report


def _order(options: dict[str, Any]) -> tuple[Order, list[str]]:
    """Return what to measure, and notes on what is left out."""
    from edgeprism.bench.measure import Order
    from edgeprism.machine.device import EngineOptions

    reasoner, notes = options["reasoner"], []
    if options["no_reasoner"]:
        reasoner = None
    elif reasoner.lower().startswith(("http://", "https://")):
        raise UsageError(
            f"{reasoner}: on a server, whose speed is not this machine's.",
            "Name a reasoner on this machine, or give --no-reasoner.",
        )
    else:
        reasoner, why_not = _installed(reasoner)
        notes += [why_not] if why_not else []
    engine = EngineOptions(
        device=options["device"], threads=options["threads"], gpu_layers=options["gpu_layers"]
    )
    with told_to_pull(options["model"]):
        _check_model(options["model"])
    order = Order(
        model=options["model"],
        reasoner=reasoner,
        images=options["images"] or (_example(),),
        runs=options["runs"],
        caption_tokens=options["caption_tokens"],
        folder=not options["no_folder"],
        engine=engine,
        vision_quant=options["vision_quant"],
        visual_tokens=options["visual_tokens"],
    )
    return order, notes


def _check_model(model: str) -> None:
    from edgeprism.vision.open_model import open_model

    open_model(model)


def _installed(reasoner: str) -> tuple[str | None, str]:
    """Return the reasoner; None, and why, for a default one that is not installed."""
    from edgeprism.reason.local import Reasoner

    source = click.get_current_context().get_parameter_source("reasoner")
    try:
        Reasoner.load(reasoner)
    except ModelError as error:
        if source == ParameterSource.DEFAULT:
            return None, f"No reasoner was measured: {error.summary}"
        raise
    return reasoner, ""


def _example() -> str:
    from importlib.resources import files

    return str(files("edgeprism.models.nano").joinpath("examples", "scene1.png"))


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Show on a terminal what is measured now."""
    if is_quiet():
        yield lambda *_: lambda: None
        return
    with StderrProgress().shown() as bar:

        def begin(what: str, steps: int) -> Callable[[], None]:
            bar.stage(what, steps)
            return bar.advance

        yield begin


def _write(
    reports: list[Report], names: list[str], json_file: str | None, html_file: str | None
) -> None:
    from edgeprism.bench.page import write_page
    from edgeprism.files.atomic import write_atomically

    if json_file == "-":
        print_json(reports[0].to_dict(), indent=1)
    elif json_file:
        text = json_text(reports[0].to_dict(), indent=1) + "\n"
        write_atomically(Path(json_file), text.encode())
        say(f"wrote {json_file}")
    if html_file:
        write_page(reports, names, Path(html_file))
        say(f"wrote {html_file}")


def _show(reports: list[Report], names: list[str], *, measured: bool) -> None:
    from rich.console import Console

    from edgeprism.bench.table import print_comparison, print_report

    # In a pipe nothing is as wide as a terminal: a row stays on one line.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    console = Console(width=width, soft_wrap=width is not None, highlight=False)
    if measured or len(reports) == 1:
        print_report(reports[0], console)
    if len(reports) > 1:
        print_comparison(reports, names, console)
