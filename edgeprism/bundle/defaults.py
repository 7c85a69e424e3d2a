"""The models that commands use when none is named; `edgeprism use` chooses them."""

from __future__ import annotations

import os
from typing import Literal

from edgeprism.choices import DEFAULT_MODEL
from edgeprism.errors import UsageError
from edgeprism.files.config import change_config, find_config, read_config

Kind = Literal["captioner", "reasoner"]
BUILT_IN: dict[Kind, str] = {"captioner": DEFAULT_MODEL, "reasoner": "smollm2-135m"}
SETTINGS: dict[Kind, str] = {"captioner": "model", "reasoner": "reasoner"}  # in config.toml


def default_model(kind: Kind) -> str:
    """Return the name of the captioner or reasoner that a command uses when none is named.

    A captioner that the environment names (`EDGEPRISM_MODEL`) goes first, then the user's choice,
    then EdgePrism's own default. Raises UsageError if the user's settings cannot be read.
    """
    named = os.environ.get("EDGEPRISM_MODEL") if kind == "captioner" else None
    return named or chosen_model(kind) or BUILT_IN[kind]


def chosen_model(kind: Kind) -> str | None:
    """Return the default that the user chose; None without a choice.

    Raises UsageError if the user's settings cannot be read.
    """
    name = read_config().get(SETTINGS[kind])
    if name is None or (isinstance(name, str) and name):
        return name
    raise UsageError(
        f"{find_config()}: {SETTINGS[kind]} must be a model's name, got {name!r}.",
        f"Mend it: edgeprism config set {SETTINGS[kind]} NAME",
    )


def choose_model(kind: Kind, name: str | None) -> None:
    """Make a model the default; None goes back to EdgePrism's own.

    Raises OutputError if the choice cannot be written, UsageError if the settings are damaged.
    """
    change_config("", SETTINGS[kind], name)
