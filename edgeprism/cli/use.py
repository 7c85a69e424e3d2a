"""`edgeprism use NAME`: the model that commands use when none is named."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from edgeprism.cli import completion
from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.errors import with_options
from edgeprism.cli.named_models import make_default, model_to_default, told_to_pull
from edgeprism.cli.rules import is_url
from edgeprism.cli.terminal import print_line, say
from edgeprism.errors import ModelError, UsageError

if TYPE_CHECKING:
    from edgeprism.bundle.defaults import Kind


@with_examples("edgeprism use", "edgeprism use my-bundle", "edgeprism use nano")
@click.command("use", cls=Command)
@click.argument(
    "name", default="", metavar="[NAME|REFERENCE|URL]", shell_complete=completion.models
)
def command(name: str) -> None:
    """Make a model the default of its kind; without NAME, print both defaults.

    Commands use the default captioner and reasoner when none is named. EDGEPRISM_MODEL goes
    first. The choice is the setting `model` or `reasoner` (`edgeprism config`).
    """
    from edgeprism.bundle.defaults import BUILT_IN, default_model

    if name:
        kind, chosen = model_to_default(name)
        if os.path.isabs(chosen):  # its file may be moved, as an installed model's is not
            raise UsageError(
                f"{name} is not an installed model.", f"Install it: edgeprism models add {name}"
            )
        make_default(kind, chosen)
        _say_restriction(chosen)
    for each in BUILT_IN:
        print_line(f"{each}: {default_model(each)}")
    for each in BUILT_IN:
        _warn_if_missing(each, default_model(each))


def _say_restriction(name: str) -> None:
    from edgeprism.install.inventory import license_of
    from edgeprism.install.licenses import restriction

    if not is_url(name) and restriction(license_ := license_of(name)):
        say(f"note: the licence of {name}, {license_}, restricts its use.")


def _warn_if_missing(kind: Kind, name: str) -> None:
    from edgeprism.bundle.open import find_model
    from edgeprism.reason.find import find_reasoner

    if is_url(name):  # a server's reasoner
        return
    try:
        with told_to_pull(name):
            find_model(name) if kind == "captioner" else find_reasoner(name)
    except ModelError as error:
        say(f"note: {error.summary} {with_options(error.hint)}")
