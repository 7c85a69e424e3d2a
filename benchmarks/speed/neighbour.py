"""Measure what a program that keeps a core busy costs `edgeprism ask`.

    python -m benchmarks.speed.neighbour [--runs 5] [--neighbours 1] [IMAGE]

Runs the same command in turns with EdgePrism's own choice of threads, with all cores, with one
thread, and with all cores whose waiting threads do not spin: first on the machine as it is, then
beside processes that compute without end. Prints minimum / median / maximum in seconds, and the
ratio to the first row; at the end, EdgePrism's choice beside neighbours over one thread alone.
Needs an installed reasoner (`edgeprism pull smollm2-135m`).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.machine import installed_environment, spread
from benchmarks.speed.cold_start import EXAMPLES
from edgeprism.machine.facts import available_cores

PASSIVE = {"OMP_WAIT_POLICY": "passive"}


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keep `count` cores busy inside the block."""
    endless = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(endless) for _ in range(count)]
    try:
        time.sleep(0.5)  # until they run
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds(image: str, options: list[str], environment: dict[str, str]) -> float:
    command = [sys.executable, "-m", "edgeprism", "ask", image, "What is at the top?", *options]
    start = time.perf_counter()
    subprocess.run(
        command, env={**installed_environment(), **environment}, capture_output=True, check=True
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", nargs="?", default=str(sorted(EXAMPLES.glob("*.png"))[0]))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--neighbours", type=int, default=1)
    arguments = parser.parse_args()
    all_cores = ["--threads", str(available_cores())]
    ways: dict[str, tuple[list[str], dict[str, str]]] = {
        "EdgePrism's choice": ([], {}),
        "all cores": (all_cores, {}),
        "all cores, passive": (all_cores, PASSIVE),
        "one thread": (["--threads", "1"], {}),
    }
    medians = {}
    for count in (0, arguments.neighbours):
        times: dict[str, list[float]] = {way: [] for way in ways}
        with neighbours(count):
            seconds(arguments.image, [], {})  # file caches, the caption store
            for _ in range(arguments.runs):
                for way, (options, environment) in ways.items():
                    times[way].append(seconds(arguments.image, options, environment))
        print(f"{count} busy neighbours, s (min / median / max), ratio to the first row")
        own = next(iter(times.values()))
        for way, measured in times.items():
            ratios = [a / b for a, b in zip(measured, own, strict=True)]
            print(f"  {way:20} {spread(measured):24} {spread(ratios)}")
            medians[way, count] = statistics.median(measured)
    alone, beside = medians["one thread", 0], medians["EdgePrism's choice", arguments.neighbours]
    print(f"EdgePrism's choice beside them over one thread alone: {beside / alone:.2f}")


if __name__ == "__main__":
    main()
