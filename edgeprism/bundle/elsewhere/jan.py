"""Jan's models: `llamacpp/models/ID/model.yml` in its data folder; older ones in `models/`.

Sources: janhq/jan, src-tauri/src/core/app/commands.rs (the data folder) and
extensions/llamacpp-extension (`model_path` and `mmproj_path`, relative to the data folder or
absolute; `files` of older records). `model.json` is the record of the first versions.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from edgeprism.bundle.elsewhere.kept import (
    MAX_DEPTH,
    Kept,
    Reader,
    absolute_path,
    environment_path,
    home,
    read_record,
    reason,
    unreadable,
)

TITLE = "Jan"
_RECORDS = ("model.yml", "model.yaml", "model.json")
_LINE = re.compile(r"(?P<key>[A-Za-z_]+):\s*(?P<value>.*)")
_ITEM = re.compile(r"\s*-\s+(?P<value>.*)")


def places() -> list[Path]:
    """Return Jan's data folders."""
    if os.environ.get("JAN_DATA_FOLDER"):
        named = environment_path("JAN_DATA_FOLDER")
        return [named] if named else []
    found = []
    for folder in _application_folders():
        if setting := _data_folder(folder / "settings.json"):
            found.append(setting)
        found.append(folder / "data")
    own = home()
    return list(dict.fromkeys([*found, *([own / "jan"] if own else [])]))


def canonical(name: str) -> str:
    """Return the name as it is."""
    return name


def kept_in(place: Path, only: str = "") -> Iterator[Kept]:
    """Yield the models of a data folder; with `only`, that name's alone."""
    reader = Reader()
    for folder in (place / "llamacpp" / "models", place / "models"):
        for current, entries in reader.walk(folder, MAX_DEPTH, {}):
            for record in _records(folder / current, [entry.name for entry in entries]):
                name = _name(record.relative_to(folder))
                if name and only in ("", name):
                    yield _to_kept(name, record, place)
    if not only:
        yield from unreadable(place)
        yield from reader.early_end(place)


def _application_folders() -> list[Path]:
    own = home()
    if sys.platform == "darwin":
        base = own / "Library/Application Support" if own else None
    elif os.name == "nt":
        base = environment_path("APPDATA")
    else:
        base = environment_path("XDG_DATA_HOME") or (own / ".local/share" if own else None)
    return [base / "Jan", base / "jan.ai.app"] if base else []


def _data_folder(settings: Path) -> Path | None:
    try:
        data = json.loads(read_record(settings))
    except (OSError, ValueError, RecursionError):
        return None
    folder = data.get("data_folder") if isinstance(data, dict) else None
    return absolute_path(folder) if isinstance(folder, str) and folder else None


def _records(folder: Path, names: list[str]) -> list[Path]:
    if found := [name for name in _RECORDS if name in names]:
        return [folder / found[0]]
    return [folder / name for name in names if name.endswith((".yml", ".yaml"))]


def _name(record: Path) -> str:
    """Return a model's name: its folder, and the record's name where a folder has several."""
    inside = record.parent if record.name in _RECORDS else record.with_suffix("")
    return "" if inside == Path() else inside.as_posix()


def _to_kept(name: str, record: Path, place: Path) -> Kept:
    try:
        text = read_record(record).decode("utf-8")
        lm, mmproj = _from_json(text, record) if record.suffix == ".json" else _from_yaml(text)
    except (OSError, ValueError, RecursionError) as error:
        return Kept(name, record, problem=f"its {record.name} cannot be read: {reason(error)}")
    if not lm:
        return Kept(name, record, problem=f"its {record.name} names no file")
    files = [place / path for path in (lm, mmproj) if path]
    for file in files:
        if not os.path.isfile(file):
            return Kept(name, record, problem=f"half fetched, or moved: {file} is missing")
    return Kept(name, record, files[0], files[1] if mmproj else None)


def _from_json(text: str, record: Path) -> tuple[str, str]:
    data = json.loads(text)
    settings = data.get("settings") if isinstance(data, dict) else None
    if not isinstance(settings, dict):
        raise ValueError("it has no settings")
    lm, mmproj = (
        str(record.with_name(file)) if isinstance(file, str) and _is_name(file) else ""
        for file in (settings.get("llama_model_path"), settings.get("mmproj"))
    )
    return lm, mmproj


def _is_name(text: str) -> bool:
    return text not in ("", ".", "..") and not re.search(r"[/\\\0]", text)


def _from_yaml(text: str) -> tuple[str, str]:
    """Return model and mmproj of a record: of YAML only the top level's scalars and lists."""
    values: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            key = match["key"]
            values.setdefault(key, _unquoted(match["value"]))
        elif (match := _ITEM.fullmatch(line)) and not values.get(key, "-"):
            values[key] = _unquoted(match["value"])  # the first of a list
    return values.get("model_path") or values.get("files", ""), values.get("mmproj_path", "")


def _unquoted(value: str) -> str:
    text = value.strip()
    if text[:1] == "'" and text.endswith("'") and len(text) > 1:
        return text[1:-1].replace("''", "'")
    if text.startswith('"'):
        unquoted: object = json.loads(text)  # what YAML escapes in double quotes JSON does too
        return str(unquoted)
    return "" if text in ("null", "~") else text
