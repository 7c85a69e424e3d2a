"""A terminal for tests: runs a command in it and shows what a person would see at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SEQUENCE = re.compile(r"\x1b\[(?P<values>[?\d;]*)(?P<command>[A-Za-z])|\x1b\][^\x07]*\x07")


class Screen:
    """The lines of a terminal, those that have scrolled out at the top included.

    It knows what progress bars use: carriage return, cursor up and down, erasing a line or all
    below it, and the wrapping of long lines. Colours and the cursor's visibility are passed over.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._lines: list[list[str]] = [[]]
        self._row = self._column = 0

    @property
    def lines(self) -> list[str]:
        """Every line, without blanks at its end and without empty lines at the end."""
        return "\n".join("".join(line).rstrip() for line in self._lines).rstrip("\n").split("\n")

    def feed(self, text: str) -> None:
        """Show text with control sequences."""
        at = 0
        while at < len(text):
            sequence = _SEQUENCE.match(text, at)
            if sequence is None:
                self._put(text[at])
                at += 1
                continue
            at = sequence.end()
            if sequence["command"]:
                self._obey(sequence["command"], sequence["values"])

    def _put(self, letter: str) -> None:
        if letter == "\r":
            self._column = 0
        elif letter == "\n":
            self._down(1)
        elif letter == "\b":
            self._column = max(0, self._column - 1)
        elif letter >= " ":
            if self._column == self.width:
                self._column = 0
                self._down(1)
            line = self._lines[self._row]
            line.extend(" " * (self._column + 1 - len(line)))
            line[self._column] = letter
            self._column += 1

    def _down(self, number: int) -> None:
        self._row += number
        while self._row >= len(self._lines):
            self._lines.append([])

    def _obey(self, command: str, values: str) -> None:
        number = int(values) if values.isdigit() else None
        top = max(0, len(self._lines) - self.height)
        if command == "A":
            self._row = max(top, self._row - (number or 1))
        elif command == "B":
            self._row = min(len(self._lines) - 1, self._row + (number or 1))
        elif command == "G":
            self._column = (number or 1) - 1
        elif command == "K":
            line = self._lines[self._row]
            if number == 2:
                line.clear()
            elif number == 1:
                line[: self._column] = " " * min(self._column, len(line))
            else:
                del line[self._column :]
        elif command == "J":
            del self._lines[self._row + 1 :]
            del self._lines[self._row][self._column :]
        elif command not in "hlm":
            raise ValueError(f"the screen does not know ESC [ {values} {command}")


@dataclass(frozen=True)
class Shown:
    """What a command left on its terminal."""

    code: int
    raw: str
    lines: list[str]


def run_in_terminal(
    command: Sequence[str | os.PathLike[str]], *, cwd: Path, width: int = 120, height: int = 24
) -> Shown:
    """Run a command with a terminal as its input, output and error stream."""
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES"):
        environment.pop(name, None)
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, cwd=cwd, env=environment
    )
    os.close(follower)
    data = b""
    with contextlib.suppress(OSError):  # raised at the end, when nobody holds the other side
        while chunk := os.read(leader, 65536):
            data += chunk
    os.close(leader)
    raw = data.decode()
    screen = Screen(width, height)
    screen.feed(raw)
    return Shown(process.wait(timeout=60), raw, screen.lines)
