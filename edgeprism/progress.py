"""Progress of long work: shown by the command line, or sent to the parent process."""

from __future__ import annotations

from typing import Any, TextIO


class Progress:
    """The interface of a progress display; this base class shows nothing."""

    def stage(self, text: str, total: int = 0) -> None:
        """Begin a new stage; `total` is its size in any unit, 0 if unknown."""

    def advance(self, amount: int = 1) -> None:
        """Report that the stage has progressed by `amount`."""

    def say(self, text: str) -> None:
        """Show a line that the user should read even where no progress bar is shown."""


class EventProgress(Progress):
    """Writes each event as one line of JSON, for the parent process."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def send(self, **event: Any) -> None:
        """Write one event."""
        import json  # not at the top: help writes none

        self._out.write(json.dumps(event) + "\n")
        self._out.flush()

    def stage(self, text: str, total: int = 0) -> None:
        """Write the event "stage"."""
        self.send(event="stage", text=text, total=total)

    def advance(self, amount: int = 1) -> None:
        """Write the event "advance"."""
        self.send(event="advance", amount=amount)

    def say(self, text: str) -> None:
        """Write the event "say"."""
        self.send(event="say", text=text)
