"""Measure the peak resident memory of `ask` with both models in memory and with one at a time.

    python -m benchmarks.memory.ask [--bundle nano] [--reasoner smollm2-135m] [--runs 3]

Each run is a process of its own, with --no-cache so that the captioner runs. Files that llama.cpp
maps count as far as they were read. "neither" is a process that loads no model.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

from benchmarks.machine import spread

QUESTION = "How many objects are on the left side?"


def peak_mb(command: list[str]) -> float:
    """Return the peak resident MB of a child (Linux: getrusage counts in kilobytes)."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}.")
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--reasoner", default="smollm2-135m")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    edgeprism = [sys.executable, "-m", "edgeprism"]
    with tempfile.TemporaryDirectory() as folder:
        photo = os.path.join(folder, "photo.png")
        pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photo)
        models = ["--reasoner", arguments.reasoner, "--answer-tokens", "16", "--no-cache"]
        ask = [*edgeprism, "ask", photo, QUESTION, "--model", arguments.bundle, *models]
        commands = {
            "together": [*ask, "--stages", "together"],
            "apart": [*ask, "--stages", "apart"],
            "captioner alone": [*edgeprism, "caption", photo, "--model", arguments.bundle],
            "neither": [*edgeprism, "models", "list"],
        }
        print(f"peak resident MB, {arguments.runs} runs, minimum / median / maximum")
        for name, command in commands.items():
            peaks = [peak_mb(command) for _ in range(arguments.runs)]
            print(f"{name:16} {spread(peaks)}")


if __name__ == "__main__":
    main()
