"""Prompts that begin alike: the state of the KV cache after that beginning, kept for later.

Worked examples stand before every question in the same words. Their keys and values are computed
once and copied out of llama.cpp, to be copied in again for the next question: from memory in this
process, from a file of the data folder in others.

A state goes with everything that decides its numbers: the model's digest, the engine's build, the
settings of the context (`Context.form`), and the tokens. A file that is missing, damaged, cut off
or another key's is no error, because the state can be computed again: nothing reaches llama.cpp
whose digest does not agree.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from edgeprism.errors import OutputError
from edgeprism.files.atomic import AtomicFile, clear_leftovers
from edgeprism.files.home import find_data_dir
from edgeprism.files.regular import open_regular

FOLDER = "prefixes"
LARGEST = 256 << 20  # bytes of one state: 310 tokens of a 7B model without shared heads take 162 MB
MOST = 512 << 20  # bytes of all files together; those unused for longest are removed
_SUFFIX = ".kv"
_MAGIC = b"edgeprism kv 1\n\0"  # another number for another form of file or key


class PrefixStates:
    """States of one model's KV cache after fixed beginnings of prompts."""

    def __init__(self, model_digest: str) -> None:
        self._digest = model_digest
        self._states: dict[str, bytes] = {}
        self._new: set[str] = set()  # keys of states that no file holds yet

    def find(self, form: str, tokens: Sequence[int]) -> bytes | None:
        """Return the state after `tokens` in a context of this form, or None."""
        key = self._key(form, tokens)
        if key not in self._states:
            state = _read(key)
            if state is None:
                return None
            self._states[key] = state
        return self._states[key]

    def keep(self, form: str, tokens: Sequence[int], state: bytes) -> None:
        """Keep a state that was computed in this process."""
        key = self._key(form, tokens)
        self._states[key] = state
        self._new.add(key)

    def forget(self) -> None:
        """Forget every state that no file holds, and what was read of files."""
        self._states, self._new = {}, set()

    def save(self) -> None:
        """Write what was computed to the data folder, if that is possible.

        Only call this once it is certain that the model's files have not changed meanwhile.
        """
        folder = find_data_dir()
        while self._new and folder is not None:
            key = self._new.pop()
            with contextlib.suppress(OSError, OutputError):  # a full disk, a read-only folder
                _write(folder / FOLDER / f"{key}{_SUFFIX}", self._states[key])

    def _key(self, form: str, tokens: Sequence[int]) -> str:
        what = repr((self._digest, form, list(tokens)))
        return hashlib.sha256(_MAGIC + what.encode()).hexdigest()


def _read(key: str) -> bytes | None:
    folder = find_data_dir()
    if folder is None:
        return None
    path = folder / FOLDER / f"{key}{_SUFFIX}"
    try:
        with open_regular(path) as file:
            head = file.read(len(_MAGIC) + hashlib.sha256().digest_size)
            state = file.read(LARGEST + 1)
    except (OSError, ValueError):
        return None
    if len(state) > LARGEST or head != _MAGIC + _checksum(key, state):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # it was used
    return state


def _write(path: Path, state: bytes) -> None:
    """Write a state's file whole, after making room. Raises OSError or OutputError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _make_room(path.parent, len(state))
    with AtomicFile(path, durable=False) as file:
        file.write(_MAGIC + _checksum(path.stem, state))
        file.write(state)


def _checksum(key: str, state: bytes) -> bytes:
    """Return a digest that tells a damaged file, and one that bears another key's name."""
    digest = hashlib.sha256(key.encode())
    digest.update(state)
    return digest.digest()


def _make_room(folder: Path, size: int) -> None:
    """Remove what was not used for longest until `size` more bytes fit into `MOST`."""
    clear_leftovers(folder, os.listdir(folder), suffix=_SUFFIX)
    files = []
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process may remove it now
            status = path.stat()
            files.append((status.st_mtime_ns, status.st_size, path))
    total = size + sum(n_bytes for _, n_bytes, _ in files)
    for _, n_bytes, path in sorted(files):
        if total <= MOST:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= n_bytes
