"""The options that stand before and after every command's name.

`edgeprism --help` needs these alone of all commands' options, so this module imports little.
"""

from __future__ import annotations

import functools
import os

import click

from edgeprism.cli.errors import colour_choice
from edgeprism.cli.terminal import be_quiet


@functools.cache
def common_options() -> tuple[click.Option, ...]:
    """Return --quiet, --verbose and --no-color."""
    return (
        click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=_be_quiet,
                     help="No progress and no summary; errors are still printed."),
        click.Option(["-v", "--verbose"], is_flag=True, expose_value=False, callback=_be_verbose,
                     help="Show the native libraries' logs."),
        click.Option(["--no-color"], is_flag=True, expose_value=False, callback=_without_colour,
                     help="Plain text (also: NO_COLOR=1)."),
    )  # fmt: skip


def _be_quiet(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        be_quiet(ctx)


def _be_verbose(_ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        os.environ["EDGEPRISM_NATIVE_LOG"] = "1"


def _without_colour(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        os.environ["NO_COLOR"] = "1"
        os.environ.pop("FORCE_COLOR", None)
        ctx.color = ctx.find_root().color = colour_choice()
