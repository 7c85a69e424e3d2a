"""What tests of the command line share."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeprism.cli.main import run


@pytest.fixture
def chat(
    random_bundle: Path, scripted_gguf: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """`edgeprism chat` about a picture, with what a person types."""

    def started(typed: str, *options: str) -> int:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        return run(["chat", str(photo), "--captioner", str(random_bundle),
                    "--reasoner", str(scripted_gguf), *options])  # fmt: skip

    return started
