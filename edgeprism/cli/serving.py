"""What `serve`, `desktop` and `mcp` share: options of their models, and checks at the start."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from edgeprism.choices import DEFAULT_MODEL
from edgeprism.cli import completion
from edgeprism.cli.errors import with_options
from edgeprism.cli.named_models import is_named, told_of_origin, told_to_pull
from edgeprism.cli.options import default_captioner, default_reasoner, reasoner_options
from edgeprism.cli.rules import is_url
from edgeprism.cli.terminal import say
from edgeprism.errors import UsageError

if TYPE_CHECKING:
    from edgeprism.serve.options import ServeOptions


_USUAL_THRESHOLDS = (700, 10, 10)  # Python's own, see gc.get_threshold


def served_models_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--model and --reasoner, those for requests that name none, and the options of a server."""
    for option in (
        reasoner_options,
        click.option("--reasoner", default=default_reasoner, shell_complete=completion.reasoners,
                     show_default="`edgeprism use`, or smollm2-135m",
                     metavar="NAME|FILE.gguf|REFERENCE|URL",
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


def collect_as_usual() -> None:
    """Let Python look for reference cycles as often as it does by itself.

    A short command spares these looks (`cli.main`). In a server an error and the frames that it
    went through form such cycles, and these frames hold pictures.
    """
    gc.set_threshold(*_USUAL_THRESHOLDS)


def check_models(options: ServeOptions) -> None:
    """Refuse a captioner that is not here, and a reasoner that the command line names in vain.

    A default reasoner that cannot be used is told, and everything else works without it.
    """
    from edgeprism.reason.local import Reasoner
    from edgeprism.vision.open_model import open_model
    from edgeprism.vision.token_reduction import limit_for

    model, reasoner = options.model, options.reasoner
    with told_of_origin("captioner", model), told_to_pull(model, "captioner"):
        bundle = open_model(model)
    limit_for(bundle.manifest, options.visual_tokens)  # refuses one where a model needs all
    if is_url(reasoner):
        try:
            _check_server(options)
        except UsageError as error:
            if is_named("reasoner"):
                raise
            say(f"note: questions cannot be answered. {error.summary} {with_options(error.hint)}")
    elif options.served_model is not None:
        raise UsageError(
            "--reasoner-model names a server's model.",
            "Name the server as well: --reasoner http://127.0.0.1:8080/v1",
        )
    elif is_named("reasoner"):
        Reasoner.load(reasoner)


def _check_server(options: ServeOptions) -> None:
    """Refuse an address elsewhere without --allow-network; no server is asked."""
    from edgeprism.machine.cancel import Cancel
    from edgeprism.reason.http import Server

    Server(options.reasoner, cancel=Cancel(), allow_network=options.allow_network)


def only_one(served_models: tuple[str, ...]) -> str | None:
    """Return the model that --reasoner-model names; UsageError for several."""
    if len(served_models) > 1:
        raise UsageError("This command takes one reasoner.", "Give --reasoner-model once.")
    return served_models[0] if served_models else None
