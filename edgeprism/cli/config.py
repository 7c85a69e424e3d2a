"""`edgeprism config`: the user's settings."""

from __future__ import annotations

import os
from typing import Any

import click

from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.named_models import model_to_default, say_what_still_holds
from edgeprism.cli.settings import (
    SETTINGS,
    Setting,
    checked_value,
    describe_known,
    option_of,
    sections_with,
    settings_of_file,
)
from edgeprism.cli.terminal import print_json, print_line, print_path, say
from edgeprism.errors import OutputError, UsageError
from edgeprism.files.config import change_config, find_config, read_config

_VARIABLES = {"model": "EDGEPRISM_MODEL", "device": "EDGEPRISM_DEVICE"}


@click.group("config")
def command() -> None:
    """Read and write the settings that commands use where no option says otherwise.

    A flag wins over a variable of the environment, that over a setting, that over the default.
    """


@with_examples("edgeprism config list", "edgeprism config list --all")
@command.command("list", cls=Command)
@click.option("--all", "everything", is_flag=True, help="Also the settings that are not set.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_(everything: bool, as_json: bool) -> None:
    """Print the settings, each as NAME = VALUE."""
    values = {setting.name: setting.value for setting in settings_of_file()}
    if everything:
        keys = {key: None for keys in SETTINGS.values() for key in keys}
        names = [Setting(section, key, None).name for key in keys for section in sections_with(key)]
        values = {name: values.get(name) for name in sorted(names, key=lambda n: ("." in n, n))}
    if as_json:
        print_json(values, indent=2)
        return
    if not values:
        say("Nothing is set. `edgeprism config list --all` names every setting.")
    for name, value in values.items():
        variable = _VARIABLES.get(name, "")
        note = f"  ({variable} goes first)" if os.environ.get(variable) else ""
        print_line(f"{name}{'' if value is None else ' = ' + _shown(value)}{note}")


@with_examples("edgeprism config get model")
@command.command("get", cls=Command)
@click.argument("name", metavar="NAME")
def get(name: str) -> None:
    """Print the value of one setting; nothing and exit code 1 if it is not set."""
    wanted = _setting(name)
    for setting in settings_of_file():
        if setting.name == wanted.name:
            print_line(_shown(setting.value))
            return
    raise click.exceptions.Exit(1)


@with_examples(
    "edgeprism config set device cpu",
    "edgeprism config set caption.max-tokens 60",
    'edgeprism config set caption.exclude "*.gif" "old/"',
)
@command.command("set", cls=Command, context_settings={"ignore_unknown_options": True})
@click.argument("name", metavar="NAME")
@click.argument("values", metavar="VALUE...", nargs=-1, required=True)
def set_(name: str, values: tuple[str, ...]) -> None:
    """Set NAME, for every command that has such an option, or COMMAND.NAME for one of them."""
    from edgeprism.bundle.defaults import SETTINGS as DEFAULTS

    setting = _setting(name)
    value = _from_text(setting, values)
    before = read_config().get(name)
    say(f"{name} = {_shown(value)} in {change_config(setting.section, setting.key, value)}")
    for kind, key in DEFAULTS.items():
        if name == key and value != before:
            say_what_still_holds(kind, str(value))


@command.command("unset", cls=Command)
@click.argument("name", metavar="NAME")
def unset(name: str) -> None:
    """Take a setting away, so that the default holds again."""
    # not `_setting`: what a later version no longer knows can be taken away, too
    section, _, key = name.rpartition(".")
    config = read_config()
    table = config.get(section, {}) if section else config
    if not isinstance(table, dict) or key not in table:
        say(f"{name} was not set.")
        return
    say(f"{name} is no longer set in {change_config(section, key, None)}")


@command.command("path", cls=Command)
def path() -> None:
    """Print the path of the file, whether it exists or not."""
    found = find_config()
    if found is None:
        raise OutputError("This user has no home folder for settings.", "Set EDGEPRISM_HOME.")
    print_path(found)


def _setting(name: str) -> Setting:
    section, _, key = name.rpartition(".")
    if section not in sections_with(key):
        raise UsageError(f"There is no setting {name!r}.", describe_known(name))
    return Setting(section, key, None)


def _from_text(setting: Setting, values: tuple[str, ...]) -> object:
    """Return the value that the file shall hold, as the option's type has it."""
    ctx, option = option_of(setting)
    if any(_is_no_text(value) for value in values):
        raise UsageError(f"{setting.name}: the value is not UTF-8.", "The file holds text alone.")
    if not option.multiple and len(values) > 1:
        raise UsageError(f"{setting.name} takes one value.", "Put it in quotation marks.")
    if option.multiple and len(values) == 1 and values[0].startswith("["):
        values = _from_toml_list(setting, values[0])
    given: Any = list(values) if option.multiple else values[0]
    if option.is_flag:
        try:
            given = click.BOOL.convert(values[0], option, ctx)
        except click.BadParameter as error:
            raise UsageError(f"{setting.name} must be true or false.") from error
    try:
        cast = option.type_cast_value(ctx, given)
    except click.BadParameter as error:
        raise UsageError(f"{setting.name}: {error.message.replace(' range', '')}") from error
    value = list(cast) if option.multiple else cast
    checked_value(ctx, option, Setting(setting.section, setting.key, value))
    return _checked_models(setting.key, value)


def _checked_models(key: str, value: object) -> object:
    """Return the value with a model's name as `edgeprism use` writes it; others unchanged.

    Raises ModelError for a model that is not here, or is of the other kind.
    """
    from edgeprism.bundle.defaults import SETTINGS as DEFAULTS

    for kind, setting in DEFAULTS.items():
        if key == setting:
            names = value if isinstance(value, list) else [value]
            checked = [model_to_default(str(name), kind)[1] for name in names]
            return checked if isinstance(value, list) else checked[0]
    return value


def _is_no_text(text: str) -> bool:
    """Return whether a word of the command line holds bytes that are no text."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _from_toml_list(setting: Setting, text: str) -> tuple[str, ...]:
    """Read a list as the file holds it, for whoever copies one from there."""
    import tomllib

    try:
        return tuple(map(str, tomllib.loads(f"x = {text}")["x"]))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{setting.name}: {text} is no list.", "Give each value as a word of its own."
        ) from error


def _shown(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
