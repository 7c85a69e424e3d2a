"""What every command shares: grouped help with examples, common options, and old spellings.

click writes the help; this class only puts options under headings and examples below them. A
parameter that `SECTIONS` does not name stands under "Options", so a new option is never lost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import click

from edgeprism.cli.chat_format import told_of_setting
from edgeprism.cli.common_options import common_options
from edgeprism.cli.rules import check_rules
from edgeprism.cli.settings import use_settings
from edgeprism.cli.terminal import say

# heading → the parameters below it, by their names in Python
SECTIONS: dict[str, tuple[str, ...]] = {
    "Pictures": (
        "images", "together", "example", "files_from", "null", "limit", "exclude", "shard",
        "frames", "frames_per_second",
    ),
    "Questions": ("data", "pictures", "splits", "sample", "judge", "options"),
    "Captioner": (
        "model", "models", "captioners", "merge_captions", "modes", "instruction_mode",
        "instruction", "focus", "caption_tokens", "temperature", "visual_tokens", "vision_quant",
        "lm", "mmproj", "lm_chat_format",
    ),
    "Reasoner": (
        "reasoner", "reasoners", "served_models", "allow_network", "chat_format", "choices",
        "schema_file", "answer_tokens", "stages",
    ),
    "Results": (
        "as_json", "jsonl", "as_csv", "output", "txt", "xmp", "out_dir", "out", "sidecar_name",
        "append", "overwrite", "show_captions", "errors_file", "json_file", "html_file", "compare",
    ),
    "Run": (
        "runs", "no_run", "no_reasoner", "no_folder", "dry_run", "yes", "seed", "parallel",
        "no_cache", "on_error", "ray", "parquet", "actors", "actor_cpus", "actor_gpus",
    ),
    "Clients": ("host", "port", "fd", "api_key_file", "allow_hosts", "allow_origins"),
    "Limits": (
        "waiting", "max_body", "max_pictures", "max_pixels", "max_tokens", "answer_seconds",
    ),
    "Machine": ("device", "threads", "gpu_layers", "keep_alive", "preload"),
    "Options": (),
    "General": ("quiet", "verbose", "no_color"),
}  # fmt: skip
_SECTION_OF = {name: title for title, names in SECTIONS.items() for name in names}
# options that had another name before → what they are called now
OLD_NAMES = {"--captioner": "--model"}


class Command(click.Command):
    """A command with the common options, whose help has headings and examples.

    `with_examples` sets both attributes. `examples` are command lines that the help shows.
    `old_names` maps spellings of former versions to today's; they work, stand in no help, and one
    line on a terminal names the new spelling.
    """

    examples: tuple[str, ...] = ()
    old_names: Mapping[str, str] = MappingProxyType({})

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters, then the common options, then --help."""
        own = [*self.params, *common_options()]
        help_option = self.get_help_option(ctx)
        return own if help_option is None else [*own, help_option]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, after settings and old names, before the check for idle options."""
        if not ctx.resilient_parsing:
            use_settings(ctx)
        rest = super().parse_args(ctx, self._renamed(args, silent=ctx.resilient_parsing))
        if not ctx.resilient_parsing:
            check_rules(ctx)
        return rest

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an error about a setting's chat format says whose it is."""
        with told_of_setting(ctx):
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under headings."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in SECTIONS}
        for parameter in self.get_params(ctx):
            if not isinstance(parameter, click.Option):
                continue  # the usage line names the arguments
            record = parameter.get_help_record(ctx)
            title = (
                "General"
                if "--help" in parameter.opts
                else _SECTION_OF.get(parameter.name or "", "Options")
            )
            if record is not None:
                sections[title].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on a line of its own."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")
        super().format_epilog(ctx, formatter)

    def _renamed(self, args: Sequence[str], *, silent: bool) -> list[str]:
        renamed: list[str] = []
        for position, argument in enumerate(args):
            if argument == "--":
                return [*renamed, *args[position:]]
            name, equals, value = argument.partition("=")
            if name in self.old_names:
                new = self.old_names[name]
                if not silent and sys.stderr.isatty():
                    say(f"{name} is now called {new}.")
                argument = new + equals + value
            renamed.append(argument)
        return renamed


def with_examples(
    *examples: str, old_names: Mapping[str, str] | None = None
) -> Callable[[click.Command], Command]:
    """Decorate a command, which must be a Command, with its examples and its old spellings."""

    def decorate(command: click.Command) -> Command:
        assert isinstance(command, Command)
        command.examples, command.old_names = examples, dict(old_names or {})
        return command

    return decorate
