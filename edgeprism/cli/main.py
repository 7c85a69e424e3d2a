"""The command line: a file a command; heavy imports happen inside commands."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

import click

from edgeprism.cli.errors import colour_choice, show_error
from edgeprism.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EdgePrismError, Interrupted
from edgeprism.machine.cancel import interruptible
from edgeprism.version import __version__

COMMANDS = ("caption", "ask", "chat", "eval", "cache", "models", "pull", "convert", "doctor")


class LazyGroup(click.Group):
    """Imports a command's file when that command (or the help) is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands by name, without loading one."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the command of this name."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"edgeprism.cli.{cmd_name}").command
        return command if isinstance(command, click.Command) else None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeprism")
@click.option("-v", "--verbose", is_flag=True, help="Show the native libraries' logs.")
@click.option("--no-color", is_flag=True, help="Plain text (also: NO_COLOR=1).")
@click.pass_context
def cli(ctx: click.Context, verbose: bool, no_color: bool) -> None:
    """Understand pictures on your own machine.

    A small captioner perceives, a text model reasons over what it says. No network is used but
    by `pull` and a reasoner given as a URL.
    """
    if no_color:
        os.environ["NO_COLOR"] = "1"
        os.environ.pop("FORCE_COLOR", None)
    if verbose:
        os.environ["EDGEPRISM_NATIVE_LOG"] = "1"
    ctx.color = colour_choice()


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run a command line; the exit code. Only here are errors printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream put in its place may lack it
            stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    try:
        with interruptible():
            code = cli.main(arguments, prog_name="edgeprism", standalone_mode=False)
            sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_DONE
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        return EXIT_INTERRUPTED
    except Interrupted as error:
        click.echo(str(error), err=True)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except EdgePrismError as error:
        show_error(error)
        return error.exit_code
    except BrokenPipeError:
        # the reader of our output (head, less) has left: nothing more to say, and no traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
