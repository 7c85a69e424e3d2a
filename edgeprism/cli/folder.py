"""`edgeprism caption` over many pictures: results, progress and summary of a run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from edgeprism.cli.errors import show_error, with_options
from edgeprism.errors import EXIT_DONE, EXIT_FAILED, EXIT_SOME_FAILED, Interrupted
from edgeprism.folder.events import Outcome
from edgeprism.folder.run import Failure, FolderOptions, FolderResult, FolderRun, estimate_folder
from edgeprism.machine.cancel import finishing_first
from edgeprism.output.streams import (
    CsvOutput,
    FailureOutput,
    JsonLinesOutput,
    JsonOutput,
    RecordOutput,
    TextOutput,
)
from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.options import Plan
from edgeprism.picture.find import PictureSearch

if TYPE_CHECKING:
    from rich.progress import Progress

_OUTPUTS: dict[str, type[RecordOutput]] = {
    "text": TextOutput,
    "json": JsonOutput,
    "jsonl": JsonLinesOutput,
    "csv": CsvOutput,
}


@dataclass(frozen=True)
class ResultOptions:
    """Where a run's results go, in addition to its sidecars."""

    form: str = "text"  # text | json | jsonl | csv
    output: str | None = None
    errors_file: str | None = None


def caption_folder(
    search: PictureSearch,
    captioner: Captioner,
    plan: Plan,
    options: FolderOptions,
    results: ResultOptions,
) -> int:
    """Caption the pictures of `search`, even if some fail; return the exit code."""
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(FolderRun(search, captioner, plan, options))
        outputs = stack.enter_context(_open_outputs(results, bool(options.sidecars)))
        errors = None
        if results.errors_file:
            errors = stack.enter_context(FailureOutput(results.errors_file))
        run.start()
        stack.enter_context(finishing_first(run.stop))
        show_progress = stack.enter_context(_progress(run.result))
        for outcome in run:
            _report(outcome, outputs)
            show_progress()
        if errors is not None:
            _write_errors(errors, run.result.failures)
        if run.result.stopped:
            for output in outputs:
                output.discard()  # keeps no incomplete file; the store has the finished captions
    return _finish(run.result, options.use_store)


def dry_run(search: PictureSearch, captioner: Captioner, plan: Plan, use_store: bool) -> None:
    """Print the work of a run and its estimated time, without captioning anything."""
    estimate = estimate_folder(search, captioner, plan=plan, use_store=use_store)
    left, seconds = estimate.left, estimate.seconds_per_picture
    click.echo(f"{estimate.total} pictures, {estimate.known} captioned already, {left} to caption")
    if left and seconds is not None:
        click.echo(f"about {_duration(left * seconds)} at {seconds:.2f} s a picture, as before")
    elif left:
        click.echo("no estimate: this model has captioned nothing here yet")
    _other_files(search, click.echo)


def _report(outcome: Outcome, outputs: list[RecordOutput]) -> None:
    """Print one picture's record or error, or a line that it is finished."""
    if outcome.record is not None:
        for output in outputs:
            output.write({**outcome.record, "cached": outcome.cached}, outcome.picture)
    if outcome.error is not None:
        show_error(outcome.error)
    elif not outputs and not sys.stderr.isatty():
        # Without a progress bar and results on stdout, a line per picture shows the progress.
        state = "known" if outcome.cached else "captioned"
        click.echo(f"{outcome.picture.path}: {state}", err=True)


def _finish(result: FolderResult, use_store: bool) -> int:
    """Print the summary and return the exit code; raise Interrupted if the run was stopped."""
    _summary(result)
    if result.stopped:
        raise Interrupted(
            f"Interrupted: {result.done} of {result.total} pictures are done.",
            "The same command goes on from here." if use_store else "",
        )
    if not result.failures and not result.unreadable:
        return EXIT_DONE
    return EXIT_SOME_FAILED if result.captioned + result.known else EXIT_FAILED


@contextlib.contextmanager
def _open_outputs(results: ResultOptions, has_sidecars: bool) -> Iterator[list[RecordOutput]]:
    """Open the stream or file of results; yield none if the run writes sidecars only."""
    if results.output is None and results.form == "text" and has_sidecars:
        yield []
        return
    target = sys.stdout if results.output is None else results.output
    with _OUTPUTS[results.form](target) as output:
        yield [output]


@contextlib.contextmanager
def _progress(result: FolderResult) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar: Progress = Bar(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f}/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]} failed"),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("", total=result.total, rate=0.0, failed=0)

        def show() -> None:
            bar.update(
                task,
                completed=result.done,
                rate=result.done / max(result.seconds, 1e-3),
                failed=len(result.failures),
            )

        yield show


def _summary(result: FolderResult) -> None:
    elapsed = max(result.seconds, 1e-3)
    _say(
        f"{result.total} pictures: {result.captioned} captioned, {result.known} known already, "
        f"{len(result.failures)} failed; {_duration(elapsed)}, {result.done / elapsed:.1f}/s"
    )
    _other_files(result, _say)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _other_files(search: PictureSearch | FolderResult, say: Callable[[str], None]) -> None:
    if search.skipped:
        say(f"{search.skipped} files skipped that are not pictures")
    if search.repeated:
        say(f"{search.repeated} pictures named more than once")
    for folder in search.unreadable:
        say(f"{folder.path}: cannot be listed: {folder.reason}")


def _write_errors(output: RecordOutput, failures: list[Failure]) -> None:
    """Write one JSON object per line: image, error, hint."""
    for failure in failures:
        error = failure.error
        output.write(
            {
                "image": str(failure.path),
                "error": error.message,
                "hint": with_options(error.hint),
            }
        )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
