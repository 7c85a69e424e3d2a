"""The one way to start a child process, and the program that EdgePrism's own children run first.

A child runs installed code, never a file from the current folder, which may hold a stranger's
pictures:

- Python gets `-P`, so it searches neither the current folder nor a script's folder for modules.
  `-I` would also hide PYTHONPATH and the user's packages, where EdgePrism itself or its
  dependencies may lie. A child gets `-E`, `-s` and `-S` if its parent has them (`-I` sets the
  first two).
- The child's PYTHONPATH has no entries that mean the current folder ("" and ".").
- The child loads the package `edgeprism` from the same folder as its parent: from a wheel, an
  editable installation, a clone on PYTHONPATH or one that a program put on `sys.path`. So the
  command of an installed wheel never runs a clone's files, even if a user starts it in the
  clone's root. The folder that holds the package comes last on `sys.path`, because its
  dependencies may be installed there too (`pip install --target`).

A child has a session of its own: Ctrl-C in a terminal reaches only the parent, which then ends
the child.

A child gets the parent's environment without keys, tokens and passwords. Children read strangers'
files, and none of them talks to a server that needs a key.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Literal, cast

from edgeprism.machine.cancel import before_forced_end

_THIS_FILE = os.path.abspath(__file__)
# names of variables that hold a secret: EDGEPRISM_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, …
_SECRET = re.compile(
    r"(?:^|_)(?:API_?KEY|ACCESS_KEY|PRIVATE_KEY|AUTH|TOKEN|SECRET|CREDENTIALS?)(?:_|$)|PASSW(?:OR)?D",
    re.IGNORECASE,
)
_running: weakref.WeakSet[Child] = weakref.WeakSet()

# Where a child's standard error goes. "inherit": where the parent's goes. "output": into the
# child's standard output. "keep": into a file that the parent reads when the child has ended.
Errors = Literal["inherit", "output", "keep"]


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it wrote."""

    code: int  # its exit code; −N if signal N ended it
    output: str
    errors: str

    @property
    def by_signal(self) -> bool:
        """Whether a signal ended the process: after a crash, or because memory ran out."""
        return self.code < 0

    @property
    def how(self) -> str:
        """How it ended, as in `signal 11` or `exit code 1`."""
        return f"signal {-self.code}" if self.by_signal else f"exit code {self.code}"

    def last_line(self) -> str:
        """Return the last line on standard error, where Python names an exception; else `how`."""
        lines = self.errors.strip().splitlines()
        return lines[-1] if lines else self.how

    def last_words(self, limit: int) -> str:
        """Return the last `limit` characters of standard error, else of the output, as one line."""
        return " ".join((self.errors or self.output).split())[-limit:]


class Child:
    """A running process with pipes from its standard output and to its standard input.

    As a context manager it kills the process and closes the pipes.

    Parameters:
        command: `edgeprism_command(…)`, `python_command(…)` or another program's command line.
        stdin: whether to open a pipe to its standard input; without one it reads an empty file.
        errors: where its standard error goes.
        environment: variables to set in addition to the parent's, which come without secrets.

    Raises OSError if the program cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: bool = True,
        errors: Errors = "inherit",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log = _temporary_file() if errors == "keep" else None
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if errors == "output" else self._log,
            env=_environment(environment or {}),
            # a terminal sends Ctrl-C to the whole process group; only the parent should get it
            start_new_session=True,
        )
        _running.add(self)
        self.pid = self._process.pid
        self.output = cast(IO[bytes], self._process.stdout)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
        self.output.close()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # data is left that the process did not read
                self._process.stdin.close()
        if self._log is not None:
            self._log.close()

    def running(self) -> bool:
        """Return whether the process still runs."""
        return self._process.poll() is None

    def send(self, data: bytes) -> None:
        """Write to its standard input and flush. Raises OSError if the process has ended."""
        pipe = cast(IO[bytes], self._process.stdin)
        pipe.write(data)
        pipe.flush()

    def lines(self) -> Iterator[str]:
        """Yield the lines of its output as they come; U+FFFD replaces bytes that are not UTF-8."""
        import io

        yield from io.TextIOWrapper(self.output, encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """Kill the process without waiting; does nothing if it has ended."""
        self._process.kill()

    def end(self) -> None:
        """Kill the process and wait until it has ended."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> Ended:
        """Wait until the process ends by itself; read its output from `lines` or `output`."""
        return Ended(self._process.wait(), "", self._kept_errors())

    def communicate(self, text: str, timeout_s: float | None) -> Ended:
        """Send `text` as its whole input, wait until it ends, and return what it wrote.

        Raises TimeoutError if it has not ended after `timeout_s`; it then still runs.
        """
        try:
            output, _ = self._process.communicate(text.encode(), timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"not done within {timeout_s} s") from None
        return Ended(self._process.returncode, _to_text(output), self._kept_errors())

    def _kept_errors(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return _to_text(self._log.read())


def run(
    command: Sequence[str],
    text: str = "",
    *,
    timeout_s: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a program to its end and return what it wrote.

    Parameters:
        command, environment: as for `Child`.
        text: its whole standard input.
        timeout_s: seconds that it may take; None: no limit.

    Raises TimeoutError, and OSError if the program cannot be started. When this returns or raises,
    the process has ended, even after Ctrl-C.
    """
    with Child(command, errors="keep", environment=environment) as child:
        return child.communicate(text, timeout_s)


def kill_all() -> None:
    """Kill every child that still runs, without waiting; for a process that ends at once."""
    for child in list(_running):
        child.kill()


before_forced_end(kill_all)


def edgeprism_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that calls `main()` of a module of this package.

    Parameters:
        module: its full name, such as `edgeprism.picture.workers`.
        arguments: the module's `sys.argv[1:]`.
    """
    return python_command(_THIS_FILE, module, *arguments)


def python_command(*arguments: str) -> list[str]:
    """Return this Python's command line with `arguments`, such as `-m`, `pip`, `--version`."""
    own = sys.flags
    flags = {"-E": own.ignore_environment, "-s": own.no_user_site, "-S": own.no_site}
    return [sys.executable, "-P", *(flag for flag, is_set in flags.items() if is_set), *arguments]


def _environment(added: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    environment = {**inherited, **added}
    # an empty entry means the current folder: before or after a ":", or in an empty variable
    entries = environment.pop("PYTHONPATH", "").split(os.pathsep)
    other_folders = [entry for entry in entries if os.path.normpath(entry) != os.curdir]
    if other_folders:
        environment["PYTHONPATH"] = os.pathsep.join(other_folders)
    return environment


def _temporary_file() -> IO[bytes]:
    import tempfile

    return tempfile.TemporaryFile()


def _to_text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# ---- inside the child


def end_with_parent() -> None:
    """Let the system kill this process when the thread that started it ends: on Linux only.

    A child that reads its standard input notices its parent's end by itself, unless a library
    keeps Python from running for long.
    """
    if sys.platform != "linux":
        return
    import ctypes
    import signal

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _main() -> None:
    """Load the package that this file belongs to, then call `main()` of the module in argv[1]."""
    import importlib

    _load_package(os.path.dirname(os.path.dirname(_THIS_FILE)))
    del sys.argv[0]
    importlib.import_module(sys.argv[0]).main()


def _load_package(folder: str) -> None:
    """Import `folder` as the package `edgeprism`, whatever else `sys.path` would find."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(
        "edgeprism", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} holds no package.")
    package = module_from_spec(spec)
    sys.modules["edgeprism"] = package
    spec.loader.exec_module(package)
    sys.path.append(os.path.dirname(folder))


if __name__ == "__main__":
    _main()
