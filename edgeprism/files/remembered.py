"""A small JSON file of facts that may be lost, because they can be computed again."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from edgeprism.errors import OutputError
from edgeprism.files.atomic import write_atomically
from edgeprism.files.home import find_data_dir
from edgeprism.files.locks import locked
from edgeprism.files.regular import read_limited

_MAX_BYTES = 64 << 20


class Remembered:
    """Facts by key, in the file `name` of the data folder; with `limit`, only the latest of them.

    It is no error if the file is missing, damaged or cannot be written: the caller then computes
    the facts again.
    """

    def __init__(self, name: str, *, limit: int | None = None) -> None:
        self._name, self._limit = name, limit

    def read(self) -> dict[str, Any]:
        """Return every remembered fact as {key: JSON value}."""
        folder = find_data_dir()
        if folder is None:
            return {}
        try:
            facts = json.loads(read_limited(folder / self._name, _MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def remember(self, key: str, fact: object) -> None:
        """Store `fact`, a JSON value, for later processes."""
        folder = find_data_dir()
        if folder is None:
            return
        path = folder / self._name
        with contextlib.suppress(OSError, OutputError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path):  # else of two processes one would write over the other's fact
                write_atomically(path, self._with(key, fact), durable=False)

    def _with(self, key: str, fact: object) -> bytes:
        """Return the file's content with one more fact."""
        facts = self.read()
        facts.pop(key, None)  # the latest fact comes last
        facts[key] = fact
        if self._limit is not None:
            facts = dict(list(facts.items())[-self._limit :])
        return json.dumps(facts, indent=1).encode()
