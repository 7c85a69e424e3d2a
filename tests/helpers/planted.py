"""Plant Python files with names of common modules in a folder of pictures.

When Python executes one, it writes a mark and then raises an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

NAMES = ("json", "PIL", "numpy", "edgeprism", "click", "pip")
SCRIPT = Path(sys.executable).parent / f"edgeprism{'.exe' if os.name == 'nt' else ''}"
_CODE = """
open({mark!r}, "a").close()
raise RuntimeError("a planted file was executed: " + __file__)
"""


def plant(folder: Path, marks: Path, names: Iterable[str] = NAMES) -> Path:
    """Write the planted files into `folder` and return it.

    A planted file that is executed writes a file `FOLDER.NAME` to `marks`.
    """
    marks.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    for name in names:
        code = _CODE.format(mark=str(marks / f"{folder.name}.{name}"))
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return folder


def executed(marks: Path) -> list[str]:
    """Return the planted files that Python executed."""
    return sorted(path.name for path in marks.iterdir())


def run_in(
    folder: Path, command: list[str], *arguments: object, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command line of EdgePrism with `folder` as its working directory."""
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
