"""Families by name, found by listing `families/`, and the ones that a folder looks like."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

from edgeprism.convert import families as package
from edgeprism.convert.family import Family
from edgeprism.errors import CheckpointError, UsageError

_N_SHOWN = 12


def family_names() -> list[str]:
    """The names of all families, sorted; imports none of them."""
    return sorted(file.name.replace("_", "-") for file in pkgutil.iter_modules(package.__path__))


def family_named(name: str) -> Family:
    """The family of that name; UsageError where there is none."""
    names = family_names()
    if name not in names:
        raise UsageError(
            f"No family of checkpoints is named {name}.", f"Known: {', '.join(names)}."
        )
    return _load(name)


def families() -> list[Family]:
    """All families, sorted by name: what `convert --list` and the documentation show."""
    return [_load(name) for name in family_names()]


def _load(name: str) -> Family:
    module = importlib.import_module(f"{package.__name__}.{name.replace('-', '_')}")
    family: Family = module.FAMILY
    return family


def unknown_layout(folder: Path, family: str, expected: str) -> CheckpointError:
    """The error that says what `folder` holds, what `family` expects, and which families are close.

    `family` is the name under which somebody tried to convert the folder.
    """
    config = _config_of(folder)
    names = sorted(path.name + "/" * path.is_dir() for path in folder.glob("*"))
    shown = ", ".join(names[:_N_SHOWN]) + (", …" if len(names) > _N_SHOWN else "")
    fields = ", ".join(sorted(config)[:_N_SHOWN]) or "none"
    about = f"config.json with model_type {config.get('model_type')!r} and fields {fields}"
    if "config.json" not in names:
        about = "no config.json"
    close = closest_families(folder)
    return CheckpointError(
        f"{folder} is not a checkpoint of {family}.\n"
        f"  found: {about}; files {shown or 'none'}\n"
        f"  expected: {expected}\n"
        f"  families that come close: {', '.join(close) or 'none'}\n",
        f"Try `edgeprism convert {close[0]}`." if close and close[0] != family
        else "`edgeprism convert --list` says what each family is.",
    )  # fmt: skip


def closest_families(folder: Path) -> list[str]:
    """Names of the families that share something with `folder`, the closest first."""
    config = _config_of(folder)
    there = {*config, *(path.name for path in folder.glob("*"))}
    kind = config.get("model_type")
    scores = {
        family.name: 2 * (kind in family.model_types) + len(there.intersection(family.signs))
        for family in families()
    }
    return sorted((name for name in scores if scores[name]), key=lambda name: -scores[name])


def _config_of(folder: Path) -> dict[str, Any]:
    """The fields of config.json; none where it cannot be read, for an error is being written."""
    try:
        data = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
