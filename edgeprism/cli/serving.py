"""What `serve`, `desktop` and `mcp` share: options of their models, and checks at the start."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import click

from edgeprism.choices import DEFAULT_MODEL
from edgeprism.cli import completion
from edgeprism.cli.named_models import is_named, told_of_origin, told_to_pull
from edgeprism.cli.options import default_captioner, default_reasoner
from edgeprism.cli.rules import is_url
from edgeprism.errors import UsageError


def served_models_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--model and --reasoner: those for requests that name none."""
    for option in (
        click.option("--reasoner", default=default_reasoner, shell_complete=completion.reasoners,
                     show_default="`edgeprism use`, or smollm2-135m",
                     metavar="NAME|FILE.gguf|REFERENCE",
                     help="The reasoner for questions that name none."),
        click.option("-m", "--model", default=default_captioner,
                     shell_complete=completion.captioners, metavar="NAME|BUNDLE|REFERENCE",
                     help="The captioner for requests that name none.  [default: $EDGEPRISM_MODEL, "
                     f"`edgeprism use`, or {DEFAULT_MODEL}]"),
    ):  # fmt: skip
        function = option(function)
    return function


keep_alive_option = click.option(
    "--keep-alive", default="5m", show_default=True, metavar="TIME",
    help="How long an idle model stays: 90s, 1h, 0, or -1 for ever.",
)  # fmt: skip
log_content_option = click.option(
    "--log-content", is_flag=True,
    help="Let the log hold instructions, questions, captions and answers.",
)  # fmt: skip


def import_extra(extra: str, module: str) -> ModuleType:
    """Import a module that an extra is for; UsageError where the extra is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("edgeprism"):
            raise
        from edgeprism.install.extras import install_extra

        command = click.get_current_context().info_name
        raise UsageError(
            f"`{command}` needs packages that are not installed ({error.name}).",
            install_extra(extra),
        ) from error


def check_models(model: str, reasoner: str) -> None:
    """Refuse a captioner that is not here, and a reasoner that the command line names in vain."""
    from edgeprism.reason.local import Reasoner
    from edgeprism.vision.open_model import open_model

    with told_of_origin("captioner", model), told_to_pull(model, "captioner"):
        open_model(model)
    if is_named("reasoner"):
        if is_url(reasoner):
            raise UsageError(
                f"{reasoner}: `serve` runs its reasoner itself, and asks no other server.",
                "Name an installed reasoner or a GGUF file.",
            )
        Reasoner.load(reasoner)
