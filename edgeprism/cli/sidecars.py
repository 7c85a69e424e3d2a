"""`edgeprism sidecars undo`: takes EdgePrism's words out of .txt and .xmp files again."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.errors import show_error
from edgeprism.cli.terminal import print_line, say
from edgeprism.errors import EXIT_DONE, EXIT_FAILED, EXIT_SOME_FAILED, OutputError, UsageError
from edgeprism.files.home import data_dir
from edgeprism.files.safe_text import counted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgeprism.output.sidecar import Sidecar
    from edgeprism.output.undo import Undo
    from edgeprism.picture.find import PictureFile
    from edgeprism.store.caption_store import CaptionStore


@click.group("sidecars")
def command() -> None:
    """Take captions out of .txt and .xmp files again."""


@with_examples(
    "edgeprism sidecars undo ~/Photos", "edgeprism sidecars undo ~/Photos --txt --dry-run"
)
@command.command("undo", cls=Command)
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE|FOLDER|PATTERN...")
@click.option("--txt", is_flag=True, help="Only .txt files.")
@click.option("--xmp", is_flag=True, help="Only .xmp files.")
@click.option(
    "--out-dir",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Where the sidecars are, if --out-dir put them into a mirror of the folders.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done; change nothing.")
def undo(
    pictures: tuple[str, ...], txt: bool, xmp: bool, out_dir: str | None, dry_run: bool
) -> int:
    """Remove EdgePrism's words from sidecars, and bring back what they replaced.

    Files that hold nothing else are deleted. Everything that others wrote stays, also a caption
    that somebody corrected.
    """
    from edgeprism.output.sidecar import TxtSidecar, XmpSidecar
    from edgeprism.picture.find import find_pictures

    kinds: list[Sidecar] = []
    if txt or not xmp:
        kinds.append(TxtSidecar(out_dir=out_dir))
    if xmp or not txt:
        kinds.append(XmpSidecar(out_dir=out_dir))
    search, store = find_pictures(pictures), _store()
    report = _Report(dry_run)
    try:
        for picture in search:
            if picture.is_stdin:
                raise UsageError("A picture on standard input has no sidecar.", "Name its file.")
            _undo_all(picture, kinds, store, report)
        report.finish()
        if report.texts_left and _knows_no_text(store):
            report.note(
                f"{data_dir()} knows of no .txt that EdgePrism wrote, so none was changed. "
                "If another data folder was in use, set EDGEPRISM_HOME to it."
            )
    finally:
        if store is not None:
            store.close()
    return report.exit_code()


class _Report:
    """Says what is done, and counts it.

    An output that cannot be written does not stop the work; `exit_code` raises its error.
    """

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.texts_left = 0
        self._counts: Counter[str] = Counter()
        self._lost: Exception | None = None

    def tell(self, undo: Undo) -> None:
        """Say what was done, or would be."""
        self._counts[undo.done] += 1
        if undo.done == "left":
            self.texts_left += undo.path.suffix.lower() == ".txt"
            return
        be = "would be " if self.dry_run else ""
        what = f"{be}{undo.done}"
        if undo.done == "removed" and undo.file_stays:
            what = f"its caption {be or 'was '}taken out"
        self._print(lambda: print_line(f"{undo.path}: {what}"))

    def fail(self, error: OutputError) -> None:
        """Say that a sidecar cannot be changed."""
        self._counts["failed"] += 1
        self._print(lambda: show_error(error))

    def note(self, text: str) -> None:
        """Say what else there is to know."""
        self._print(lambda: say(text))

    def finish(self) -> None:
        """Say the numbers."""
        counts, would = self._counts, "would be " if self.dry_run else ""
        text = (
            f"{counted(counts['removed'], 'caption')} {would}removed, "
            f"{counted(counts['restored'], 'former text')} {would}brought back, "
            f"{counted(counts['left'], 'sidecar')} of others left alone, "
            f"{counts['failed']} failed"
        )
        self._print(lambda: click.echo(text, err=True))

    def exit_code(self) -> int:
        """Return the exit code; raises the first error of the output, if there was one."""
        if self._lost is not None:
            raise self._lost
        failed = self._counts["failed"]
        if not failed:
            return EXIT_DONE
        return EXIT_SOME_FAILED if self._counts.total() > failed else EXIT_FAILED

    def _print(self, write: Callable[[], object]) -> None:
        try:
            write()
        except (OSError, OutputError) as error:
            self._lost = self._lost or error


def _undo_all(
    picture: PictureFile, kinds: list[Sidecar], store: CaptionStore | None, report: _Report
) -> None:
    """Undo every sidecar of a picture."""
    from edgeprism.output.undo import plan_undo

    outputs = None if store is None else store.outputs
    paths: list[Path] = [path for kind in kinds for path in kind.existing(picture)]
    for path in paths:
        try:
            undo = plan_undo(path, outputs=outputs)
            if not report.dry_run:
                undo.apply()
        except OutputError as error:
            report.fail(error)
        else:
            report.tell(undo)


def _knows_no_text(store: CaptionStore | None) -> bool:
    """Return whether this data folder knows of no .txt that EdgePrism wrote."""
    from edgeprism.output.originals import Originals

    return (store is None or store.outputs.is_empty()) and Originals().are_empty()


def _store() -> CaptionStore | None:
    """Open the caption store, which knows what EdgePrism wrote; None if there is none yet."""
    from edgeprism.store.caption_store import CaptionStore, default_path

    return CaptionStore(default_path()) if default_path().is_file() else None
