"""Copies of checkpoints whose config.json says something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def changed_copy(folder: Path, copy: Path, fields: Mapping[str, Any]) -> Path:
    """Copy `folder` to `copy` with `fields` of config.json changed, as `change_config` does."""
    shutil.copytree(folder, copy)
    change_config(copy, fields)
    return copy


def change_config(folder: Path, fields: Mapping[str, Any]) -> None:
    """Change `fields` of a folder's config.json.

    A name with dots is that of a field inside others ("vision_config.image_size"). A dictionary
    changes the fields that it names and leaves the others beside them; None removes a field.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in fields.items():
        *parents, last = name.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        place[last] = {**place.get(last, {}), **value} if isinstance(value, dict) else value
        if value is None:
            del place[last]
    path.unlink()  # it may be a link to the original
    path.write_text(json.dumps(config))
