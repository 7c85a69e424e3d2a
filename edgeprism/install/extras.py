"""Finds missing optional packages of EdgePrism, and the command that installs them."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib import metadata


def missing_for_convert() -> list[str]:
    """Return the requirements of the `convert` extra that are not installed, in pip's form."""
    return missing_for("convert")


def missing_for(extra: str) -> list[str]:
    """Return the requirements of an extra that are not installed, in pip's form."""
    try:
        required = metadata.requires("edgeprism") or []
    except metadata.PackageNotFoundError:
        return []  # EdgePrism runs from source without metadata, so they are unknown
    belongs = re.compile(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]")
    needed = [
        requirement.partition(";")[0].strip()
        for requirement in required
        if belongs.search(requirement)
    ]
    return [r for r in needed if not _is_installed(re.split(r"[^A-Za-z0-9._-]", r, maxsplit=1)[0])]


def install_extra(extra: str) -> str:
    """Return the command that installs an extra of EdgePrism into this very Python."""
    return f'{sys.executable} -m pip install "edgeprism[{extra}]"'


def has_module(name: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
