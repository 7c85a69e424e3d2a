"""Progress of a conversion: shown on stderr, or sent to the parent process, which shows it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Progress:
    """The interface of a progress display; this base class shows nothing."""

    def stage(self, text: str, total: int = 0) -> None:
        """Begin a new stage; `total` is its size in any unit, 0 if unknown."""

    def advance(self, amount: int = 1) -> None:
        """Report that the stage has progressed by `amount`."""

    def say(self, text: str) -> None:
        """Show a line that the user should read even where no progress bar is shown."""


class EventProgress(Progress):
    """Writes each event as one line of JSON, for the parent process."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def send(self, **event: Any) -> None:
        """Write one event."""
        self._out.write(json.dumps(event) + "\n")
        self._out.flush()

    def stage(self, text: str, total: int = 0) -> None:
        """Write the event "stage"."""
        self.send(event="stage", text=text, total=total)

    def advance(self, amount: int = 1) -> None:
        """Write the event "advance"."""
        self.send(event="advance", amount=amount)

    def say(self, text: str) -> None:
        """Write the event "say"."""
        self.send(event="say", text=text)


class StderrProgress(Progress):
    """A rich progress bar on stderr; only the lines of `say` where stderr is not a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True, highlight=False)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task: TaskID | None = None

    @contextmanager
    def shown(self) -> Iterator[StderrProgress]:
        """Show the bar inside the block."""
        with self._bar:
            yield self

    def stage(self, text: str, total: int = 0) -> None:
        """Replace the bar by one for the new stage."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(text, total=total or None)

    def advance(self, amount: int = 1) -> None:
        """Advance the bar."""
        if self._task is not None:
            self._bar.advance(self._task, amount)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)
