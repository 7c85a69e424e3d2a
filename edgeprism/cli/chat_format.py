"""The type of options that take llama.cpp's name of a chat format, and where a setting gave it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click
from click.core import ParameterSource

from edgeprism.errors import DeviceError, TemplateError, UsageError
from edgeprism.files.config import find_config, read_config

# Names that llama.cpp has had for long. They are accepted without loading llama.cpp, which takes
# 0.4 s; it is asked about every other name (`llama_chat_builtin_templates`).
LONG_KNOWN = frozenset((
    "chatglm3", "chatglm4", "chatml", "command-r", "deepseek", "deepseek2", "deepseek3",
    "exaone3", "falcon3", "gemma", "gigachat", "glmedge", "granite", "llama2", "llama2-sys",
    "llama2-sys-bos", "llama2-sys-strip", "llama3", "llama4", "megrez", "minicpm", "mistral-v1",
    "mistral-v3", "mistral-v3-tekken", "mistral-v7", "monarch", "openchat", "orion", "phi3",
    "phi4", "rwkv-world", "vicuna", "vicuna-orca", "zephyr",
))  # fmt: skip
_PARAMETERS = ("chat_format", "lm_chat_format")


class ChatFormat(click.types.StringParamType):
    """A name that llama.cpp knows; where llama.cpp cannot be loaded, any name."""

    name = "chat format"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Return the name; fails with all known names for any other."""
        name = str(value)
        if name in LONG_KNOWN or (ctx is not None and ctx.resilient_parsing):
            return name
        from edgeprism.language.llama import chat_formats

        try:
            known = chat_formats()
        except DeviceError:  # the command that needs llama.cpp says so
            return name
        if name not in known:
            self.fail(f"{name!r} is no chat format of llama.cpp: {', '.join(known)}.", param, ctx)
        return name


@contextlib.contextmanager
def told_of_setting(ctx: click.Context) -> Iterator[None]:
    """Say of an error about a chat format, inside the block, that the settings name the format."""
    try:
        yield
    except (TemplateError, UsageError) as error:
        for parameter in _PARAMETERS:
            value = ctx.params.get(parameter)
            by_setting = ctx.get_parameter_source(parameter) is ParameterSource.DEFAULT_MAP
            if by_setting and repr(value) in error.summary:
                key = parameter.replace("_", "-")
                error.details = (*error.details, f"{key} = {value} is a setting in {find_config()}")
                error.hint = f"Take it away: {unset_command(key, ctx.info_name or '')}"
        raise


def unset_command(key: str, command: str = "") -> str:
    """Return the command that takes a setting away, from the top or from a command's own table."""
    table = read_config().get(command)
    own = isinstance(table, dict) and key in table
    return f"edgeprism config unset {command + '.' if own else ''}{key}"
