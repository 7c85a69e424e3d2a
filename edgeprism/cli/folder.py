"""`edgeprism caption` over many pictures: the batch engine, its outputs, progress and summary."""

from __future__ import annotations

import contextlib
import errno
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprism.errors import EdgePrismError, Interrupted, OutputError
from edgeprism.files.atomic import AtomicFile
from edgeprism.folder.batch import Batch
from edgeprism.folder.events import Outcome
from edgeprism.machine.cancel import finishing_first
from edgeprism.output.sidecar import Sidecar, TxtSidecar, XmpSidecar
from edgeprism.output.streams import (
    CsvOutput,
    JsonLinesOutput,
    JsonOutput,
    RecordOutput,
    TextOutput,
)
from edgeprism.perceive.captioner import Captioner, Plan
from edgeprism.picture.find import PictureSearch
from edgeprism.store.caption_store import CaptionStore, default_path

if TYPE_CHECKING:
    from rich.progress import Progress

SOME_FAILED = 3
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class FolderOptions:
    """What the command line asked for beside the caption itself."""

    form: str = "text"  # text | json | jsonl | csv
    output: str | None = None
    txt: bool = False
    xmp: bool = False
    out_dir: str | None = None
    overwrite: bool = False
    use_store: bool = True
    parallel: int | None = None
    stop_on_error: bool = False
    errors_file: str | None = None


@dataclass
class _Tally:
    """Counts for the summary."""

    total: int
    made: int = 0
    known: int = 0
    failures: list[tuple[str, EdgePrismError]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def done(self) -> int:
        return self.made + self.known + len(self.failures)


def caption_folder(
    search: PictureSearch, captioner: Captioner, plan: Plan, options: FolderOptions
) -> int:
    """Caption what `search` finds; the exit code. Errors of single pictures do not end it."""
    pictures = list(search)
    tally = _Tally(len(pictures))
    store = CaptionStore(default_path()) if options.use_store else None
    with contextlib.ExitStack() as stack:
        if store is not None:
            stack.callback(store.close)
        outputs = stack.enter_context(_open_outputs(options))
        sidecars = _sidecars(options, store)
        width, lanes = _shape(captioner, options.parallel)
        batch = Batch(
            captioner,
            plan,
            open_store=(lambda: CaptionStore(default_path())) if options.use_store else None,
            parallel=width,
            lanes=lanes,
        )
        stack.enter_context(finishing_first(batch.stop))
        show = stack.enter_context(_progress(tally))
        for outcome in batch.run(pictures):
            error = _settle(outcome, tally, outputs, sidecars, store)
            if error is not None and options.stop_on_error:
                batch.stop()
            show()
        stopped = batch.stopped and not options.stop_on_error
        if options.errors_file:
            _write_errors(options.errors_file, tally)
        if stopped:
            for output in outputs:
                output.discard()  # a file is complete or it is not there; the store has the rest
    _summary(tally, search)
    if stopped:
        raise Interrupted(
            f"Interrupted: {tally.done()} of {tally.total} pictures are done.",
            "The same command goes on from here." if options.use_store else "",
        )
    if not tally.failures and not search.unreadable:
        return 0
    return SOME_FAILED if tally.made + tally.known else EdgePrismError.exit_code


def dry_run(search: PictureSearch, captioner: Captioner, plan: Plan, use_store: bool) -> None:
    """Say what would be done, and about how long it would take; nothing is captioned."""
    pictures = list(search)
    batch = Batch(captioner, plan)
    known, seconds = 0, None
    if use_store:
        with CaptionStore(default_path()) as store:
            known = sum(batch.is_known(picture, store) for picture in pictures)
            seconds = store.seconds_per_picture(captioner.bundle.digest)
    left = len(pictures) - known
    click.echo(f"{len(pictures)} pictures, {known} captioned already, {left} to do")
    if left and seconds is not None:
        click.echo(f"about {_duration(left * seconds)} at {seconds:.2f} s a picture, as before")
    elif left:
        click.echo("no estimate: this model has captioned nothing here yet")
    _other_files(search, click.echo)


def _settle(
    outcome: Outcome,
    tally: _Tally,
    outputs: list[RecordOutput],
    sidecars: list[Sidecar],
    store: CaptionStore | None,
) -> EdgePrismError | None:
    """Write one outcome everywhere; the picture's error, if it has one."""
    picture, error = outcome.picture, outcome.error
    if outcome.record is not None:
        for output in outputs:
            output.write({**outcome.record, "cached": outcome.cached}, picture)
        try:
            for sidecar in sidecars:
                written = sidecar.write(outcome.record, picture)
                # also when it was there already: the run that wrote it may have been killed
                if store is not None and store.written_before(written.path) != written.sha256:
                    store.remember_output(written.path, written.sha256)
        except OutputError as failed:
            if isinstance(failed.__cause__, OSError) and failed.__cause__.errno in _DISK_FULL:
                raise  # every other picture would fail alike
            error = failed
    if error is not None:
        tally.failures.append((str(picture.path), error))
        _show_failure(error)
    elif outcome.cached:
        tally.known += 1
    else:
        tally.made += 1
    if error is None and not outputs and not sys.stderr.isatty():
        # no bar and no results on stdout: a line a picture is all there is to follow
        click.echo(f"{picture.path}: {'known' if outcome.cached else 'captioned'}", err=True)
    return error


@contextlib.contextmanager
def _open_outputs(options: FolderOptions) -> Iterator[list[RecordOutput]]:
    """The stream or file of results: none when only sidecars are asked for."""
    kinds: dict[str, Callable[[Any], RecordOutput]] = {
        "text": TextOutput,
        "json": JsonOutput,
        "jsonl": JsonLinesOutput,
        "csv": CsvOutput,
    }
    if options.output is None and options.form == "text" and (options.txt or options.xmp):
        yield []
        return
    target = sys.stdout if options.output is None else options.output
    with kinds[options.form](target) as output:
        yield [output]


def _sidecars(options: FolderOptions, store: CaptionStore | None) -> list[Sidecar]:
    common: dict[str, Any] = {"out_dir": options.out_dir, "overwrite": options.overwrite}
    before = store.written_before if store is not None else None
    sidecars: list[Sidecar] = []
    if options.txt:
        sidecars.append(TxtSidecar(**common, written_before=before))
    if options.xmp:
        sidecars.append(XmpSidecar(**common))
    return sidecars


def _shape(captioner: Captioner, width: int | None) -> tuple[int, int]:
    from edgeprism.folder.tuning import batch_shape

    return batch_shape(captioner, width)


@contextlib.contextmanager
def _progress(tally: _Tally) -> Iterator[Callable[[], None]]:
    """A live bar on a terminal; nothing elsewhere."""
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
        task = bar.add_task("", total=tally.total, rate=0.0, failed=0)

        def show() -> None:
            elapsed = max(time.monotonic() - tally.began, 1e-3)
            bar.update(
                task,
                completed=tally.done(),
                rate=tally.done() / elapsed,
                failed=len(tally.failures),
            )

        yield show


def _summary(tally: _Tally, search: PictureSearch) -> None:
    elapsed = max(time.monotonic() - tally.began, 1e-3)
    say = partial(click.echo, err=True)
    say(
        f"{tally.total} pictures: {tally.made} captioned, {tally.known} known already, "
        f"{len(tally.failures)} failed; {_duration(elapsed)}, {tally.done() / elapsed:.1f}/s"
    )
    _other_files(search, say)


def _other_files(search: PictureSearch, say: Callable[[str], None]) -> None:
    if search.skipped:
        say(f"{search.skipped} other files passed over")
    if search.repeated:
        say(f"{search.repeated} pictures named more than once")
    for folder in search.unreadable:
        say(f"{folder.path}: cannot be listed: {folder.reason}")


def _write_errors(path: str, tally: _Tally) -> None:
    """One JSON object a line: image, error, hint."""
    with AtomicFile(Path(path)) as file:
        for image, error in tally.failures:
            line = {"image": image, "error": error.message, "hint": error.hint}
            file.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")


def _show_failure(error: EdgePrismError) -> None:
    from edgeprism.cli import show_error

    show_error(error)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
