"""Where EdgePrism keeps what it makes for the user."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def data_dir() -> Path:
    """`EDGEPRISM_HOME`, else the platform's data folder of the user."""
    home = os.environ.get("EDGEPRISM_HOME")
    return Path(home) if home else Path(platformdirs.user_data_dir("edgeprism"))
