"""Options that would do nothing are refused, with the reason.

A person who gives an option expects that it does something. Each rule names one option, what it
needs, and why. Only options of the command line count, because a variable of the environment is
meant for many commands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from edgeprism.errors import UsageError

Values = Mapping[str, Any]
GIVEN = "options of the command line"  # in Values: the names of those that are not defaults


@dataclass(frozen=True)
class Rule:
    """`option` does nothing unless `has_use`; `reason` and `hint` are for the error."""

    option: str  # the parameter's name in Python
    has_use: Callable[[Values], bool]
    reason: str
    hint: str


def _any_of(*names: str) -> Callable[[Values], bool]:
    return lambda values: any(values.get(name) for name in names)


def is_url(value: object) -> bool:
    """Return whether a model's name is the address of a server."""
    return str(value).lower().startswith(("http://", "https://"))


def _has_server(values: Values) -> bool:
    names = [values.get("reasoner"), values.get("judge"), *(values.get("reasoners") or ())]
    return any(map(is_url, names))


def _has_local_reasoner(values: Values) -> bool:
    return not is_url(values.get("reasoner"))


# command → rules; `*` holds for every command that has the option
RULES: dict[str, tuple[Rule, ...]] = {
    "*": (
        Rule("allow_network", _has_server, "it allows a reasoner's URL on another machine, and no "
             "reasoner is named by URL", "Name the server: --reasoner https://…/v1"),
        Rule("chat_format", _has_local_reasoner, "a server knows its chat format",
             "Leave it out, or name a GGUF file as --reasoner."),
    ),
    "caption": (
        Rule("parquet", _any_of("ray"), "a cluster writes Parquet files", "Give --ray local too, "
             "or --output captions.jsonl without it."),
        Rule("actors", _any_of("ray"), "a cluster has actors", "Give --ray too."),
        Rule("actor_cpus", _any_of("ray"), "a cluster has actors", "Give --ray too."),
        Rule("actor_gpus", _any_of("ray"), "a cluster has actors", "Give --ray too."),
        Rule("ray", _any_of("parquet"), "its captions go into Parquet files",
             "Give --parquet FOLDER too."),
        Rule("out_dir", _any_of("txt", "xmp"), "it is the folder of .txt and .xmp files",
             "Give --txt or --xmp too."),
        Rule("null", _any_of("files_from"), "it ends the paths of a list",
             "Give --files-from too."),
        Rule("append", _any_of("txt", "xmp"), "it continues .txt and .xmp files",
             "Give --txt or --xmp too."),
        Rule("sidecar_name", _any_of("txt", "xmp"), "it names .txt and .xmp files",
             "Give --txt or --xmp too."),
        Rule("overwrite", _any_of("txt", "xmp", "output", "errors_file"),
             "nothing is written to a file", "Give --txt, --xmp or --output too."),
        Rule("seed", lambda values: bool(values["temperature"]) or "temperature" in values[GIVEN],
             "at temperature 0 the text is the same every time", "Give --temperature too."),
    ),
    "ask": (
        Rule("merge_captions", lambda values: len(values.get("models") or ()) > 1,
             "it merges the descriptions of several captioners", "Give --model twice or more."),
        Rule("instruction_mode", lambda values: not values.get("focus"),
             "--focus says what to observe", "Leave one of them out."),
        Rule("choices", lambda values: not values.get("schema_file"),
             "--schema says what the answer looks like", "Leave one of them out."),
        Rule("show_captions", lambda values: not values.get("as_json"),
             "--json prints the captions anyway", "Leave one of them out."),
    ),
    "eval": (
        Rule("pictures", _any_of("data"), "nano's own questions bring their pictures",
             "Give --data too."),
    ),
}  # fmt: skip


def check_rules(ctx: click.Context) -> None:
    """Raise UsageError for the first option on the command line that would do nothing."""
    command = ctx.command.name or ""
    given = {name for name in ctx.params if _is_given(ctx, name)}
    for rule in (*RULES["*"], *RULES.get(command, ())):
        if rule.option in given:
            if rule.has_use({**ctx.params, GIVEN: given}):
                continue
            raise UsageError(f"{_flag(ctx, rule.option)} does nothing: {rule.reason}.", rule.hint)


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _flag(ctx: click.Context, name: str) -> str:
    """Return the long spelling of an option."""
    parameter = next(p for p in ctx.command.params if p.name == name)
    return max(parameter.opts, key=len)
