"""What tests of reasoners share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.rude_server import RudeServer, Serve


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start servers that misbehave as they are told; they end with the test."""
    monkeypatch.delenv("EDGEPRISM_API_KEY", raising=False)
    servers: list[RudeServer] = []

    def start(*behaviours: bytes | str) -> RudeServer:
        servers.append(RudeServer(*behaviours))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
