"""What a search passed over, counted by kind: with the pictures, these are all files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from edgeprism.files.safe_text import counted
from edgeprism.picture.kinds import (
    EXCLUDED,
    HIDDEN,
    OTHER,
    SIDECAR,
    SYSTEM,
    Kind,
    is_sidecar,
    kind_of,
    stems_of,
)

# entries that are looked at in folders that are not searched: there a NAS keeps three previews of
# each picture, and snapshots of everything, and each folder that is listed costs it milliseconds
MAX_COUNTED = 10_000
_NAMED = 12  # folders that a summary names


@dataclass
class PassedOver:
    """Counts of files that a search found and did not yield; they grow while it goes on."""

    counts: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)  # folder's name → how many were closed
    in_closed: int = 0  # files in them, as far as they were counted
    uncounted: bool = False  # there are more in them than MAX_COUNTED entries
    excluded_folders: int = 0  # they are not opened, so their files are not counted
    _looked_at: int = 0

    @property
    def total(self) -> int:
        """All files that were passed over, but for those in excluded folders."""
        return self.counts.total() + self.in_closed

    def add(self, name: str, kind: Kind | None = None) -> None:
        """Count a file, by `kind` if it is not what its name says."""
        self.counts[kind_of(name) if kind is None else (kind, "")] += 1

    def add_others(self, names: Sequence[str], neighbours: Iterable[str]) -> None:
        """Count files that are no pictures; those called after a neighbour are its sidecars."""
        stems = stems_of(neighbours) if names else set()
        for name in names:
            self.add(name, SIDECAR if is_sidecar(name, stems) else None)

    def exclude(self, path: str, is_folder: bool) -> None:
        """Count what the user excludes."""
        if is_folder:
            self.excluded_folders += 1
        else:
            self.add(path, EXCLUDED)

    def close(self, folder: str, name: str) -> None:
        """Count a folder that is passed over with all files below it; `name` says why."""
        self.closed[name] += 1
        pending = [folder]
        while pending and not self.uncounted:
            try:
                with os.scandir(pending.pop()) as entries:
                    for entry in entries:
                        self._looked_at += 1
                        if self._looked_at > MAX_COUNTED:
                            self.uncounted = True
                            return
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
                        else:
                            self.in_closed += 1
            except OSError:
                continue  # nothing in it would have been captioned

    def by_kind(self) -> list[tuple[Kind, int, dict[str, int]]]:
        """Return kinds with their counts and, by name or suffix, what these consist of.

        The largest come first, but hidden and other files last.
        """
        totals: Counter[Kind] = Counter()
        words: dict[Kind, Counter[str]] = {}
        for (kind, word), number in self.counts.items():
            totals[kind] += number
            if word:
                words.setdefault(kind, Counter())[word] += number
        last = (SYSTEM, HIDDEN, OTHER)
        order = sorted(totals, key=lambda kind: (kind in last, -totals[kind], kind.one))
        return [
            (kind, totals[kind], dict(words.get(kind, Counter()).most_common())) for kind in order
        ]

    def describe(self) -> str:
        """Return the counts in words: "2 RAW files, 1 video, 1 sidecar"."""
        parts = [kind.count(number) for kind, number, _ in self.by_kind()]
        if self.closed:
            more = "more than " if self.uncounted else ""
            first = [name for name, _ in self.closed.most_common(_NAMED)]
            names = ", ".join(sorted(first, key=str.casefold))
            names += ", …" if len(self.closed) > _NAMED else ""
            folders = counted(self.closed.total(), "folder")
            parts.append(
                f"{more}{counted(self.in_closed, 'file')} in {folders} not searched ({names})"
            )
        if self.excluded_folders:
            parts.append(f"{counted(self.excluded_folders, 'excluded folder')} unopened")
        return ", ".join(parts)
