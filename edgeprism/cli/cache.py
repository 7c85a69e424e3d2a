"""`edgeprism cache info|export|merge|clear|prune`: the caption store."""

from __future__ import annotations

from pathlib import Path

import click

from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.terminal import confirm, print_json, print_line
from edgeprism.errors import UsageError
from edgeprism.files.safe_text import counted, printable_line


@click.group("cache")
def command() -> None:
    """Show or clear the caption store, which keeps finished captions by picture content."""


@command.command("info", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info(as_json: bool) -> None:
    """Print where the store is and what it holds."""
    from edgeprism.store.caption_store import CaptionStore, default_path

    with CaptionStore(default_path(), needed=True) as store:
        facts = store.info()
    if as_json:
        print_json(facts, indent=2)
        return
    print_line(
        f"{facts['path']}: {facts['bytes'] / 1e6:.1f} MB, schema {facts['schema']}, "
        f"journal {facts['journal']}"
    )
    captions, files = counted(facts["captions"], "caption"), counted(facts["files"], "file")
    print_line(f"{captions}, {files} remembered, {counted(facts['claims'], 'claim')}")
    for bundle in facts["bundles"]:
        print_line(f"  {bundle['name']} {bundle['digest'][:12]}: {bundle['captions']}")
    if nameless := facts["captions"] - sum(bundle["captions"] for bundle in facts["bundles"]):
        print_line(f"  damaged: {nameless}")


@command.command("export", cls=Command)
def export() -> None:
    """Print all records, one JSON object per line, oldest first.

    The field image is the picture's absolute path, as far as it is known; paths lists every place
    where the same picture lies now. After a move it is known again once a run has met it there.
    """
    from edgeprism.store.caption_store import CaptionStore, default_path

    with CaptionStore(default_path(), needed=True) as store:
        for record in store.located_records():
            print_json(record)


@with_examples(
    "edgeprism cache merge shards/*",
    "edgeprism cache merge a.sqlite3 b.sqlite3 --into all.sqlite3",
)
@command.command("merge", cls=Command)
@click.argument("stores", nargs=-1, required=True, metavar="STORE...", type=click.Path())
@click.option("--into", type=click.Path(), metavar="STORE",
              help="The store that takes all captions.  [default: your own]")  # fmt: skip
def merge(stores: tuple[str, ...], into: str | None) -> None:
    """Take the captions of other stores over, as if one run had made them all.

    A STORE is a run's data folder (EDGEPRISM_HOME) or the captions.sqlite3 in it. It keeps its
    captions. Merging a store again adds nothing.
    """
    from edgeprism.store.caption_store import CaptionStore, default_path
    from edgeprism.store.merge import open_source, store_file

    target = store_file(Path(into)) if into else default_path()
    sources = [store_file(Path(store)) for store in stores]
    for source in sources:  # before anything is written
        open_source(source).close()
    with CaptionStore(target, needed=True) as store:
        for source in sources:
            merged = store.merge(source)
            had = f", {merged.captions - merged.added:,} of them known" if merged.captions else ""
            print_line(f"{source}: {counted(merged.captions, 'caption')}{had}")
        total = counted(store.info()["captions"], "caption")
    print_line(f"{target}: {total}")


@command.command("clear", cls=Command)
@click.option("--yes", is_flag=True, help="Clear without asking.")
def clear(yes: bool) -> None:
    """Delete every caption, and all that is remembered of files."""
    from edgeprism.store.caption_store import CaptionStore, default_path

    with CaptionStore(default_path(), needed=True) as store:
        captions = counted(store.info()["captions"], "caption")
        where = printable_line(str(store.path))
        if not yes and not confirm(f"Delete {captions} from {where}?"):
            raise UsageError("Nothing was deleted.", "Give --yes to clear without asking.")
        print_line(f"{counted(store.clear(), 'caption')} deleted from {store.path}")


@command.command("prune", cls=Command)
@click.option("--keep", "models", multiple=True, metavar="NAME|BUNDLE",
              help="Also delete captions of all other bundles; repeatable.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print what would be deleted; delete nothing.")
def prune(models: tuple[str, ...], dry_run: bool) -> None:
    """Delete what is remembered of missing files, and claims of ended processes.

    Captions stay: a file that comes back, or whose drive does, is read once more and known by its
    content. With --keep, also delete captions of all other bundles.
    """
    from edgeprism.store.caption_store import CaptionStore, default_path
    from edgeprism.vision.open_model import open_model

    digests = {open_model(model).digest for model in models} or None
    with CaptionStore(default_path(), needed=True) as store:
        claims = store.drop_stale_claims(dry_run=dry_run)
        deleted = store.prune(keep_digests=digests, dry_run=dry_run)
    files, captions = counted(deleted["files"], "file"), counted(deleted["captions"], "caption")
    verb = "would be deleted" if dry_run else "deleted"
    print_line(f"{files} and {captions} {verb}, and {counted(claims, 'claim')} of ended processes")
