"""`edgeprism caption` over many pictures: results, progress and summary of a run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from edgeprism.cli.advice import advise_captioner
from edgeprism.cli.bar import ProgressBar
from edgeprism.cli.errors import show_error, with_options
from edgeprism.cli.summary import (
    tell_estimate,
    tell_other_files,
    tell_result,
    tell_what_is_passed_over,
    tell_what_lacks_a_plugin,
)
from edgeprism.cli.terminal import print_line, say
from edgeprism.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_NOTHING,
    EXIT_SOME_FAILED,
    EdgePrismError,
    ImageError,
    Interrupted,
)
from edgeprism.folder.causes import cause_key, reason_of
from edgeprism.folder.estimate import estimate_folder
from edgeprism.folder.events import Outcome
from edgeprism.folder.run import Failure, FolderOptions, FolderResult, FolderRun
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
from edgeprism.picture.find import PictureFile, PictureSearch
from edgeprism.picture.kinds import NEEDS_PLUGIN, lacks_plugin

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
    *,
    told: Mapping[Path, EdgePrismError] = MappingProxyType({}),
    quiet: bool = False,
) -> int:
    """Caption the pictures of `search`, even if some fail; return the exit code.

    The errors `told` were printed before (`tell_missing`).
    """
    with contextlib.ExitStack() as stack:
        shows_results, notices = _shows_results(results, options), _Notices()
        options = replace(options, sidecars_only=not shows_results, on_notice=notices.show)
        run = stack.enter_context(FolderRun(search, captioner, plan, options))
        if run.pictures is not None and not run.pictures:
            if results.output is None:  # a result of nothing; an older file stays
                stack.enter_context(_open_outputs(results, shows_results))
            return _nothing_found(run.result, quiet)
        outputs = stack.enter_context(_open_outputs(results, shows_results))
        errors = None
        if results.errors_file:
            errors = stack.enter_context(FailureOutput(results.errors_file))
        if run.pictures is not None and not quiet:
            tell_what_is_passed_over(run.result.passed)
            tell_what_lacks_a_plugin(
                sum(lacks_plugin(picture.path.name) for picture in run.pictures)
            )
        run.start()
        stack.enter_context(finishing_first(run.stop))
        bar = stack.enter_context(ProgressBar(run.result, quiet=quiet))
        notices.bar = bar
        manifest, unknown = captioner.bundle.manifest, 0  # captions that recognise nothing
        report = _Report(outputs, bar, told, told_of_plugin=run.pictures is not None and not quiet)
        try:
            for outcome in run:
                report.show(outcome)
                if outcome.record is not None:
                    unknown += manifest.says_nothing(str(outcome.record["caption"]))
                bar.update()
        except EdgePrismError:  # such as a full disk, which ends the run
            if not quiet:
                with bar.aside():
                    tell_result(run.result)
            raise
        if errors is not None:
            _write_errors(errors, run.result.failures)
        if run.result.stopped:
            for output in outputs:
                output.discard()  # keeps no incomplete file; the store has the finished captions
    code = _finish(run.result, options.use_store, quiet)
    advise_captioner(manifest, says_nothing=2 * unknown > run.result.captioned + run.result.known)
    return code


def tell_missing(images: Iterable[str], *, fail: bool) -> dict[Path, EdgePrismError]:
    """Tell of arguments that name nothing before any work; return their errors.

    At its turn, after hours perhaps, a slip would be seen too late. With `fail` it is an error,
    because the run that follows counts it as failed.
    """
    from edgeprism.picture.patterns import is_pattern
    from edgeprism.picture.source import check_source

    told: dict[Path, EdgePrismError] = {}
    for image in images:
        if image in ("", "-") or is_pattern(image) or os.path.lexists(image):
            continue
        try:
            check_source(image)
        except ImageError as error:
            if fail:
                hint = "" if told else error.hint
                show_error(EdgePrismError(error.summary, hint))
            else:
                say(f"note: {error.summary}")
            told[Path(image)] = error
    return told


def dry_run(search: PictureSearch, captioner: Captioner, plan: Plan, options: FolderOptions) -> int:
    """Print the work of a run and its estimated time; return the exit code.

    It writes nothing. Where no earlier run tells the time, it captions some of the pictures.
    """
    estimate = estimate_folder(
        search,
        captioner,
        plan=plan,
        use_store=options.use_store,
        parallel=options.parallel,
        shard=options.shard,
        measure=True,
    )
    if not estimate.total:
        return _nothing_found(
            FolderResult(0, passed=search.passed, unreadable=search.unreadable), quiet=False
        )
    tell_what_is_passed_over(search.passed, print_line)
    tell_what_lacks_a_plugin(estimate.unreadable, print_line)
    tell_estimate(estimate, print_line)
    tell_other_files(estimate.total, search.passed, search.repeated, search.unreadable, print_line)
    return EXIT_DONE


class _Notices:
    """Prints sentences about the caption store; the bar leaves the screen for them."""

    bar: ProgressBar | None = None

    def show(self, text: str) -> None:
        """Print one."""
        with contextlib.nullcontext() if self.bar is None else self.bar.aside():
            say(f"note: {text}")


class _Report:
    """Prints records and errors as they come; of errors with the same cause, the first."""

    def __init__(
        self,
        outputs: list[RecordOutput],
        bar: ProgressBar,
        told: Mapping[Path, EdgePrismError],
        *,
        told_of_plugin: bool,
    ) -> None:
        self._outputs, self._bar = outputs, bar
        # of the errors that were printed, and their hints
        self._causes = {cause_key(NEEDS_PLUGIN)} if told_of_plugin else set()
        self._hints: set[str] = set()
        self._told = told.keys()
        self._hints.update(error.hint for error in told.values())
        self._on_terminal = sys.stdout.isatty()

    def show(self, outcome: Outcome) -> None:
        """Print one picture's record or error."""
        if outcome.record is not None and self._outputs:
            record = {**outcome.record, "cached": outcome.cached}
            with self._bar.aside() if self._on_terminal else contextlib.nullcontext():
                for output in self._outputs:
                    output.write(record, outcome.picture)
        if outcome.error is not None and self._is_new(outcome.picture, outcome.error):
            error = outcome.error
            hint = "" if error.hint in self._hints else error.hint
            with self._bar.aside():
                show_error(EdgePrismError(error.summary, hint, error.details))
            self._hints.add(error.hint)

    def _is_new(self, picture: PictureFile, error: EdgePrismError) -> bool:
        if picture.path in self._told:
            return False
        key = cause_key(reason_of(picture.path, error))
        is_new = key not in self._causes
        self._causes.add(key)
        return is_new


def _nothing_found(result: FolderResult, quiet: bool) -> int:
    """Say that there is no picture, and what there is instead; return the exit code."""
    if not quiet:
        tell_what_is_passed_over(result.passed)
        tell_other_files(0, result.passed, result.repeated, result.unreadable, say)
    show_error(EdgePrismError("There is no picture to caption.", "Check the folder or the list."))
    return EXIT_FAILED if result.unreadable else EXIT_NOTHING


def _finish(result: FolderResult, use_store: bool, quiet: bool) -> int:
    """Print the summary and return the exit code; raise Interrupted if the run was stopped."""
    if not result.total and not result.stopped:
        return _nothing_found(result, quiet)
    if not quiet:
        tell_result(result)
    if result.stopped:
        raise Interrupted(
            f"Interrupted: {result.done} of {result.total} pictures are done.",
            "The same command goes on from here." if use_store else "",
        )
    if not result.failures and not result.unreadable:
        return EXIT_DONE
    done = result.captioned + result.known + result.passed_over
    return EXIT_SOME_FAILED if done else EXIT_FAILED


def _shows_results(results: ResultOptions, options: FolderOptions) -> bool:
    """Return whether captions go to stdout or a file, not to sidecars alone."""
    return results.output is not None or results.form != "text" or not options.sidecars


@contextlib.contextmanager
def _open_outputs(results: ResultOptions, shows_results: bool) -> Iterator[list[RecordOutput]]:
    """Open the stream or file of results; yield none if the run writes sidecars only."""
    if not shows_results:
        yield []
        return
    target = sys.stdout if results.output is None else results.output
    with _OUTPUTS[results.form](target) as output:
        yield [output]


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
