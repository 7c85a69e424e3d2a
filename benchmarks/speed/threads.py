"""Measure a bundle's encode, prefill and decode by number of threads.

    python -m benchmarks.speed.threads [BUNDLE] [--runs 9] [IMAGE]

Prints minimum / median / maximum in milliseconds. `SMALL_MODEL_BYTES` in
edgeprism/machine/device.py should be above the files of bundles for which one thread is fastest,
and below the files of others.
"""

from __future__ import annotations

import argparse

from benchmarks.machine import spread
from benchmarks.speed.cold_start import EXAMPLES
from edgeprism import Captioner
from edgeprism.machine.facts import available_cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", default="nano")
    parser.add_argument("image", nargs="?", default=str(sorted(EXAMPLES.glob("*.png"))[0]))
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--tokens", type=int)
    arguments = parser.parse_args()
    for threads in range(1, available_cores() + 1):
        with Captioner.load(arguments.bundle, device="cpu", threads=threads) as captioner:
            tokens = arguments.tokens
            captioner.caption(arguments.image, caption_tokens=tokens)
            runs = [
                captioner.caption(arguments.image, caption_tokens=tokens).timings
                for _ in range(arguments.runs)
            ]
        print(f"{threads} threads, ms (min / median / max)")
        for stage in ("encode", "prefill", "decode"):
            print(f"  {stage:8} {spread([getattr(t, stage) for t in runs])}")


if __name__ == "__main__":
    main()
