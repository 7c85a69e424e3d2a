"""`edgeprism cache info|export|clear|prune`: the caption store."""

from __future__ import annotations

import json

import click

from edgeprism.errors import UsageError


@click.group("cache")
def command() -> None:
    """What was captioned before, addressed by content."""


@command.command("info")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info(as_json: bool) -> None:
    """Where the store is and what it holds."""
    from edgeprism.store.caption_store import CaptionStore, default_path

    with CaptionStore(default_path()) as store:
        found = store.info()
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    click.echo(f"{found['path']}: {found['bytes'] / 1e6:.1f} MB, schema {found['schema']}")
    click.echo(f"{found['captions']} captions, {found['files']} files remembered")
    for bundle in found["bundles"]:
        click.echo(f"  {bundle['name']} {bundle['digest'][:12]}: {bundle['captions']}")


@command.command("export")
def export() -> None:
    """All records to stdout, one JSON object a line, oldest first."""
    from edgeprism.store.caption_store import CaptionStore, default_path

    with CaptionStore(default_path()) as store:
        for record in store.records():
            click.echo(json.dumps(record, ensure_ascii=True))


@command.command("clear")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(yes: bool) -> None:
    """Forget every caption."""
    from edgeprism.store.caption_store import CaptionStore, default_path

    with CaptionStore(default_path()) as store:
        count = store.info()["captions"]
        if not yes and not click.confirm(f"Forget {count} captions?", err=True):
            raise UsageError("Nothing was forgotten.", "Pass --yes to clear without asking.")
        click.echo(f"{store.clear()} captions forgotten")


@command.command("prune")
@click.option("--keep", "models", multiple=True, metavar="NAME|BUNDLE",
              help="Also drop captions of all other bundles; repeatable.")  # fmt: skip
def prune(models: tuple[str, ...]) -> None:
    """Drop files that are gone and ended claims; with --keep, captions of other bundles too."""
    from edgeprism.bundle.open import open_bundle
    from edgeprism.store.caption_store import CaptionStore, default_path

    digests = {open_bundle(model).digest for model in models} or None
    with CaptionStore(default_path()) as store:
        dropped = store.prune(keep_digests=digests)
    click.echo(f"{dropped['files']} files and {dropped['captions']} captions dropped")
