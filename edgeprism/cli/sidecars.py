"""`edgeprism sidecars undo`: takes EdgePrism's words out of .txt and .xmp files again."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.errors import show_error
from edgeprism.errors import EXIT_DONE, EXIT_FAILED, EXIT_SOME_FAILED, OutputError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from edgeprism.output.sidecar import Sidecar
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
    from edgeprism.picture.passed import counted

    kinds: list[Sidecar] = []
    if txt or not xmp:
        kinds.append(TxtSidecar(out_dir=out_dir))
    if xmp or not txt:
        kinds.append(XmpSidecar(out_dir=out_dir))
    search, store = find_pictures(pictures), _store()
    counts: Counter[str] = Counter()
    try:
        for picture in search:
            if picture.is_stdin:
                raise UsageError("A picture on standard input has no sidecar.", "Name its file.")
            _undo_all(picture, kinds, store, counts, dry_run)
    finally:
        if store is not None:
            store.close()
    would = "would be " if dry_run else ""
    click.echo(
        f"{counted(counts['removed'], 'caption')} {would}removed, "
        f"{counted(counts['restored'], 'former text')} {would}brought back, "
        f"{counted(counts['left'], 'sidecar')} of others left alone, {counts['failed']} failed",
        err=True,
    )
    if not counts["failed"]:
        return EXIT_DONE
    return EXIT_SOME_FAILED if counts.total() > counts["failed"] else EXIT_FAILED


def _undo_all(
    picture: PictureFile,
    kinds: list[Sidecar],
    store: CaptionStore | None,
    counts: Counter[str],
    dry_run: bool,
) -> None:
    """Undo every sidecar of a picture and count what was done."""
    from edgeprism.files.safe_text import printable
    from edgeprism.output.undo import undo_sidecar

    before = None if store is None else store.written_before
    paths: list[Path] = [path for kind in kinds for path in kind.existing(picture)]
    for path in paths:
        try:
            done = undo_sidecar(path, written_before=before, dry_run=dry_run)
        except OutputError as error:
            show_error(error)
            counts["failed"] += 1
            continue
        counts[done] += 1
        if done != "left":
            click.echo(f"{printable(str(path))}: {done}")


def _store() -> CaptionStore | None:
    """Open the caption store, which knows what EdgePrism wrote; None if there is none yet."""
    from edgeprism.store.caption_store import CaptionStore, default_path

    return CaptionStore(default_path()) if default_path().is_file() else None
