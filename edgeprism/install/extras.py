"""The optional packages of EdgePrism: which are missing, and the command that installs them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import metadata


def missing_for_convert() -> list[str]:
    """Requirements of the `convert` extra that are not installed, as pip takes them."""
    try:
        required = metadata.requires("edgeprism") or []
    except metadata.PackageNotFoundError:
        return []  # run from source without an installation: nobody knows
    wanted = [
        requirement.partition(";")[0].strip()
        for requirement in required
        if re.search(r"extra\s*==\s*['\"]convert['\"]", requirement)
    ]
    return [w for w in wanted if not _is_installed(re.split(r"[^A-Za-z0-9._-]", w, maxsplit=1)[0])]


def pip_install(requirements: Sequence[str]) -> str:
    """The command that installs them."""
    return " ".join(["pip install", *(f'"{requirement}"' for requirement in requirements)])


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
