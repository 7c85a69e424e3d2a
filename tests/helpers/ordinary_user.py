"""Drop root's rights for tests of permissions, because root has all of them."""

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
    """Return a folder that an ordinary user can reach; pytest's own may be private."""
    path = Path(tempfile.mkdtemp(prefix="edgeprism-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def rights() -> Iterator[None]:
    """Run the body of the `with` as an ordinary user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
