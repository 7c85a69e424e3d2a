"""Record which methods of a class a test calls."""

from __future__ import annotations

from typing import Any

import pytest


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: type, *names: str) -> list[str]:
    """Return a list that records each call of the methods `names`, which still run."""
    calls: list[str] = []

    def watched(name: str) -> Any:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return original(*arguments, **options)

        return call

    for name in names:
        monkeypatch.setattr(owner, name, watched(name))
    return calls
