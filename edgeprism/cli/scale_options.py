"""Options of `edgeprism caption` for more pictures than one machine captions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeprism.folder.shard import Shard


def _to_shard(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> Shard | None:
    if text is None:
        return None
    from edgeprism.folder.shard import Shard

    return Shard.parse(text)


def scale_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--shard."""
    for option in (
        click.option("--shard", callback=_to_shard, metavar="I/N",
                     help="Caption part I of N. A picture's part follows from its content, so N "
                     "runs share a folder without knowing of each other."),
    ):  # fmt: skip
        function = option(function)
    return function
