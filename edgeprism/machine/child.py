"""The one way to start a child process, and the program with which EdgePrism's own ones begin.

A child runs what is installed, never a file that lies in the current folder, where a stranger's
pictures may be:

- Python gets `-P`, so that neither the current folder nor a script's folder is searched for
  modules. `-I` would also hide PYTHONPATH and the user's packages, where EdgePrism itself or its
  dependencies may lie. A child gets `-E`, `-s` and `-S` where its parent has them (`-I` sets the
  first two).
- Entries of PYTHONPATH that mean the current folder ("" and ".") are left out.
- The package `edgeprism` is loaded from the folder that the parent's was loaded from: out of a
  wheel, an editable installation, a clone on PYTHONPATH or one that a program put on `sys.path`.
  So a wheel's command that is started in the root of a clone never runs the clone's files.
  The folder around the package comes last on `sys.path`, for packages installed beside it
  (`pip install --target`).

A child is in a session of its own: Ctrl-C in a terminal reaches the parent alone, which ends it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Literal, cast

_THIS_FILE = os.path.abspath(__file__)

# where what a child writes to standard error goes: where the parent's goes; into the child's
# output; into a file that the parent reads when the child has ended
Errors = Literal["inherit", "output", "keep"]


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it wrote."""

    code: int  # its exit code; −N where signal N ended it
    output: str
    errors: str

    @property
    def by_signal(self) -> bool:
        """Whether a signal ended it: a crash, or the system when memory ran out."""
        return self.code < 0

    @property
    def how(self) -> str:
        """`signal 11` or `exit code 1`."""
        return f"signal {-self.code}" if self.by_signal else f"exit code {self.code}"

    def last_line(self) -> str:
        """The last line on standard error, which is where Python names an exception; else `how`."""
        lines = self.errors.strip().splitlines()
        return lines[-1] if lines else self.how

    def last_words(self, limit: int) -> str:
        """The last `limit` characters on standard error, else of its output, in one line."""
        return " ".join((self.errors or self.output).split())[-limit:]


class Child:
    """A running process with a pipe from its standard output, and one to its standard input.

    As a context manager it ends the process, whatever it is doing, and closes the pipes.

    Parameters:
        command: `edgeprism_command(…)`, `python_command(…)` or another program's command line.
        stdin: whether there is a pipe to it; without one it reads an empty file.
        errors: where its standard error goes.
        environment: variables to set besides the parent's.

    Raises OSError where the program cannot be started.
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
            # a terminal sends Ctrl-C to the whole group; only the parent is to see it
            start_new_session=True,
        )
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
            with contextlib.suppress(OSError):  # what it did not read any more
                self._process.stdin.close()
        if self._log is not None:
            self._log.close()

    def running(self) -> bool:
        """False once it has ended."""
        return self._process.poll() is None

    def send(self, data: bytes) -> None:
        """Write to its standard input at once. Raises OSError where it has gone."""
        pipe = cast(IO[bytes], self._process.stdin)
        pipe.write(data)
        pipe.flush()

    def lines(self) -> Iterator[str]:
        """The lines of its output as they come; bytes that are not UTF-8 are replaced."""
        import io

        yield from io.TextIOWrapper(self.output, encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """Have the system end it, without waiting; nothing happens to one that has ended."""
        self._process.kill()

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> Ended:
        """Wait until it ends by itself; its output is what `lines` or `output` gave."""
        return Ended(self._process.wait(), "", self._kept_errors())

    def communicate(self, text: str, timeout_s: float | None) -> Ended:
        """Send all of its input, wait until it ends by itself; what it wrote.

        Raises TimeoutError where it has not ended after `timeout_s`; it then still runs.
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
    """Run a program to its end, with `text` as its input.

    Parameters:
        command, environment: as for `Child`.
        text: all of its standard input.
        timeout_s: how long it may take; None for as long as it takes.

    Raises TimeoutError, and OSError where the program cannot be started. The process is gone when
    this returns or raises, after Ctrl-C too.
    """
    with Child(command, errors="keep", environment=environment) as child:
        return child.communicate(text, timeout_s)


def edgeprism_command(module: str, *arguments: str) -> list[str]:
    """The command line that calls `main()` of a module of this very package.

    Parameters:
        module: its full name, such as `edgeprism.picture.workers`.
        arguments: what the module finds in `sys.argv[1:]`.
    """
    return python_command(_THIS_FILE, module, *arguments)


def python_command(*arguments: str) -> list[str]:
    """The command line of this Python with `arguments`, such as `-m`, `pip`, `--version`."""
    given = sys.flags
    flags = {"-E": given.ignore_environment, "-s": given.no_user_site, "-S": given.no_site}
    return [sys.executable, "-P", *(flag for flag, is_set in flags.items() if is_set), *arguments]


def _environment(added: Mapping[str, str]) -> dict[str, str]:
    environment = {**os.environ, **added}
    # a variable that ends in ":", or is empty, would name the current folder too
    entries = environment.pop("PYTHONPATH", "").split(os.pathsep)
    kept = [entry for entry in entries if os.path.normpath(entry) != os.curdir]
    if kept:
        environment["PYTHONPATH"] = os.pathsep.join(kept)
    return environment


def _temporary_file() -> IO[bytes]:
    import tempfile

    return tempfile.TemporaryFile()


def _to_text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# ---- inside the child


def _main() -> None:
    """Load the package that this file belongs to, then call `main()` of the module in argv[1]."""
    import importlib

    _load_package(os.path.dirname(os.path.dirname(_THIS_FILE)))
    del sys.argv[0]
    importlib.import_module(sys.argv[0]).main()


def _load_package(folder: str) -> None:
    """Make `folder` the package `edgeprism`, whatever `sys.path` leads to."""
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
