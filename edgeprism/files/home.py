"""The folder where EdgePrism keeps installed models and remembered facts."""

from __future__ import annotations

import os
from pathlib import Path

from edgeprism.errors import DataFolderError


def find_data_dir() -> Path | None:
    """Return the data folder, or None if this user has none.

    It is `EDGEPRISM_HOME` if that is set, else the user's data folder of this platform. A user
    without HOME and without an entry in the system's list of users (often so in a container) has
    none.
    """
    home = os.environ.get("EDGEPRISM_HOME")
    if home:
        return Path(home)
    import platformdirs  # not at the top: help needs no folder

    try:
        return Path(platformdirs.user_data_dir("edgeprism"))
    except RuntimeError:  # platformdirs found no home folder
        return None


def data_dir() -> Path:
    """Return the data folder, for what must be there; see `find_data_dir`.

    Raises DataFolderError if there is none.
    """
    found = find_data_dir()
    if found is None:
        raise DataFolderError(
            "There is no folder for EdgePrism's data: this user has no home folder.",
            "Set EDGEPRISM_HOME to a folder that you may write to.",
        )
    return found


def installed_models_dirs() -> list[Path]:
    """Return the folder of installed models; an empty list if there is no data folder."""
    found = find_data_dir()
    return [found / "models"] if found else []
