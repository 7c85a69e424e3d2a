"""Lines for somebody whose captioner knows nothing of their pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from edgeprism.cli.terminal import is_quiet, say
from edgeprism.errors import UsageError

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import Manifest
    from edgeprism.perceive.captioner import Captioner
    from edgeprism.records import Caption


def advise_on_captions(captioners: Iterable[Captioner], captions: Sequence[Caption]) -> None:
    """Say that an answer has no basis where captions say nothing, and name better captioners.

    A reasoner invents an answer where a description says nothing, and its text does not show that.
    """
    silent, empty = [], 0
    for captioner in captioners:
        manifest, digest = captioner.bundle.manifest, captioner.bundle.digest
        own = [caption for caption in captions if caption.model.digest == digest]
        unknown = sum(manifest.says_nothing(caption.text) for caption in own)
        empty += unknown
        if 2 * unknown > len(own):
            silent.append(manifest)
    if captions and empty == len(captions) and not is_quiet():
        what = "The description says" if empty == 1 else "The descriptions say"
        shown = "the picture" if empty == 1 else "the pictures"
        say(f"{what} nothing of {shown}: an answer from that is a guess.")
    for manifest in silent:
        advise_captioner(manifest, says_nothing=True)


def advise_captioner(manifest: Manifest, *, says_nothing: bool) -> None:
    """Name a captioner for this machine, if one for drawn pictures recognised nothing."""
    if not says_nothing or manifest.photographs or is_quiet():
        return
    from edgeprism.install.setup import suggest_captioner

    offer = suggest_captioner()
    start = f"{manifest.name} knows drawn pictures, not photographs."
    if offer is None:
        say(f"{start} `edgeprism setup` says how to get a captioner for this machine.")
    elif offer.installed:
        say(f"{start} For these: edgeprism use {offer.name}")
    else:
        size = f"{offer.fetch_bytes / 1e9:.1f} GB"
        say(
            f"{start} For these: edgeprism pull {offer.name} ({size}), then edgeprism use "
            f"{offer.name}; or `edgeprism setup`."
        )


def confirm_sidecars(manifest: Manifest) -> None:
    """Ask whether sidecars shall hold the words of a model that does not know photographs."""
    if manifest.photographs:
        return
    fact = f"{manifest.name} was not made for photographs, and its words would go into sidecars."
    if sys.stdin.isatty() and sys.stderr.isatty():
        click.echo(fact, err=True)
        if click.confirm("Write them all the same?", err=True):
            return
    raise UsageError(
        fact,
        "Name a larger captioner (--model; `edgeprism models list`), or give --yes if the pictures "
        "are drawn.",
    )
