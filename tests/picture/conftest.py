"""What tests of pictures share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
