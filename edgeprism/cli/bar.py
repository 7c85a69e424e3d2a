"""The progress bar of a run over many pictures, and text that stands above it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from edgeprism.folder.run import FolderResult


class ProgressBar:
    """A bar on stderr, if that is a terminal and the user wants one; nothing elsewhere.

    Whatever is written to the same terminal, by any stream, belongs inside `aside`: the bar
    leaves the screen for it, so that neither overwrites the other.
    """

    def __init__(self, result: FolderResult, *, quiet: bool = False) -> None:
        self._result = result
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            self._bar = _new_bar()
            self._task = self._bar.add_task("", total=result.total, rate=0.0, failed=0)

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self) -> None:
        """Show how far the run is."""
        result = self._result
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=result.done,
                total=max(result.total, result.done),
                rate=result.done / max(result.seconds, 1e-3),
                failed=len(result.failures),
            )

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar off the screen inside the block."""
        if self._bar is None:
            yield
            return
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


def _new_bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f}/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]} failed"),
        console=Console(stderr=True),
        transient=True,  # the summary takes its place
        redirect_stdout=False,  # results must not go to stderr
        redirect_stderr=False,
    )
