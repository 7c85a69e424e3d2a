"""Errors on the terminal: hints name options where the library names its keywords."""

from __future__ import annotations

import os
import re

import click

from edgeprism.errors import EdgePrismError
from edgeprism.files.safe_text import printable_line

# keywords of the library, as its hints write them between backticks → options of the commands
OPTIONS = {
    "actor_cpus": "--actor-cpus",
    "actor_gpus": "--actor-gpus",
    "allow_network": "--allow-network",
    "answer_tokens": "--answer-tokens",
    "api_key_file": "--api-key-file",
    "append": "--append",
    "caption_tokens": "--max-tokens",
    "captioner": "--captioner",
    "chat_format": "--chat-format",
    "choices": "--choices",
    "conversation": "--conversation",
    "data": "--data",
    "device": "--device",
    "encoder": "--encoder",
    "errors_file": "--errors",
    "exclude": "--exclude",
    "fd": "--fd",
    "files_from": "--files-from",
    "force": "--force",
    "frames": "--frames",
    "frames_per_second": "--frames-per-second",
    "given": "--from",
    "gpu_layers": "--gpu-layers",
    "host": "--host",
    "into": "--into",
    "keep_first_patch": "--keep-first-patch",
    "limit": "--limit",
    "llm": "--llm",
    "lm": "--lm",
    "lm_chat_format": "--lm-chat-format",
    "lm_quant": "--lm-quant",
    "mmproj": "--mmproj",
    "name": "--name",
    "null": "--null",
    "out": "--out",
    "output": "--output",
    "out_dir": "--out-dir",
    "overwrite": "--overwrite",
    "pooling": "--pooling",
    "port": "--port",
    "photos": "--photos",
    "pictures": "--pictures",
    "qformer": "--qformer",
    "qformer_tokenizer": "--qformer-tokenizer",
    "reasoner": "--reasoner",
    "revision": "--revision",
    "rope_factor": "--rope-factor",
    "schema": "--schema",
    "second_vision": "--second-vision",
    "served_model": "--reasoner-model",
    "splits": "--split",
    "stages": "--stages",
    "task": "--task",
    "threads": "--threads",
    "tiles": "--tiles",
    "tokenizer": "--tokenizer",
    "use_store=False": "--no-cache",
    "vision": "--vision",
    "vision_aux": "--vision-aux",
    "visual_tokens": "--visual-tokens",
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
    """Print what happened, a line for each detail, then what to do, on stderr."""
    _show(click.style("error: ", fg="red", bold=True), error)


def show_interrupted(error: EdgePrismError) -> None:
    """Print like `show_error` what an interrupted command leaves, which is no error."""
    _show("", error)


def _show(beginning: str, error: EdgePrismError) -> None:
    colour = colour_choice()
    summary = beginning + printable_line(error.summary)
    lines = [summary, *(f"    {printable_line(detail)}" for detail in error.details)]
    if error.hint:
        lines.append(click.style("  hint: ", fg="cyan") + printable_line(with_options(error.hint)))
    click.echo("\n".join(lines), err=True, color=colour)


def show_usage_error(error: click.ClickException) -> None:
    """Print what click refuses, on stderr; the text may hold a file's name."""
    message = printable_line(error.format_message())
    error.format_message = lambda: message  # type: ignore[method-assign]
    error.show()
