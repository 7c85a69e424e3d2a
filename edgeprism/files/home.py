"""The folder where EdgePrism keeps installed models and remembered facts."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def data_dir() -> Path:
    """Return `EDGEPRISM_HOME` if it is set, else the user's data folder of this platform."""
    home = os.environ.get("EDGEPRISM_HOME")
    return Path(home) if home else Path(platformdirs.user_data_dir("edgeprism"))
