"""`edgeprism use NAME`: the model that commands use when none is named."""

from __future__ import annotations

import click

from edgeprism.choices import is_reference
from edgeprism.cli import completion
from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.options import told_to_pull
from edgeprism.cli.terminal import print_line
from edgeprism.errors import UsageError


@with_examples("edgeprism use", "edgeprism use my-bundle", "edgeprism use nano")
@click.command("use", cls=Command)
@click.argument("name", default="", metavar="[NAME|REFERENCE]", shell_complete=completion.models)
def command(name: str) -> None:
    """Make a model the default of its kind; without NAME, print both defaults.

    Commands use the default captioner and reasoner when none is named. EDGEPRISM_MODEL goes
    first. The choice is the setting `model` or `reasoner` (`edgeprism config`).
    """
    from edgeprism.bundle.defaults import BUILT_IN, choose_model, default_model
    from edgeprism.bundle.open import find_model, known_name

    if is_reference(name):
        from edgeprism.install.discover import usable_facts

        facts = usable_facts(name)
        choose_model(
            "captioner" if facts["kind"] == "captioner" else "reasoner", facts["reference"]
        )
    elif name:
        with told_to_pull(name):
            path = find_model(name)
        if known_name(path) is None:
            raise UsageError(
                f"{name} is not an installed model.", f"Install it: edgeprism models add {name}"
            )
        choose_model("captioner" if path.is_dir() else "reasoner", known_name(path))
    for each in BUILT_IN:
        print_line(f"{each}: {default_model(each)}")
