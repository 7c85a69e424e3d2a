"""Files that an engine has mapped into memory: what another program writes into them takes effect.

A mapped file is no copy. A model that is written over in place goes on running, with other weights.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from pathlib import Path

from edgeprism.errors import ModelError
from edgeprism.files.digests import sha256_of_open_file
from edgeprism.files.regular import open_regular, reading_hint
from edgeprism.files.stamps import status_to_stamp


class FilesInUse:
    """Files whose content must stay as it was: they are opened, and looked at now and then.

    They are held open because only that tells a file that was written over from one that another
    was renamed over: the engine keeps the old file's bytes in the second case.
    """

    def __init__(self, digests: Mapping[Path, str]) -> None:
        """`digests` maps each file to its sha256. Raises ModelError if one cannot be opened.

        Open the files before their digests are checked: then no change can fall in between.
        """
        self._files: dict[Path, tuple[int, str]] = {}  # path → descriptor, sha256
        self._stamps: dict[Path, str] = {}
        self.close = weakref.finalize(self, _close, self._files)
        for path, sha256 in digests.items():
            try:
                with open_regular(path) as file:
                    self._files[path] = os.dup(file.fileno()), sha256
            except OSError as error:
                raise ModelError(
                    f"{path}: cannot be read: {error.strerror}.",
                    reading_hint(error),
                ) from error
            self._stamps[path] = self._stamp(path)

    def check(self) -> None:
        """Raise ModelError if the content of a file has changed; it costs a system call a file.

        A new date, other permissions or a new link change the stamp alone, so the content decides.
        """
        for path, (descriptor, sha256) in self._files.items():
            stamp = self._stamp(path)
            if stamp == self._stamps[path]:
                continue
            with open(descriptor, "rb", closefd=False) as file:
                file.seek(0)
                same = sha256_of_open_file(file) == sha256
            if not same:
                raise ModelError(
                    f"{path}: was changed while it was in use, so what the model says now means "
                    "nothing.",
                    "Put the right file there and start again. To replace a model that may be in "
                    "use, write the new file under another name and rename it.",
                )
            self._stamps[path] = stamp

    def _stamp(self, path: Path) -> str:
        return status_to_stamp(os.fstat(self._files[path][0])).text()


def _close(files: dict[Path, tuple[int, str]]) -> None:
    while files:
        os.close(files.popitem()[1][0])
