"""Errors on the terminal: hints name options where the library names its keywords."""

from __future__ import annotations

import os
import re

import click

from edgeprism.errors import EdgePrismError

# keywords of the library, as its hints write them between backticks → options of the commands
OPTIONS = {
    "allow_network": "--allow-network",
    "answer_tokens": "--answer-tokens",
    "caption_tokens": "--max-tokens",
    "chat_format": "--chat-format",
    "choices": "--choices",
    "conversation": "--conversation",
    "data": "--data",
    "device": "--device",
    "exclude": "--exclude",
    "errors_file": "--errors",
    "files_from": "--files-from",
    "force": "--force",
    "given": "--from",
    "gpu_layers": "--gpu-layers",
    "limit": "--limit",
    "llm": "--llm",
    "lm": "--lm",
    "lm_quant": "--lm-quant",
    "mmproj": "--mmproj",
    "null": "--null",
    "out": "--out",
    "output": "--output",
    "out_dir": "--out-dir",
    "overwrite": "--overwrite",
    "photos": "--photos",
    "pictures": "--pictures",
    "reasoner": "--reasoner",
    "schema": "--schema",
    "second_vision": "--second-vision",
    "served_model": "--reasoner-model",
    "splits": "--split",
    "stages": "--stages",
    "use_store=False": "--no-cache",
    "vision": "--vision",
    "vision_quants": "--vision-quant",
}
_KEYWORD = re.compile(r"`(?P<name>\w+)(?:=(?P<value>[\w.]+|\"[^\"`]*\"))?`")


def with_options(text: str) -> str:
    """A hint with the command line's options in place of the library's keywords.

    Between backticks, device="cpu" becomes --device cpu; what is no keyword stays as it is.
    """

    def option(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        if f"{name}={value}" in OPTIONS:
            return OPTIONS[f"{name}={value}"]
        if name not in OPTIONS:
            return match[0]
        return OPTIONS[name] if value is None else OPTIONS[name] + " " + value.strip('"')

    return _KEYWORD.sub(option, text)


def colour_choice() -> bool | None:
    """False with NO_COLOR, True with FORCE_COLOR, None to ask the terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def show_error(error: EdgePrismError) -> None:
    """Print what happened, then what to do, on stderr."""
    colour = colour_choice()
    click.echo(
        click.style("error: ", fg="red", bold=True) + error.message.rstrip(),
        err=True,
        color=colour,
    )
    if error.hint:
        hint = click.style("  hint: ", fg="cyan") + with_options(error.hint)
        click.echo(hint, err=True, color=colour)
