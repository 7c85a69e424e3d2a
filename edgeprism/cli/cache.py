"""`edgeprism cache info|export|clear|prune`: the caption store."""

from __future__ import annotations

import click

from edgeprism.cli.command import Command
from edgeprism.cli.terminal import print_json
from edgeprism.errors import UsageError


@click.group("cache")
def command() -> None:
    """Show or clear the caption store, which keeps finished captions by picture content."""


@command.command("info", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info(as_json: bool) -> None:
    """Print where the store is and what it holds."""
    from edgeprism.store.caption_store import CaptionStore, default_path

    with CaptionStore(default_path()) as store:
        facts = store.info()
    if as_json:
        print_json(facts, indent=2)
        return
    click.echo(f"{facts['path']}: {facts['bytes'] / 1e6:.1f} MB, schema {facts['schema']}")
    click.echo(f"{facts['captions']} captions, {facts['files']} files remembered")
    for bundle in facts["bundles"]:
        click.echo(f"  {bundle['name']} {bundle['digest'][:12]}: {bundle['captions']}")


@command.command("export", cls=Command)
def export() -> None:
    """Print all records, one JSON object per line, oldest first."""
    from edgeprism.store.caption_store import CaptionStore, default_path

    with CaptionStore(default_path()) as store:
        for record in store.records():
            print_json(record)


@command.command("clear", cls=Command)
@click.option("--yes", is_flag=True, help="Clear without asking.")
def clear(yes: bool) -> None:
    """Delete every caption."""
    from edgeprism.store.caption_store import CaptionStore, default_path

    with CaptionStore(default_path()) as store:
        count = store.info()["captions"]
        if not yes and not click.confirm(f"Delete {count} captions?", err=True):
            raise UsageError("Nothing was deleted.", "Pass --yes to clear without asking.")
        click.echo(f"{store.clear()} captions deleted")


@command.command("prune", cls=Command)
@click.option("--keep", "models", multiple=True, metavar="NAME|BUNDLE",
              help="Also delete captions of all other bundles; repeatable.")  # fmt: skip
def prune(models: tuple[str, ...]) -> None:
    """Delete entries of missing files and expired claims.

    With --keep, also delete captions of all other bundles.
    """
    from edgeprism.bundle.open import open_bundle
    from edgeprism.store.caption_store import CaptionStore, default_path

    digests = {open_bundle(model).digest for model in models} or None
    with CaptionStore(default_path()) as store:
        deleted = store.prune(keep_digests=digests)
    click.echo(f"{deleted['files']} files and {deleted['captions']} captions deleted")
