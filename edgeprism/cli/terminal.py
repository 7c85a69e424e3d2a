"""Lines and progress bars for a person, on stderr, and paths for scripts, on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from edgeprism.cli.errors import colour_choice
from edgeprism.files.safe_text import json_text, printable_line
from edgeprism.files.size_text import size_text as known_size_text
from edgeprism.progress import Progress

if TYPE_CHECKING:
    from rich.progress import TaskID

_QUIET = "edgeprism.quiet"


def be_quiet(ctx: click.Context) -> None:
    """Remember that a command was given --quiet, before or after its name."""
    ctx.find_root().meta[_QUIET] = True


def is_quiet() -> bool:
    """Return whether the command that runs now was given --quiet, before or after its name."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().meta.get(_QUIET))


def say(text: str, *, dim: bool = False) -> None:
    """Print one line on stderr, with the escapes of `printable_line`."""
    line = printable_line(text)
    click.echo(click.style(line, dim=True) if dim else line, err=True, color=colour_choice())


def confirm(question: str) -> bool:
    """Ask on stderr; where standard input has no answer (`</dev/null`), the answer is no."""
    try:
        return click.confirm(question, err=True)
    except click.Abort as abort:
        if isinstance(abort.__context__, EOFError):  # else Ctrl-C, which ends the command
            click.echo(err=True)
            return False
        raise


def print_line(text: str) -> None:
    """Print one line on stdout, with the escapes of `printable_line`."""
    click.echo(printable_line(text))


def in_columns(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield each row as a line whose cells stand below those of the others, two spaces apart."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def print_json(value: object, *, indent: int | None = None) -> None:
    """Print JSON on stdout, in UTF-8 whatever encoding the environment asks for."""
    click.echo(json_text(value, indent=indent).encode("utf-8"))


def size_text(size: int | None) -> str:
    """Return a number of bytes as a person reads it; "?" for an unknown one."""
    return "?" if size is None else known_size_text(size)


def print_path(path: os.PathLike[str]) -> None:
    """Print a path on stdout: its bytes for a script, with escapes where a terminal shows it."""
    if sys.stdout.isatty():
        click.echo(printable_line(os.fspath(path)))
    else:
        click.echo(os.fsencode(path))


class StderrProgress(Progress):
    """A rich progress bar on stderr; only the lines of `say` where stderr is not a terminal.

    With --quiet, nothing.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._quiet = is_quiet()
        self._console = Console(stderr=True, highlight=False)
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not sys.stderr.isatty() or self._quiet,
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
        self._task = self._bar.add_task(printable_line(text), total=total or None)

    def advance(self, amount: int = 1) -> None:
        """Advance the bar."""
        if self._task is not None:
            self._bar.advance(self._task, amount)

    def say(self, text: str) -> None:
        """Print a line above the bar, unless --quiet is given."""
        if self._quiet:
            return
        self._console.print(printable_line(text), markup=False, soft_wrap=True)
