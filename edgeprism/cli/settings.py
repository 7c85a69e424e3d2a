"""What the user's settings say of a command's options: flag > environment > settings > default.

The defaults of `--model` and `--reasoner` read the settings at the top themselves, so that other
commands know them too; everything else reaches click as its map of defaults.
"""

from __future__ import annotations

import importlib
import math
import os
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from edgeprism.errors import UsageError
from edgeprism.files.config import find_config, read_config

_CAPTIONER = (
    "model",
    "device",
    "threads",
    "gpu-layers",
    "vision-quant",
    "visual-tokens",
    "lm-chat-format",
    "quiet",
    "no-color",
)
_EVERYWHERE = (*_CAPTIONER, "reasoner", "chat-format")
_STAGES = ("max-tokens", "answer-tokens", "instruction", "instruction-mode", "no-cache")
# command → its settings. What is meant for one run has none: outputs, consents, and all of `eval`,
# whose figures must not depend on a file that nobody sees.
SETTINGS: dict[str, tuple[str, ...]] = {
    "caption": (*_CAPTIONER, "max-tokens", "instruction", "temperature", "txt", "xmp", "out-dir",
                "append", "sidecar-name", "exclude", "batch", "on-error", "no-cache"),
    "ask": (*_EVERYWHERE, *_STAGES, "stages", "show-captions"),
    "chat": (*_EVERYWHERE, *_STAGES),
    "serve": ("model", "reasoner", "device", "threads", "gpu-layers", "visual-tokens", "quiet",
              "no-color", "host", "port", "keep-alive"),
    "desktop": ("model", "reasoner", "device", "threads", "gpu-layers", "quiet", "no-color",
                "port"),
    "mcp": ("model", "reasoner", "device", "threads", "gpu-layers", "quiet", "no-color",
            "keep-alive"),
}  # fmt: skip
_BY_DEFAULT_CALLABLE = ("model", "reasoner")  # at the top
_VARIABLE_OF = {"model": "EDGEPRISM_MODEL"}


@dataclass(frozen=True)
class Setting:
    """One setting of the file: `section` is a command's name, or "" at the top."""

    section: str
    key: str
    value: object

    @property
    def name(self) -> str:
        """What `edgeprism config` calls it: "device", "caption.max-tokens"."""
        return f"{self.section}.{self.key}" if self.section else self.key


def settings_of_file() -> list[Setting]:
    """Return every setting of the user's file; UsageError names the first that is not known."""
    return list(_checked_names(read_config()))


def check_settings() -> None:
    """Raise the UsageError of the first setting that a command would refuse."""
    for setting in settings_of_file():
        checked_value(*option_of(setting), setting)


def option_of(setting: Setting) -> tuple[click.Context, click.Option]:
    """Return the option that a known setting is for, and a context of its command."""
    name = setting.section or sections_with(setting.key)[1]
    command = importlib.import_module(f"edgeprism.cli.{name}").command
    root = click.get_current_context().find_root()
    context = click.Context(command, parent=root, info_name=name)
    option = find_option(context, setting.key)
    assert option is not None  # a test compares SETTINGS with the commands
    return context, option


def use_settings(ctx: click.Context) -> None:
    """Give the settings to click as the defaults of the command that `ctx` is about to parse."""
    command = ctx.command.name or ""
    if command not in SETTINGS:
        return
    defaults = {}
    for setting in settings_of_file():  # a command's own settings come after those at the top
        if setting.section not in ("", command) or setting.key not in SETTINGS[command]:
            continue
        by_callable = not setting.section and setting.key in _BY_DEFAULT_CALLABLE
        option = find_option(ctx, setting.key)
        if by_callable or option is None or os.environ.get(_VARIABLE_OF.get(setting.key, "")):
            continue
        defaults[option.name or ""] = checked_value(ctx, option, setting)
    ctx.default_map = defaults


def find_option(ctx: click.Context, key: str) -> click.Option | None:
    """Return the option of a command that is called `--key`."""
    options = (p for p in ctx.command.get_params(ctx) if isinstance(p, click.Option))
    return next((option for option in options if f"--{key}" in option.opts), None)


def checked_value(ctx: click.Context, option: click.Option, setting: Setting) -> object:
    """Return a setting's value as the option takes it; UsageError says what is wrong with it."""
    value = setting.value
    several = value if isinstance(value, list) else [value]
    wanted = "true or false" if option.is_flag else "a list" if option.multiple else "one value"
    fits = all(isinstance(one, (str, int, float)) for one in several)
    if option.is_flag != isinstance(value, bool) or not fits:
        raise _wrong(setting, f"must be {wanted}")
    if isinstance(value, list) and not option.multiple:
        raise _wrong(setting, f"must be {wanted}")
    numbers = [one for one in several if isinstance(one, float)]
    if not all(map(math.isfinite, numbers)):
        raise _wrong(setting, "must be a finite number")
    if numbers and isinstance(option.type, click.types.IntParamType):
        raise _wrong(setting, "must be a whole number")
    value = several if option.multiple else value
    try:
        option.type_cast_value(ctx, value)
    except OverflowError as error:
        raise _wrong(setting, "is too large a number") from error
    except click.BadParameter as error:
        raise _wrong(setting, error.message.rstrip(".").replace(" range", "")) from error
    return value


def sections_with(key: str) -> list[str]:
    """Return where a setting may stand: commands, and "" if it may stand at the top."""
    found = [command for command, keys in SETTINGS.items() if key in keys]
    return [*([""] if key in _EVERYWHERE else []), *found]


def was_set(ctx: click.Context, name: str) -> bool:
    """Return whether the settings decided a parameter of the running command."""
    return ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP


def _checked_names(config: dict[str, Any]) -> Iterator[Setting]:
    tables = {name: value for name, value in config.items() if isinstance(value, dict)}
    for key, value in config.items():
        if key not in tables:
            _check_name(Setting("", key, value))
            yield Setting("", key, value)
    for section, table in tables.items():
        for key, value in table.items():
            _check_name(Setting(section, key, value))
            yield Setting(section, key, value)


def _check_name(setting: Setting) -> None:
    if setting.section in sections_with(setting.key):
        return
    raise UsageError(
        f"{find_config()}: there is no setting {setting.name}.", describe_known(setting.name)
    )


def describe_known(name: str) -> str:
    """Return a hint at the settings that `name` may mean."""
    import difflib

    known = [*_EVERYWHERE, *(f"{c}.{k}" for c, keys in SETTINGS.items() for k in keys)]
    close = difflib.get_close_matches(name, known)
    meant = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{meant}`edgeprism config list --all` names every setting."


def _wrong(setting: Setting, reason: str) -> UsageError:
    return UsageError(
        f"{find_config()}: {setting.name} = {reprlib.repr(setting.value)}: {reason}.",
        f"Mend it (edgeprism config set {setting.name} VALUE), or take it away "
        f"(edgeprism config unset {setting.name}).",
    )
