"""Measure `edgeprism ask` from the shell to the first words, with its prompts' states kept or not.

    python -m benchmarks.speed.ask_first_words [--reasoner smollm2-135m] [--runs 9] [IMAGE]
    python -m benchmarks.speed.ask_first_words --against OTHER/bin/edgeprism

The picture's caption is known: a first question, which is not counted, puts it into the store of a
data folder made for this. Then each round asks with no state of a prompt in that folder (cold), and
again (warm). With --against, another installation asks, too, and the ratio of each round is
printed. Prints minimum / median / maximum of the seconds to the first byte on standard output, and
of the processor's seconds, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import spread
from edgeprism.bundle.adapters import MARK
from edgeprism.language.prefix_states import FOLDER
from edgeprism.models import nano
from edgeprism.reason.find import find_reasoner

EXAMPLES = Path(nano.__file__).parent / "examples"
QUESTION = "What colour is the largest object?"


@dataclass(frozen=True)
class Run:
    """One call of a program."""

    first_byte: float  # seconds until standard output began
    whole: float  # seconds until it ended
    processor: float  # seconds of all cores, of the process and its children
    output: bytes


def reasoner_path(name: str) -> str:
    """Return a reasoner's name as paths, which mean the same with another data folder."""
    found = find_reasoner(name)
    adapter = f"{MARK}{found.adapter.path.resolve()}" if found.adapter else ""
    return f"{found.path.resolve()}{adapter}"


def run(command: list[str], home: Path) -> Run:
    environment = {
        **os.environ,
        "EDGEPRISM_HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "",  # as where it is installed, modules are compiled once
        "PYTHONPYCACHEPREFIX": str(home / "bytecode"),
    }
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert process.stdout is not None
    output = process.stdout.read(1)
    first_byte = time.perf_counter() - start
    output += process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    whole = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with exit code {process.returncode}.")
    return Run(first_byte, whole, usage.ru_utime + usage.ru_stime, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", nargs="?", default=str(sorted(EXAMPLES.glob("*.png"))[0]))
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--reasoner", default="smollm2-135m")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--against", metavar="EDGEPRISM", help="Another installation's command.")
    arguments = parser.parse_args()
    options = ["--reasoner", reasoner_path(arguments.reasoner)]
    if arguments.threads:
        options += ["--threads", str(arguments.threads)]
    ask = ["ask", arguments.image, arguments.question, *options]
    tool = str(Path(sys.executable).parent / "edgeprism")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)

        def cold() -> Run:
            shutil.rmtree(home / FOLDER, ignore_errors=True)
            return run([tool, *ask], home)

        ways: dict[str, Callable[[], Run]] = {
            "cold": cold,
            "warm": lambda: run([tool, *ask], home),
        }
        if arguments.against:
            ways["other"] = lambda: run([arguments.against, *ask], home)
        for way in ways.values():
            way()  # file caches, trials, digests, the caption
        compare(ways, arguments.runs)


def compare(ways: dict[str, Callable[[], Run]], rounds: int) -> None:
    """Call each way in turns; print times, ratios of a round, and whether the answers agree."""
    made: dict[str, list[Run]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            made[name].append(way())
    print("minimum / median / maximum")
    for name, runs in made.items():
        print(f"  {name:6} first words   {spread([r.first_byte for r in runs])} s")
        print(f"  {name:6} processor     {spread([r.processor for r in runs])} s")
    for name in ways:
        if name == "warm":
            continue
        pairs = list(zip(made[name], made["warm"], strict=True))
        first_words = [one.first_byte / warm.first_byte for one, warm in pairs]
        processor = [one.processor / warm.processor for one, warm in pairs]
        print(f"  {name} : warm, first words  {spread(first_words)}")
        print(f"  {name} : warm, processor    {spread(processor)}")
    answers = {r.output for runs in made.values() for r in runs}
    print("  all answers are equal" if len(answers) == 1 else f"  ANSWERS DIFFER: {answers}")


if __name__ == "__main__":
    main()
