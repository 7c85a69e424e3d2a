"""The user's settings: `config.toml`, in the platform's folder of settings.

A setting stands at the top, for every command that has such an option, or in the table of one
command:

    model = "smolvlm-500m"

    [caption]
    max-tokens = 60

Python reads TOML but does not write it, and a library that writes it would be one more dependency
of every installation for one command. So `change_config` changes a single line, and keeps the
result only if Python reads from it what was meant.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from edgeprism.errors import OutputError, UsageError
from edgeprism.files.regular import open_regular

FILE_NAME = "config.toml"
_MAX_BYTES = 1 << 20
_TABLE = re.compile(r"\s*\[")


def find_config() -> Path | None:
    """Return the path of the user's settings, whether they exist or not; None without a home.

    They lie in `EDGEPRISM_HOME` if that is set, else in the platform's folder of settings.
    """
    home = os.environ.get("EDGEPRISM_HOME")
    if home:
        return Path(home) / FILE_NAME
    import platformdirs  # not at the top: help reads no settings

    try:
        return Path(platformdirs.user_config_dir("edgeprism")) / FILE_NAME
    except RuntimeError:  # platformdirs found no home folder
        return None


def read_config() -> dict[str, Any]:
    """Return the settings as TOML gives them; an empty dict if there is no file.

    Raises UsageError if the file cannot be read or is no TOML.
    """
    path = find_config()
    text = _read_text(path) if path is not None else ""
    return _parsed(text, path) if text else {}


def change_config(section: str, key: str, value: object) -> Path:
    """Set one setting, or remove it where `value` is None; return the file's path.

    Args:
        section: The command's name, or "" for the settings at the top.
        key: The setting's name.
        value: A string, number, boolean, or list of these.

    Raises:
        UsageError: The file is no TOML, or writes this setting in a form that is left to an editor.
        OutputError: The file cannot be written, or this user has no folder for it.
    """
    from edgeprism.files.atomic import output_error, write_atomically  # only `config set` writes
    from edgeprism.files.locks import locked

    found = find_config()
    if found is None:
        raise OutputError(
            "There is no folder for settings: this user has no home folder.",
            "Set EDGEPRISM_HOME to a folder that you may write to.",
        )
    path = Path(os.path.realpath(found))  # where it is a link, the link stays
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error
    with locked(path):  # two commands at a time must not lose each other's change
        write_atomically(path, _text_with(path, section, key, value).encode())
    return found


def _text_with(path: Path, section: str, key: str, value: object) -> str:
    """Return the file's text with one setting changed; UsageError if that cannot be done."""
    text = _read_text(path)
    config = _parsed(text, path)
    if not isinstance(config.get(section, {}), dict):
        raise UsageError(f"{path}: {section} is no table.", f"Remove the line of {section} there.")
    wanted = _changed(config, section, key, value)
    new = _changed_text(text, section, key, value)
    try:
        right = _parsed(new, path) == wanted
    except (UsageError, RecursionError):  # what is nested very deeply cannot be compared
        right = False
    if not right:
        name = f"{section}.{key}" if section else key
        raise UsageError(
            f"{path}: {name} is written in a form that only an editor can change.",
            f"Open the file and set {name} there.",
        )
    return new


def _read_text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise UsageError(f"{path}: more than {_MAX_BYTES:,} bytes.", "Shorten or remove it.")
        return data.decode("utf-8-sig")
    except OSError as error:
        if not os.path.lexists(path):  # none, or in a folder that this user may not even enter
            return ""
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}).", "Check its permissions, or remove it."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8.", "Save it as UTF-8.") from error


def _parsed(text: str, path: Path | None) -> dict[str, Any]:
    import tomllib  # not at the top: most users have no such file

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also for very long numbers
        raise UsageError(f"{path}: is no TOML: {error}.", "Mend that line.") from error


def _changed(config: dict[str, Any], section: str, key: str, value: object) -> dict[str, Any]:
    """Return the settings that the file shall hold afterwards."""
    table = dict(config[section]) if section in config else {}
    place = table if section else dict(config)
    place.pop(key, None)
    if value is not None:
        place[key] = value
    if not section:
        return place
    # a table that is left empty stays, because its header stays
    return {**config, section: place} if value is not None or section in config else dict(config)


def _changed_text(text: str, section: str, key: str, value: object) -> str:
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    start, end = _table_lines(lines, section)
    end_of_line = "\r\n" if "\r\n" in text else "\n"
    new = [] if value is None else [f"{key} = {_to_toml(value)}{end_of_line}"]
    setting = re.compile(rf"\s*{re.escape(key)}\s*=")
    for number in range(start, end):
        if setting.match(lines[number]):
            return "".join([*lines[:number], *new, *lines[number + 1 :]])
    if not new:
        return text
    if section and start == len(lines) and not _is_header(lines[-1:], section):
        new = [*([end_of_line] if lines else []), f"[{section}]{end_of_line}", *new]
    while end > start and not lines[end - 1].strip():
        end -= 1  # blank lines stay in front of the next table
    return "".join([*lines[:end], *new, *lines[end:]])


def _to_toml(value: object) -> str:
    """Return a value in TOML, which differs from JSON in one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _is_header(lines: list[str], section: str) -> bool:
    return bool(lines) and bool(re.match(rf"\s*\[\s*{re.escape(section)}\s*\]", lines[0]))


def _table_lines(lines: list[str], section: str) -> tuple[int, int]:
    """Return the range of the lines of a table, without its header; an empty one at the end."""
    start = 0
    if section:
        headers = [i for i in range(len(lines)) if _is_header(lines[i : i + 1], section)]
        if not headers:
            return len(lines), len(lines)
        start = headers[0] + 1
    following = (i for i in range(start, len(lines)) if _TABLE.match(lines[i]))
    return start, next(following, len(lines))
