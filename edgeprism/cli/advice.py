"""A line for somebody whose captioner knows nothing of their pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprism.cli.command import is_quiet
from edgeprism.cli.terminal import say

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import Manifest


def advise_captioner(manifest: Manifest, *, says_nothing: bool) -> None:
    """Name a captioner for this machine, if one for drawn pictures recognised nothing."""
    if not says_nothing or manifest.photographs or is_quiet():
        return
    from edgeprism.install.setup import suggest_captioner

    offer = suggest_captioner()
    start = f"{manifest.name} knows drawn pictures, not photographs."
    if offer is None:
        say(f"{start} `edgeprism setup` says how to get a captioner for this machine.")
    elif offer.here:
        say(f"{start} For these: edgeprism use {offer.name}")
    else:
        say(
            f"{start} For these: edgeprism pull {offer.name} ({offer.fetch / 1e9:.1f} GB), then "
            f"edgeprism use {offer.name}; or `edgeprism setup`."
        )
