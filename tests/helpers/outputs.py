"""What EdgePrism wrote, remembered in memory."""

from __future__ import annotations

from pathlib import Path


class KnownOutputs:
    """Stands in for the caption store's table of outputs, and lists the paths it was asked for."""

    def __init__(self) -> None:
        self._known: list[tuple[Path, str]] = []
        self.lookups: list[Path] = []

    def is_written(self, path: Path, sha256: str) -> bool:
        self.lookups.append(path)
        return (path, sha256) in self._known

    def places(self, sha256: str, name: str) -> list[Path]:
        found = [path for path, known in self._known if known == sha256]
        return sorted(found, key=lambda path: path.name != name)

    def remember(self, path: Path, sha256: str) -> None:
        self._known.append((path, sha256))

    def forget(self, path: Path, sha256: str) -> None:
        self._known = [entry for entry in self._known if entry != (path, sha256)]
