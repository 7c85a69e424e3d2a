"""Run a function in a forked child, so that a native abort ends only the child."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from edgeprism.errors import EdgePrismError


@dataclass(frozen=True)
class Outcome:
    """How the child ended; `error` is the class name of an EdgePrismError, or ""."""

    error: str
    text: str
    returncode: int  # negative: a signal killed the child after a native abort or a hang

    @property
    def orderly(self) -> bool:
        """Return whether the child finished or raised an EdgePrismError."""
        return self.returncode in (0, 1, 2, 4, 5)


def in_child(work: Callable[[], object], seconds: int = 20) -> Outcome:
    """Run `work` in a child; an exception other than EdgePrismError gives return code 70."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _be_child(work, writing, seconds)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        error, _, text = pipe.read().decode(errors="replace").partition("\n")
    _, status = os.waitpid(child, 0)
    return Outcome(error, text, os.waitstatus_to_exitcode(status))


def _be_child(work: Callable[[], object], writing: int, seconds: int) -> None:
    code = 70
    try:
        # hide the long output of aborting libraries from the test report
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.environ["GGML_NO_BACKTRACE"] = "1"
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        try:
            text, code = f"\n{work()}", 0
        except EdgePrismError as error:
            text, code = f"{type(error).__name__}\n{error}", error.exit_code
        except BaseException as error:
            text = f"{type(error).__name__}\n{error!r}"
        os.write(writing, text.encode(errors="replace")[:60000])
    finally:
        os._exit(code)
