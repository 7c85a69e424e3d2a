"""Measure how much sooner the second caption of a picture begins, with another instruction.

    python -m benchmarks.speed.second_caption [--bundle nano] [--runs 5] [--size WIDTHxHEIGHT]

Each run encodes a new picture of noise and asks for one token of a caption, then for one token of a
caption with another instruction. The first figure is the time from the pixels to the first token.
The second begins with the kept `EncodedImage`: nothing is encoded, and the picture's rows, which
stand before the instruction, are in the KV cache already. Both engines are loaded before.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from benchmarks.machine import spread
from edgeprism import Captioner

INSTRUCTIONS = ("Describe this picture in detail.", "Name each object, and say where it stands.")


def picture(seed: int, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def two_captions(captioner: Captioner, pixels: np.ndarray) -> tuple[float, float]:
    """Return the seconds from pixels to the first token, and those of a second caption's."""
    start = time.perf_counter()
    encoded = captioner.encode(pixels)
    captioner.caption(encoded, instruction=INSTRUCTIONS[0], caption_tokens=1)
    between = time.perf_counter()
    captioner.caption(encoded, instruction=INSTRUCTIONS[1], caption_tokens=1)
    return between - start, time.perf_counter() - between


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", metavar="WxH", default="1024x768")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    firsts, seconds = [], []
    with Captioner.load(arguments.bundle, threads=arguments.threads) as captioner:
        two_captions(captioner, picture(0, (width, height)))  # loads the engines
        for run in range(arguments.runs):
            first, second = two_captions(captioner, picture(1 + run, (width, height)))
            firsts.append(first)
            seconds.append(second)
    print(f"{arguments.bundle}, {arguments.size}, {arguments.runs} runs, s to the first token, "
          "minimum / median / maximum")  # fmt: skip
    print(f"first caption   {spread(firsts)}")
    print(f"second caption  {spread(seconds)}")
    print(f"first : second  {spread([a / b for a, b in zip(firsts, seconds, strict=True)])}")


if __name__ == "__main__":
    main()
