"""The models that commands use when none is named; `edgeprism models default` chooses them."""

from __future__ import annotations

import os
from typing import Literal

from edgeprism.choices import DEFAULT_MODEL
from edgeprism.errors import OutputError
from edgeprism.files.home import data_dir
from edgeprism.files.remembered import Remembered

Kind = Literal["captioner", "reasoner"]
BUILT_IN: dict[Kind, str] = {"captioner": DEFAULT_MODEL, "reasoner": "smollm2-135m"}
_FILE = "defaults.json"


def default_model(kind: Kind) -> str:
    """Return the name of the captioner or reasoner that a command uses when none is named.

    A captioner that the environment names (`EDGEPRISM_MODEL`) goes first, then the user's choice,
    then EdgePrism's own default.
    """
    named = os.environ.get("EDGEPRISM_MODEL") if kind == "captioner" else None
    return named or chosen_model(kind) or BUILT_IN[kind]


def chosen_model(kind: Kind) -> str | None:
    """Return the default that the user chose; None without a choice."""
    name = Remembered(_FILE).read().get(kind)
    return name if isinstance(name, str) and name else None


def choose_model(kind: Kind, name: str | None) -> None:
    """Make an installed or built-in model the default; None goes back to EdgePrism's own.

    Raises OutputError if the choice cannot be written.
    """
    choice = Remembered(_FILE)
    choice.remember(kind, name)
    if choice.read().get(kind) != name:
        raise OutputError(
            f"{data_dir() / _FILE}: cannot be written.", "Check the folder's permissions."
        )
