"""Measure `edgeprism caption` in a new process, from the shell to the sentence, stage by stage.

    python -m benchmarks.speed.cold_start [--runs 15] [--model nano] [IMAGE]
    python -m benchmarks.speed.cold_start --against OTHER/bin/edgeprism [--runs 15] [IMAGE]

Prints minimum / median / maximum in seconds of an empty Python, `edgeprism --help`, and a whole
`edgeprism caption`; then the stages in the last caption's record, and a warm caption in one
process. With --against, the same commands of two installations run in turns, and the ratio of each
pair of runs, this one to the other, is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import installed_environment, spread
from edgeprism.models import nano

EXAMPLES = Path(nano.__file__).parent / "examples"


def seconds(command: list[str]) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(
        command, env=installed_environment(), capture_output=True, text=True, check=True
    )
    return time.perf_counter() - start, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", nargs="?", default=str(sorted(EXAMPLES.glob("*.png"))[0]))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--against", metavar="EDGEPRISM", help="Another installation's command.")
    arguments = parser.parse_args()
    tool = str(Path(sys.executable).parent / "edgeprism")
    caption = [tool, "caption", "--model", arguments.model, "--json", arguments.image]
    if arguments.against:
        compare(tool, arguments.against, [["--help"], caption[1:]], arguments.runs)
        return
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "edgeprism --help": [tool, "--help"],
        "edgeprism caption": caption,
    }
    for command in commands.values():
        seconds(command)  # warm up: file caches, compiled modules, remembered digests
    print("whole process, s (min / median / max)")
    for name, command in commands.items():
        measured = [seconds(command)[0] for _ in range(arguments.runs)]
        print(f"  {name:20} {spread(measured)}")
    record = json.loads(seconds(caption)[1])
    print(f"stages of one cold caption, ms: {record['timings_ms']}")
    print(f"tokens: {record['tokens']}  device: {record['device']}  model: {record['model']}")
    warm(arguments.model, arguments.image, arguments.runs)


def compare(tool: str, other: str, commands: list[list[str]], runs: int) -> None:
    """Run each command of both installations in turns; print seconds, and ratios of pairs."""
    for command in commands:
        times: dict[str, list[float]] = {tool: [], other: []}
        for which in (tool, other):
            seconds([which, *command])  # file caches, compiled modules, digests
        for run in range(runs):
            # who goes first changes from run to run
            for which in (tool, other) if run % 2 else (other, tool):
                times[which].append(seconds([which, *command])[0])
        ratios = [mine / theirs for mine, theirs in zip(times[tool], times[other], strict=True)]
        print(f"edgeprism {command[0]}, s (min / median / max)")
        print(f"  this one   {spread(times[tool])}")
        print(f"  other one  {spread(times[other])}")
        print(f"  ratio      {spread(ratios)}")


def warm(model: str, image: str, runs: int) -> None:
    """Time captions in one process, without the first."""
    from edgeprism import Captioner

    with Captioner.load(model) as captioner:
        captioner.caption(image)
        timings = [captioner.caption(image).timings.total for _ in range(runs)]
    print(f"warm caption in one process, ms (min / median / max): {spread(timings)}")


if __name__ == "__main__":
    main()
