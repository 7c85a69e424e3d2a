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
    """--shard; --ray, --parquet and the options of a cluster's actors."""
    for option in (
        click.option("--actor-gpus", type=click.FloatRange(min=0), default=0.0, metavar="N",
                     help="With --ray: GPUs of each actor; 0.25 shares one among four."),
        click.option("--actor-cpus", type=click.FloatRange(min=0), default=1.0, show_default=True,
                     metavar="N", help="With --ray: CPUs of each actor."),
        click.option("--actors", type=click.IntRange(min=1), metavar="N",
                     help="With --ray: the most actors.  [default: as many as there is room for]"),
        click.option("--parquet", metavar="FOLDER|URI",
                     help="With --ray: where Parquet files go, a row for each picture. Pictures "
                     "that have a row there get no other."),
        click.option("--ray", metavar="auto|local|ADDRESS",
                     help="Caption a folder or a bucket (s3://, gs://, abfs://) on a Ray cluster: "
                     "the one of this machine, one for this run, or one at ADDRESS."),
        click.option("--shard", callback=_to_shard, metavar="I/N",
                     help="Caption part I of N. A picture's part follows from its content, so N "
                     "runs share a folder without knowing of each other."),
    ):  # fmt: skip
        function = option(function)
    return function
