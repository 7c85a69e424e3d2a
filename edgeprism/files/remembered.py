"""A small JSON file of facts that may be lost: whoever misses one finds it out again."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from edgeprism.errors import OutputError
from edgeprism.files.atomic import write_atomically
from edgeprism.files.home import data_dir


class Remembered:
    """Facts by key, in the file `name` of the data folder.

    A file that is missing, damaged or cannot be written is no error: it costs the work of finding
    its facts out again, nothing else.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self) -> dict[str, Any]:
        """Every remembered fact, as JSON holds it."""
        try:
            facts = json.loads((data_dir() / self._name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def remember(self, key: str, fact: object) -> None:
        """Keep `fact`, a JSON value, for the next process."""
        path = data_dir() / self._name
        data = json.dumps({**self.read(), key: fact}, indent=1).encode()
        with contextlib.suppress(OSError, OutputError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data, durable=False)
