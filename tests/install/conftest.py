"""What tests of installing share."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from edgeprism.install import hub


@pytest.fixture
def plain_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of the hub without proxy and token, which reads little at a time and waits never."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr(hub, "_PAUSES_S", (0, 0))
