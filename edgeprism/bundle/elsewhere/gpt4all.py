"""GPT4All's models: GGUF files side by side in one folder.

Sources: nomic-ai/gpt4all, gpt4all-chat/src/mysettings.cpp and main.cpp (the application's data
folder, `modelPath` of its settings), gpt4all-bindings/python (`~/.cache/gpt4all`).
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from edgeprism.bundle.elsewhere.kept import (
    Kept,
    absolute_path,
    environment_path,
    home,
    list_gguf,
    models_of_folder,
    read_record,
)

TITLE = "GPT4All"
_APPLICATION = Path("nomic.ai") / "GPT4All"
_SETTING = "modelPath="


def places() -> list[Path]:
    """Return the folder of the settings, the application's, and that of the Python package."""
    own = home()
    settings: Path | None
    if sys.platform == "darwin":
        data = own / "Library/Application Support" if own else None
        settings = own / ".config" if own else None
    elif os.name == "nt":
        data, settings = environment_path("LOCALAPPDATA"), environment_path("APPDATA")
    else:
        data = environment_path("XDG_DATA_HOME") or (own / ".local/share" if own else None)
        settings = environment_path("XDG_CONFIG_HOME") or (own / ".config" if own else None)
    named = _model_path(settings / _APPLICATION.with_suffix(".ini")) if settings else None
    found = [named, data / _APPLICATION if data else None, own / ".cache/gpt4all" if own else None]
    return list(dict.fromkeys(place for place in found if place))


def canonical(name: str) -> str:
    """Return a file's name with its suffix."""
    return name if name.lower().endswith(".gguf") else f"{name}.gguf"


def kept_in(place: Path, only: str = "") -> Iterator[Kept]:
    """Yield the models of a folder; with `only`, that name's alone."""
    if not os.path.isdir(place):
        return
    for file, kept in models_of_folder(list_gguf(place, 1)):
        if only in ("", file):
            yield dataclasses.replace(kept, name=file)


def _model_path(settings: Path) -> Path | None:
    try:
        lines = read_record(settings).decode("utf-8").splitlines()
    except (OSError, ValueError):
        return None
    named = [line.removeprefix(_SETTING) for line in lines if line.startswith(_SETTING)]
    return absolute_path(named[0].strip()) if named and named[0].strip() else None
