"""A conversion in a process of its own, which can be ended at any moment.

Exporting and quantizing are long calls that Python's Ctrl-C cannot reach. So the work runs in a
child; the parent shows its progress, and on Ctrl-C ends it and removes what it left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from edgeprism import errors
from edgeprism.bundle.writer import check_out, clean_up
from edgeprism.convert.options import ConvertOptions
from edgeprism.errors import EdgePrismError, Interrupted
from edgeprism.progress import Progress


def convert_in_child(
    family: str, out: Path, options: ConvertOptions, progress: Progress, **settings: Any
) -> None:
    """`family`'s convert(out, options, progress, **settings), interruptible everywhere.

    Raises what it raises; Interrupted after Ctrl-C, with nothing left behind.
    """
    out = Path(os.path.abspath(out))
    check_out(out, options.overwrite)
    job = {
        "family": family,
        "out": str(out),
        "options": {**options.__dict__, "vision_quants": list(options.vision_quants)},
        "folders": [k for k, v in settings.items() if isinstance(v, Path)],
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()},
    }
    with tempfile.TemporaryFile() as log:
        verbose = bool(os.environ.get("EDGEPRISM_NATIVE_LOG"))
        child = subprocess.Popen(
            [sys.executable, "-m", "edgeprism.convert.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if verbose else log,
            text=True,
            encoding="utf-8",
            # a terminal sends Ctrl-C to the whole group; only the parent is to see it
            start_new_session=True,
        )
        try:
            _follow(child, job, progress, log)
        except KeyboardInterrupt:
            raise Interrupted() from None
        finally:
            child.kill()
            # at once, for a large process takes its time to end and the user may not wait; then
            # again, for systems that do not remove open files
            clean_up(out, child.pid)
            child.wait()
            clean_up(out, child.pid)


def _follow(
    child: subprocess.Popen[str], job: dict[str, Any], progress: Progress, log: IO[bytes]
) -> None:
    """Hand the job over and relay what comes back until the child has done."""
    if child.stdin is None or child.stdout is None:
        raise EdgePrismError("The converting process has no pipes.")
    # stays open: its end tells the child that nobody waits for it any more
    child.stdin.write(json.dumps(job) + "\n")
    child.stdin.flush()
    for line in child.stdout:
        event = json.loads(line)
        kind = event.pop("event")
        if kind == "done":
            return
        if kind == "error":
            raise _error_of(event)
        getattr(progress, kind)(**event)
    code = child.wait()
    log.seek(0)
    said = log.read().decode("utf-8", "replace").strip().splitlines()
    if code < 0:
        raise EdgePrismError(
            f"The conversion was ended by signal {-code}.",
            "Most often memory ran out: close other programs and try again.",
        )
    raise EdgePrismError(
        f"The conversion failed: {said[-1] if said else f'exit code {code}'}",
        "Run again with `edgeprism -v convert …` to see everything it said.",
    )


def _error_of(event: dict[str, str]) -> EdgePrismError:
    kind = getattr(errors, event["kind"], EdgePrismError)
    error: EdgePrismError = kind.__new__(kind)
    # each class has its own arguments; what travels is what a person reads
    EdgePrismError.__init__(error, event["message"], event["hint"])
    return error
