"""Tests of permissions: the superuser has all of them, so these drop to an ordinary user."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

NOBODY = 65534


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder that an ordinary user can reach, as the tests' own folders need not be."""
    made = Path(tempfile.mkdtemp(prefix="edgeprism-test-"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made)


@contextlib.contextmanager
def rights() -> Iterator[None]:
    """Inside, this process has no more rights than anyone."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
