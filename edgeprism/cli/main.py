"""The command line: a file a command; heavy imports happen inside commands."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys

import click

from edgeprism.cli.common_options import common_options
from edgeprism.cli.errors import colour_choice, show_error, show_interrupted, show_usage_error
from edgeprism.cli.standard_streams import standard_streams
from edgeprism.cli.terminal import say
from edgeprism.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EdgePrismError,
    Interrupted,
    UsageError,
)
from edgeprism.machine.cancel import before_forced_end, interruptible, was_interrupted
from edgeprism.version import __version__

# command → what `edgeprism --help` says of it, which so loads no command's file
COMMANDS = {
    "caption": "Describe pictures in words.",
    "ask": "Answer a question about pictures from their descriptions alone.",
    "chat": "Answer questions about pictures, one per line of input.",
    "serve": "Serve captions and answers over HTTP, on this machine alone.",
    "desktop": "Look at pictures in the browser: captions, questions, whole folders.",
    "mcp": "Let an assistant look at pictures in these folders: an MCP server on stdin and stdout.",
    "eval": "Measure perception and reasoning separately.",
    "bench": "Measure how fast models run on this machine, beside what it could do.",
    "cache": "Show or clear the caption store, which keeps finished captions by picture content.",
    "sidecars": "Take captions out of .txt and .xmp files again.",
    "models": "List, describe and verify built-in and installed models, and those that `pull` can "
    "add.",
    "use": "Make a model the default of its kind; without NAME, print both defaults.",
    "pull": "Fetch a model by NAME, check it and install it.",
    "convert": "Convert a published checkpoint to a bundle.",
    "config": "Read and write the settings that commands use where no option says otherwise.",
    "setup": "Find a captioner and a reasoner for this machine, fetch them, and make them the "
    "default.",
    "doctor": "Check engines, machine, data folder and models, without a network.",
}


_OBJECTS_BETWEEN_COLLECTIONS = 100_000


class LazyGroup(click.Group):
    """Imports a command's file when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands by name, without loading one."""
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line for each command as click does, without loading one."""
        limit = formatter.width - 6 - max(map(len, COMMANDS))
        lines = [
            (name, click.Command(name, help=line).get_short_help_str(limit))
            for name, line in COMMANDS.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(lines)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the command of this name."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"edgeprism.cli.{cmd_name}").command
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve as click does; for an unknown command, say which one may be meant."""
        name = args[0]
        if name in COMMANDS or ctx.resilient_parsing or name.startswith("-"):
            return super().resolve_command(ctx, args)
        hint = "`edgeprism --help` lists the commands."
        if close := _groups_with(self, ctx, name) or _similar(name):
            hint = f"Did you mean {' or '.join(f'`edgeprism {word}`' for word in close)}?"
        elif os.path.lexists(name):
            import shlex

            hint = f"To describe a picture: edgeprism caption {shlex.quote(name)}"
        raise UsageError(f"There is no command {name!r}.", hint)


def _similar(name: str) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, COMMANDS)


def _groups_with(cli: click.Group, ctx: click.Context, name: str) -> list[str]:
    """Return the commands below which `name` stands, as in `models discover`."""
    groups = ((word, cli.get_command(ctx, word)) for word in COMMANDS)
    return [
        f"{word} {name}"
        for word, group in groups
        if isinstance(group, click.Group) and name in group.commands
    ]


def _with_common_options(command: click.Group) -> click.Group:
    command.params += common_options()  # a group has click's own help
    return command


@_with_common_options
@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="edgeprism")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Understand pictures on your own machine.

    A small captioner perceives, a text model reasons over what it says. No network is used but
    by `setup` and `pull`, which fetch models, a reasoner given as a URL, and `serve` and `desktop`,
    which answer this machine.
    """
    ctx.color = colour_choice()


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and end the process with its exit code."""
    _spare_collections()
    before_forced_end(_discard_unfinished)
    try:
        code = run(sys.argv[1:] if arguments is None else arguments, ends_process=True)
    except KeyboardInterrupt:  # one more signal, while the first was being answered
        code = EXIT_INTERRUPTED
    finally:
        _discard_unfinished()
    sys.exit(code)


def _spare_collections() -> None:
    """Let Python look for reference cycles less often, which takes a fifth off a short command.

    Starting makes a hundred thousand objects that stay, and Python would visit them again and
    again: while modules are imported, and at the end, when the process gives everything back.
    """
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    atexit.register(gc.freeze)


def _discard_unfinished() -> None:
    """Remove what a second signal kept from being removed."""
    atomic = sys.modules.get("edgeprism.files.atomic")
    if atomic is not None:
        atomic.discard_unfinished()


def run(arguments: list[str], *, ends_process: bool = False) -> int:
    """Run a command line; the exit code. Only here are errors printed.

    With `ends_process`, nothing comes after it: a signal that arrives late is ignored.
    """
    # numpy's library of linear algebra is not used here, and would reserve memory for each core
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with standard_streams():
        code = _run(arguments, ends_process)
        try:
            sys.stdout.flush()
        except (EdgePrismError, OSError):
            return code or EXIT_FAILED  # said already, or the reader of a pipe has left
        return code


def _run(arguments: list[str], ends_process: bool) -> int:
    try:
        with interruptible(ends_process=ends_process):
            code = cli.main(arguments, prog_name="edgeprism", standalone_mode=False)
            sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_DONE
    except click.exceptions.Abort as abort:
        if isinstance(abort.__cause__, KeyboardInterrupt):
            say("Interrupted.")
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        say("Interrupted.")
        return EXIT_INTERRUPTED
    except Interrupted as error:
        show_interrupted(error)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        show_usage_error(error)
        return error.exit_code
    except BrokenPipeError:
        return EXIT_FAILED  # the reader of our output (head, less) has left: nothing more to say
    except Exception as error:
        if was_interrupted():
            # an import that Ctrl-C breaks off raises ImportError: the interrupt is its cause
            say("Interrupted.")
            return EXIT_INTERRUPTED
        told = error if isinstance(error, EdgePrismError) else _explained(error)
        if told is None:
            raise
        show_error(told)
        return told.exit_code


def _explained(error: Exception) -> EdgePrismError | None:
    """Return an error of the system, or of a damaged installation, in words; None for any other.

    With `-v` the caller raises it, so that its traceback is shown.
    """
    from edgeprism.machine.shortage import shortage_hint

    hint = shortage_hint(error)
    expected = isinstance(error, (OSError, ImportError, MemoryError)) or hint
    if not expected or os.environ.get("EDGEPRISM_NATIVE_LOG"):
        return None
    what = str(error) or "Memory ran out"
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename is not None else ""
        what = f"{named}{error.strerror}"
    elif isinstance(error, ImportError):
        hint = hint or "`edgeprism doctor` says what is missing."
    hint = hint or "`edgeprism -v …` shows where it happened."
    return EdgePrismError(f"{what.splitlines()[0].rstrip('.')}.", hint)
