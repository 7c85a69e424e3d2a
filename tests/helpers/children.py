"""Run a function in a forked child: a native abort there ends the child, not the test run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from edgeprism.errors import EdgePrismError


@dataclass(frozen=True)
class Outcome:
    """How the child ended: `error` is an EdgePrismError's class name, "" for none."""

    error: str
    text: str
    returncode: int  # negative: killed by a signal, i.e. a native abort or a hang

    @property
    def orderly(self) -> bool:
        """Done, or refused with an error of ours; neither killed nor an unforeseen exception."""
        return self.returncode in (0, 1, 2, 4, 5)


def in_child(work: Callable[[], object], seconds: int = 20) -> Outcome:
    """`work`'s result or EdgePrismError; any other exception gives return code 70."""
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
        # what an aborting library prints would drown the test report
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
