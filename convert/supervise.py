"""Run a conversion in a child process, which Ctrl-C can end at any moment.

Exporting and quantizing are long native calls that Python's Ctrl-C cannot interrupt. So a child
converts; the parent shows its progress, and on Ctrl-C ends it and removes its unfinished files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprism import errors
from edgeprism.bundle.writer import check_out, clean_up
from edgeprism.convert.family import Value
from edgeprism.convert.options import ConvertOptions, PairOptions
from edgeprism.errors import EdgePrismError, Interrupted
from edgeprism.machine.child import Child, edgeprism_command
from edgeprism.progress import Progress


def convert_in_child(
    family: str,
    out: Path,
    options: ConvertOptions,
    settings: Mapping[str, Value],
    progress: Progress,
) -> None:
    """Run `pipeline.convert` for the family `family` in a child process.

    Raises the errors of `pipeline.convert`, or Interrupted after Ctrl-C; both leave no files.
    """
    out = Path(os.path.abspath(out))
    check_out(out, options.overwrite, [v for v in settings.values() if isinstance(v, Path)])
    job = {
        "family": family,
        "out": str(out),
        "options": {**options.__dict__, "vision_quants": list(options.vision_quants)},
        "folders": [k for k, v in settings.items() if isinstance(v, Path)],
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()},
    }
    _run(job, out, progress)


def build_in_child(
    pair: Path, out: Path, options: PairOptions, progress: Progress, digest: str | None = None
) -> float:
    """Run `mmproj.build.build_bundle` in a child process; return what it returns.

    Raises the errors of `build_bundle`, or Interrupted after Ctrl-C; both leave no files.
    """
    out = Path(os.path.abspath(out))
    job = {
        "pair": os.path.abspath(pair),
        "digest": digest,
        "out": str(out),
        "options": {**options.__dict__, "vision_quants": list(options.vision_quants)},
    }
    return float(_run(job, out, progress)["result"])


def _run(job: dict[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    """Run a job of `worker.py` and return its last event; afterwards nothing unfinished is left."""
    verbose = bool(os.environ.get("EDGEPRISM_NATIVE_LOG"))
    command = edgeprism_command("edgeprism.convert.worker")
    with Child(command, errors="inherit" if verbose else "keep") as child:
        try:
            return _follow(child, job, progress)
        except KeyboardInterrupt:
            raise Interrupted() from None
        finally:
            child.kill()
            # Clean up at once, because a large process ends slowly and the user may not wait. Clean
            # up again after its end, because some systems cannot remove open files.
            clean_up(out, child.pid)
            child.end()
            clean_up(out, child.pid)


def _follow(child: Child, job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Send the job to the child and relay its events until it is done; return the last one."""
    # Leave the pipe open: the child ends itself when its stdin closes.
    child.send(json.dumps(job).encode() + b"\n")
    for line in child.lines():
        event: dict[str, Any] = json.loads(line)
        kind = event.pop("event")
        if kind == "done":
            return event
        if kind == "error":
            raise _error_of(event)
        getattr(progress, kind)(**event)
    ended = child.wait()
    if ended.by_signal:
        raise EdgePrismError(
            f"The conversion was ended by {ended.how}.",
            "Most often memory ran out: close other programs and try again.",
        )
    raise EdgePrismError(
        f"The conversion failed: {ended.last_line()}",
        "Run again with `edgeprism -v convert …` to see its whole output.",
    )


def _error_of(event: dict[str, str]) -> EdgePrismError:
    kind = getattr(errors, event["kind"], EdgePrismError)
    error: EdgePrismError = kind.__new__(kind)
    # Error classes take different arguments, but the child sends only what all of them hold.
    EdgePrismError.__init__(error, event["summary"], event["hint"], event["details"])
    return error
