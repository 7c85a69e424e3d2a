"""Every error that EdgePrism raises on purpose, with its message, its hint and its exit code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Exit codes of the commands. Commands return these numbers, errors carry theirs as `exit_code`.
EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3  # some inputs failed, the others are done
EXIT_MODEL = 4  # missing, damaged, or not what was recorded
EXIT_UNAVAILABLE = 5  # a device, backend or server is not available
EXIT_NOTHING = 6  # there was nothing to work on: no picture was found
EXIT_INTERRUPTED = 130


class EdgePrismError(Exception):
    """The base class of every error that EdgePrism raises on purpose.

    `message` says what happened to what, `hint` what to do; the command line prints both and
    ends with `exit_code`. The library itself never prints and never exits.

    `summary` is one line, and each of `details` is another; `message` holds them all. A line break
    inside one of them came with a name, so the command line shows it escaped.
    """

    exit_code = EXIT_FAILED

    def __init__(self, summary: str, hint: str = "", details: Iterable[str] = ()) -> None:
        super().__init__(summary)
        self.summary = summary
        self.details = tuple(details)
        self.hint = hint

    @property
    def message(self) -> str:
        """The summary, and the details below it."""
        lines = "".join(f"\n  {line}" for line in self.details)
        return self.summary + lines + ("\n" if lines else "")

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses take other arguments, so pickle must not call them with these.
        return _make_again, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


def _make_again(
    kind: type[EdgePrismError], args: tuple[Any, ...], state: dict[str, Any]
) -> EdgePrismError:
    """Return an error that was pickled."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


# the hint about a damaged model; one that another program keeps is got again with that program
TOO_MANY_FILES = "This process may not open more files at once: raise `ulimit -n`."
COPY_AGAIN = "Copy or convert the model again."


class UsageError(EdgePrismError):
    """An argument or option has a value that makes no sense."""

    exit_code = EXIT_USAGE


class ImageError(EdgePrismError):
    """A picture cannot be read, or is refused; the message names it."""


class OutputError(EdgePrismError):
    """A result cannot be written to its place; an older file there is untouched."""


class DataFolderError(EdgePrismError):
    """There is no place for the data folder: this user has no home folder."""


class ModelError(EdgePrismError):
    """A model is missing, damaged, or not what its manifest says."""

    exit_code = EXIT_MODEL


class NoGraphError(ModelError):
    """No ONNX graph stands for a pair's encoder: llama.cpp's libmtmd runs it as it is."""


class ManifestError(ModelError):
    """A manifest has faults; `faults` lists all of them, each begins with the field's path."""

    def __init__(self, where: str, faults: list[str]) -> None:
        super().__init__(
            f"{where} is refused:",
            "Convert the model again, or install an EdgePrism that knows these fields.",
            faults,
        )
        self.faults = faults


class DeviceError(EdgePrismError):
    """The requested device or backend is not available."""

    exit_code = EXIT_UNAVAILABLE


class ServerError(EdgePrismError):
    """A reasoner's server cannot be reached or refuses to work, so every question would fail."""

    exit_code = EXIT_UNAVAILABLE


class ReplyError(EdgePrismError):
    """A server failed on one question, or its reply cannot be used."""


class NoAnswerError(EdgePrismError):
    """A reasoner ended without an answer: it only thought, declined, or wrote nothing."""


class RepetitionError(EdgePrismError):
    """A captioner wrote the same words over and over, which is no caption."""


class CheckpointError(EdgePrismError):
    """`convert` cannot read a published checkpoint in its family's layout."""


class ParityError(EdgePrismError):
    """A converted bundle does not compute what its checkpoint does."""


class PullError(EdgePrismError):
    """A download failed; the next try continues with the part that arrived."""


class HubUnreachableError(PullError):
    """Nobody answers where the model hub should be, so every other download would fail as well."""


class PromptTooLongError(EdgePrismError):
    """A prompt does not fit the language model's context."""


class TemplateError(EdgePrismError):
    """llama.cpp does not recognise a chat template."""

    exit_code = EXIT_USAGE


class Interrupted(EdgePrismError):
    """The user (Ctrl-C) or a caller's `cancel()` stopped the work."""

    exit_code = EXIT_INTERRUPTED

    def __init__(self, summary: str = "Interrupted.", hint: str = "") -> None:
        super().__init__(summary, hint)
