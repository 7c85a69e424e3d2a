"""The child process that converts; `supervise` starts it.

It reads one job (a line of JSON) from stdin and sends events to stdout. When stdin closes, its
parent is gone: it removes its unfinished files and ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from edgeprism.bundle.writer import clean_up
from edgeprism.convert.options import ConvertOptions, PairOptions
from edgeprism.errors import EdgePrismError, OutputError
from edgeprism.files.atomic import is_disk_full
from edgeprism.progress import EventProgress


def main() -> None:
    """Run the job in stdin's first line."""
    # Libraries may print to stdout, so events get a copy of it and stdout becomes stderr.
    events = EventProgress(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    out = Path(job["out"])
    threading.Thread(target=_leave_with_parent, args=(out,), daemon=True).start()
    try:
        result = (_build if "pair" in job else _convert)(job, out, events)
    except EdgePrismError as error:
        _send_error(events, error)
    except OSError as error:
        if not is_disk_full(error):
            raise
        reason = (error.strerror or str(error)).rstrip(".")
        _send_error(events, OutputError(f"{out} cannot be written: {reason}.", "Free some space."))
    else:
        events.send(event="done", result=result)


def _send_error(events: EventProgress, error: EdgePrismError) -> None:
    events.send(
        event="error",
        kind=type(error).__name__,
        summary=error.summary,
        details=error.details,
        hint=error.hint,
    )


def _convert(job: dict[str, Any], out: Path, events: EventProgress) -> None:
    from edgeprism.convert.discover import family_named
    from edgeprism.convert.pipeline import convert

    options = ConvertOptions(
        **{**job["options"], "vision_quants": tuple(job["options"]["vision_quants"])}
    )
    settings = {k: Path(v) if k in job["folders"] else v for k, v in job["settings"].items()}
    convert(family_named(job["family"]), out, options, settings, events)


def _build(job: dict[str, Any], out: Path, events: EventProgress) -> float:
    # without torch: a pair's conversion needs the extra `pairs` alone
    from edgeprism.convert.mmproj.build import build_bundle

    options = PairOptions(
        **{**job["options"], "vision_quants": tuple(job["options"]["vision_quants"])}
    )
    return build_bundle(Path(job["pair"]), out, options, events, job.get("digest"))


def _leave_with_parent(out: Path) -> None:
    while os.read(0, 1):
        pass
    clean_up(out, os.getpid())
    os._exit(1)
