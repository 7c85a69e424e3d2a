"""Compare `edgeprism bench`'s figures of whole captions with a clock outside of it.

    python -m benchmarks.speed.bench_agrees [--runs 15] [--model nano]

Times the command as a shell does, half of the runs before the benchmark and half after it, so that
a machine that grows slower or faster shows as a difference of the halves. Prints both medians and
how far they are apart. It says so where the benchmark itself calls its run disturbed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import installed_environment, spread
from benchmarks.speed.cold_start import EXAMPLES

EDGEPRISM = [sys.executable, "-m", "edgeprism"]


def whole_captions(model: str, image: str, runs: int) -> list[float]:
    """Return milliseconds from the start of the process to its end."""
    command = [*EDGEPRISM, "caption", image, "--model", model, "--no-cache", "--json"]
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, env=installed_environment(), capture_output=True, check=True)
        times.append((time.perf_counter() - start) * 1000)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--model", default="nano")
    arguments = parser.parse_args()
    image = str(sorted(EXAMPLES.glob("*.png"))[0])
    whole_captions(arguments.model, image, 1)  # file caches
    before = whole_captions(arguments.model, image, (arguments.runs + 1) // 2)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "bench.json")
        options = ["--model", arguments.model, "--image", image, "--runs", str(arguments.runs),
                   "--no-folder", "--no-reasoner", "--json", str(report)]  # fmt: skip
        command = [*EDGEPRISM, "bench", *options]
        subprocess.run(command, env=installed_environment(), stdout=subprocess.DEVNULL, check=True)
        result = json.loads(report.read_text(encoding="utf-8"))
    after = whole_captions(arguments.model, image, arguments.runs // 2)
    whole = next(s for s in result["stages"] if (s["group"], s["name"]) == ("cold", "whole"))
    outside = statistics.median(before + after)
    print(f"outside, ms: before {spread(before)}, after {spread(after)}")
    print(f"edgeprism bench, ms: median {whole['median']:.4g}")
    print(f"apart by {whole['median'] / outside - 1:+.1%}")
    for reason in result["conditions"]["disturbed"]:
        print(f"disturbed: {reason}")


if __name__ == "__main__":
    main()
