"""Every error that EdgePrism raises on purpose: what happened to what, and what to do about it."""

from __future__ import annotations

# How a command ends. Commands return these numbers, errors carry theirs as `exit_code`.
EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3  # some inputs failed, the others are done
EXIT_MODEL = 4  # missing, damaged, or not what was recorded
EXIT_UNAVAILABLE = 5  # a device, backend or server that is not there
EXIT_INTERRUPTED = 130


class EdgePrismError(Exception):
    """Root of the tree.

    `message` says what happened to what, `hint` what to do; the command line prints both and
    ends with `exit_code`. The library itself never prints and never exits.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class UsageError(EdgePrismError):
    """An argument or option that cannot be meant as given."""

    exit_code = EXIT_USAGE


class ImageError(EdgePrismError):
    """A picture that cannot be read, or is refused; the message names it."""


class OutputError(EdgePrismError):
    """A result that cannot be written where it was asked for; what was there is untouched."""


class ModelError(EdgePrismError):
    """A model that is missing, damaged, or not what its manifest says."""

    exit_code = EXIT_MODEL


class ManifestError(ModelError):
    """A manifest with faults; `faults` lists all of them, each led by the field's path."""

    def __init__(self, where: str, faults: list[str]) -> None:
        lines = "".join(f"\n  {fault}" for fault in faults)
        super().__init__(
            f"{where} is refused:{lines}\n",
            "Convert the model again, or install an EdgePrism that knows these fields.",
        )
        self.faults = faults


class DeviceError(EdgePrismError):
    """A device or backend that was asked for and is not there."""

    exit_code = EXIT_UNAVAILABLE


class ServerError(EdgePrismError):
    """A reasoner's server that is not there, or refuses to work: each question would fail alike."""

    exit_code = EXIT_UNAVAILABLE


class ReplyError(EdgePrismError):
    """A server's reply to one question that failed or cannot be used."""


class CheckpointError(EdgePrismError):
    """A published checkpoint that `convert` cannot read as its family's layout."""


class ParityError(EdgePrismError):
    """A converted bundle that does not compute what its checkpoint does."""


class PullError(EdgePrismError):
    """A download that failed; what arrived before is kept and used by the next try."""


class PromptTooLongError(EdgePrismError):
    """A prompt that does not fit the language model's context."""


class TemplateError(EdgePrismError):
    """A chat template that llama.cpp does not recognise."""

    exit_code = EXIT_USAGE


class Interrupted(EdgePrismError):
    """Work that was stopped by the user (Ctrl-C) or a caller's `cancel()`."""

    exit_code = EXIT_INTERRUPTED

    def __init__(self, message: str = "Interrupted.", hint: str = "") -> None:
        super().__init__(message, hint)
