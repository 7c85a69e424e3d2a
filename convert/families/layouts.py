"""What a folder looks like, for the error that says why it is not the layout it was taken for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeprism.convert.families import FAMILIES
from edgeprism.errors import CheckpointError

_MOST_NAMES = 12


def unknown_layout(folder: Path, family: str, expected: str) -> CheckpointError:
    """Says what was found, what was expected, and which families come close."""
    config = _config_of(folder)
    names = sorted(path.name + "/" * path.is_dir() for path in folder.glob("*"))
    shown = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
    fields = ", ".join(sorted(config)[:_MOST_NAMES]) or "none"
    about = f"config.json with model_type {config.get('model_type')!r} and fields {fields}"
    if "config.json" not in names:
        about = "no config.json"
    close = closest_families(folder)
    said = ", ".join(close) if close else "none"
    return CheckpointError(
        f"{folder} is not a checkpoint of {family}.\n"
        f"  found: {about}; files {shown or 'none'}\n"
        f"  expected: {expected}\n"
        f"  families that come close: {said}\n",
        f"Try `edgeprism convert {close[0]}`." if close and close[0] != family
        else "`edgeprism convert --list` says what each family is.",
    )  # fmt: skip


def closest_families(folder: Path) -> list[str]:
    """Families that share something with `folder`, the closest first."""
    config = _config_of(folder)
    there = {*config, *(path.name for path in folder.glob("*"))}
    kind = config.get("model_type")
    scores = {
        name: 2 * (kind in family.model_types) + len(there.intersection(family.signs))
        for name, family in FAMILIES.items()
    }
    return sorted((name for name in scores if scores[name]), key=lambda name: -scores[name])


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
