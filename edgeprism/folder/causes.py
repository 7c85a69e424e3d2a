"""Failures of a run by their cause: what is wrong with many pictures is one fact."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeprism.errors import EdgePrismError
    from edgeprism.folder.run import Failure

_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")
_NAMED = 3  # pictures that a cause names


@dataclass
class Cause:
    """A reason that pictures failed for, with the first of them."""

    reason: str  # the first picture's, without its name
    count: int = 0
    first: list[Path] = field(default_factory=list)


def reason_of(path: Path, error: EdgePrismError) -> str:
    """Return an error's message without the name of the picture or sidecar that it begins with."""
    message = error.summary.rstrip()
    rest = message.removeprefix(f"{path}: ")
    if rest == message:
        name, colon, after = message.partition(": ")
        if colon and (os.sep in name or Path(name).stem == path.stem):
            rest = after
    return rest.removesuffix(".")


def cause_key(reason: str) -> str:
    """Return what two reasons have in common that differ only in numbers."""
    return _NUMBER.sub("0", reason)


def failures_by_cause(failures: Iterable[Failure]) -> list[Cause]:
    """Return the causes of failures, the most frequent first."""
    causes: dict[str, Cause] = {}
    for failure in failures:
        reason = reason_of(failure.path, failure.error)
        cause = causes.setdefault(cause_key(reason), Cause(reason))
        cause.count += 1
        if len(cause.first) < _NAMED:
            cause.first.append(failure.path)
    return sorted(causes.values(), key=lambda cause: -cause.count)
