"""Measure the peak resident memory of one caption beside libmtmd's, with the same weights.

    python -m benchmarks.memory.caption --size prismcaptioner-2b --work FOLDER [--runs 3]

"together": both of EdgePrism's engines stay in memory. "apart": the picture is encoded, the engines
are closed, and only the language model loads again to write the caption, as a program does with
`encode`, `close` and `caption`. libmtmd has both models in memory and a context that just holds the
caption, because its default takes more; with an mmproj in F16 and in Q8_0. Each run is a process of
its own, in turns, with the files that `python -m benchmarks peers` makes. Files that are mapped
count as far as they were read. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import spread
from benchmarks.peers.engine import DECODED, INSTRUCTION, Setting
from benchmarks.peers.weights import LANGUAGE, Weights, noise
from edgeprism import Captioner
from edgeprism.machine.facts import available_cores
from edgeprism.machine.peak_memory import peak_bytes
from tests.helpers.captions import stream

TOKENS = 1 + DECODED
TEXT = 384  # tokens beside the visual ones: instruction, template, marks of tiles, caption


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=LANGUAGE, default="prismcaptioner-2b")
    parser.add_argument("--work", type=Path, required=True, help="where files are made and kept")
    parser.add_argument("--picture", metavar="WxH", default="1024x768")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    weights = Weights(arguments.work, arguments.size)
    width, height = map(int, arguments.picture.split("x"))
    if arguments.child:
        WAYS[arguments.child](weights, noise(0, (width, height)))
        print(json.dumps(peak_bytes()))
        return
    for quant in ("F16", "Q8_0"):
        weights.mmproj(quant)  # made here, so that no child's peak holds the making
    command = [sys.executable, "-m", "benchmarks.memory.caption", *sys.argv[1:], "--child"]
    peaks: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.runs):
        for way, measured in peaks.items():
            done = subprocess.run([*command, way], stdout=subprocess.PIPE, text=True, check=True)
            measured.append(json.loads(done.stdout.splitlines()[-1]) / 1e6)
    print(f"{arguments.size}, {arguments.picture}, {arguments.runs} runs in turns, peak resident "
          "MB, minimum / median / maximum; ratio to libmtmd F16 of the same round")  # fmt: skip
    base = peaks["libmtmd F16"]
    for way, measured in peaks.items():
        ratios = [own / other for own, other in zip(measured, base, strict=True)]
        print(f"{way:20} {spread(measured):24} {spread(ratios)}")


def together(weights: Weights, pixels: np.ndarray) -> None:
    with _captioner(weights) as captioner:
        stream(captioner, pixels, instruction=INSTRUCTION, caption_tokens=TOKENS,
               stop_at_end=False).finished()  # fmt: skip


def apart(weights: Weights, pixels: np.ndarray) -> None:
    with _captioner(weights) as captioner:
        encoded = captioner.encode(pixels)
        captioner.close()
        stream(captioner, encoded, instruction=INSTRUCTION, caption_tokens=TOKENS,
               stop_at_end=False).finished()  # fmt: skip


def _captioner(weights: Weights) -> Captioner:
    return Captioner.load(weights.bundle(), device="cpu", threads=available_cores())


def _libmtmd(quant: str) -> Callable[[Weights, np.ndarray], None]:
    def run(weights: Weights, pixels: np.ndarray) -> None:
        # here, so that EdgePrism's memory does not hold the high-level llama_cpp
        from benchmarks.peers.libmtmd import Libmtmd

        manifest = weights.manifest()
        rows = manifest.vision.tokens_per_tile * manifest.image.max_tiles
        setting: Setting = {"flash_attention": True, "micro_batch": 512, "context": rows + TEXT}
        setting["threads"] = available_cores()
        Libmtmd(weights, quant, setting).look(pixels)

    return run


WAYS: dict[str, Callable[[Weights, np.ndarray], None]] = {
    "EdgePrism, together": together,
    "EdgePrism, apart": apart,
    "libmtmd F16": _libmtmd("F16"),
    "libmtmd Q8_0": _libmtmd("Q8_0"),
}


if __name__ == "__main__":
    main()
