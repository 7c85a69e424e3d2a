"""Children that take turns: each measures one way in a process of its own, when it is asked.

So every way shares the machine's good and bad minutes with the others, and has its own peak of
memory. A question is a line on the child's standard input, its answer a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any


class Child:
    """A Python module that runs in a process of its own, and answers there by `answer_lines`."""

    def __init__(self, name: str, module: str, arguments: Sequence[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: str) -> dict[str, Any]:
        """Return the answer to a line; ends the program if the child has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline()
        if not said:
            raise SystemExit(f"{self.name} ended: its error stands above")
        answer: dict[str, Any] = json.loads(said)
        return answer

    def close(self) -> None:
        """End the child, which then has no more lines to read."""
        self._process.communicate()


def answer_lines(make: Callable[[], Callable[[str], dict[str, Any]]]) -> None:
    """In a child: make what measures, then answer each line of standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    answer = make()
    for line in sys.stdin:
        answers.write(json.dumps(answer(line.strip())) + "\n")
        answers.flush()
