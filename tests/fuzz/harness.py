"""Runs mutated files in a process of their own and watches what becomes of it."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.targets import Target

MOST_SECONDS = 30.0
MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class Finding:
    """A file that did what no file may do; `seed` makes it again."""

    target: str
    seed: int
    fault: str

    def __str__(self) -> str:
        return f"{self.target} {self.seed}: {self.fault}"


@dataclass
class Report:
    """What became of the files of one target."""

    target: str
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    slowest_s: float = 0.0
    most_bytes: int = 0

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(self.outcomes.items()))
        return (
            f"{self.target}: {self.outcomes.total()} files: {counts or 'none'}; slowest "
            f"{self.slowest_s:.1f} s, most memory {self.most_bytes / 2**20:.0f} MiB, "
            f"{len(self.findings)} findings"
        )


def case(target: Target, seed: int) -> bytes:
    """Return the mutated file number `seed` of `target`."""
    return target.make(random.Random(f"{target.name} {seed}"))


def fuzz(
    target: Target, first_seed: int, seconds: float, most_seconds: float = MOST_SECONDS
) -> Report:
    """Run files from `first_seed` on for about `seconds`, each for at most `most_seconds`."""
    report = Report(target.name)
    end = time.monotonic() + seconds
    worker = _Worker(target, most_seconds)
    seed = first_seed
    try:
        while time.monotonic() < end:
            start = time.monotonic()
            outcome, peak = worker.run(seed)
            report.slowest_s = max(report.slowest_s, time.monotonic() - start)
            report.most_bytes = max(report.most_bytes, peak)
            if peak > MOST_BYTES:
                outcome = f"took {peak / 2**30:.1f} GiB"
            if outcome in ("used", "refused"):
                report.outcomes[outcome] += 1
            else:
                report.outcomes["failed"] += 1
                report.findings.append(Finding(target.name, seed, outcome))
            seed += 1
    finally:
        worker.end()
    return report


class _Worker:
    """A forked process that runs one file after another; a new one replaces one that ended."""

    def __init__(self, target: Target, most_seconds: float) -> None:
        self._target, self._most_seconds = target, most_seconds
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(self, seed: int) -> tuple[str, int]:
        """Return what became of file `seed`, and the most memory that its process took."""
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._pipe is not None
        self._pipe.send(seed)
        if not self._pipe.poll(self._most_seconds):
            self.end()
            return f"ran for more than {self._most_seconds:.0f} s", 0
        try:
            result: tuple[str, int] = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            self.end()
            return f"ended its process with {code}", 0
        return result

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._target, theirs), daemon=False)
        self._process.start()
        theirs.close()

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def _serve(target: Target, pipe: Connection) -> None:
    """Run the files whose numbers come through `pipe`, each in an empty folder."""
    # beyond the limit that the harness reports, but before the machine is out of memory
    resource.setrlimit(resource.RLIMIT_AS, (4 * MOST_BYTES, 4 * MOST_BYTES))
    faulthandler.disable()  # pytest's would print the stack of an expected end
    os.environ["GGML_NO_BACKTRACE"] = "1"  # a crash would start a debugger, which prints
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    with contextlib.suppress(EOFError):
        while True:
            seed = pipe.recv()
            _forget_peak()
            pipe.send((_outcome(target, case(target, seed)), _peak_bytes()))


def _outcome(target: Target, data: bytes) -> str:
    from edgeprism.errors import EdgePrismError

    folder = Path(tempfile.mkdtemp(prefix="edgeprism-fuzz-"))
    try:
        target.use(data, folder)
    except EdgePrismError:
        return "refused"
    except Exception:
        return traceback.format_exc(limit=-4)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return "used"


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    """Return the most memory of this process since `_forget_peak`."""
    for line in _status():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status() -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from Path("/proc/self/status").read_text().splitlines()
