"""Compare captions of a model with cross-attention with transformers in float32.

    python -m benchmarks.speed.attended --work FOLDER [--size base] [--rounds 5] [--tokens 20]

The weights are random, of BLIP-base's or -large's dimensions. Each way runs in a process of its
own, with all cores, and they take turns; a caption has as many tokens in each. The peak of memory
is that of the process, which has loaded its own libraries alone: what makes files is not imported
there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import Child, answer_lines
from benchmarks.machine import spread
from edgeprism.machine.facts import available_cores
from edgeprism.machine.peak_memory import peak_bytes

WAYS = {
    "transformers float32": None,
    "EdgePrism fp32, F32": ("fp32", "F32"),
    "EdgePrism int8, Q8_0": ("int8", "Q8_0"),
}
PROMPT = "a picture of"
Run = Callable[[np.ndarray], dict[str, float]]  # pixels → seconds of what can be told apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where files are made and kept")
    parser.add_argument("--size", choices=("base", "large"), default="base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _answer(arguments)
        return
    checkpoint = _make(arguments.work, arguments.size)
    shared = [*sys.argv[1:], "--checkpoint", str(checkpoint)]
    module = "benchmarks.speed.attended"
    children = {way: Child(way, module, [*shared, "--child", way]) for way in WAYS}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(arguments.rounds + 1):
        for way, child in children.items():
            answer = child.ask(str(number))
            if number:  # the first picture loads the engines
                found[way].append(answer)
    for child in children.values():
        child.close()
    print(f"BLIP-{arguments.size}, random weights, {arguments.tokens} tokens, {arguments.rounds} "
          f"rounds in turns on {available_cores()} cores; minimum / median / maximum")  # fmt: skip
    base = [each["whole"] for each in found["transformers float32"]]
    for way, answers in found.items():
        whole = [each["whole"] for each in answers]
        ratios = [other / own for own, other in zip(whole, base, strict=True)]
        parts = ", ".join(
            f"{part} {spread([each[part] for each in answers])}"
            for part in ("encode", "prefill", "decode")
            if part in answers[0]
        )
        print(f"{way:22} {spread(whole)} s a caption, {spread(ratios)} times as fast as "
              f"transformers, peak {max(each['peak'] for each in answers) / 1e6:.0f} MB"
              + (f" ({parts} s)" if parts else ""))  # fmt: skip


def _make(work: Path, size: str) -> Path:
    """Make the bundles that are missing; return the folder of the checkpoint."""
    from benchmarks.checkpoints.true_dimensions import checkpoint_folders

    checkpoint = checkpoint_folders(work, f"blip-{size}")["captioner"]
    for quants in filter(None, WAYS.values()):
        if not (out := _bundle(work, size, *quants)).exists():
            _convert(checkpoint, out, *quants)
    return checkpoint


def _bundle(work: Path, size: str, vision: str, lm: str) -> Path:
    return work / f"bundle-blip-{size}-{vision}-{lm}"


def _convert(checkpoint: Path, out: Path, vision: str, lm: str) -> None:
    command = [sys.executable, "-m", "edgeprism", "convert", "blip", str(out), "--captioner",
               str(checkpoint), "--vision-quant", vision, "--lm-quant", lm]  # fmt: skip
    subprocess.run(command, check=True)


def _answer(arguments: argparse.Namespace) -> None:
    """Caption a picture of noise for each number that is read; answer times and peak of memory."""

    def make() -> Callable[[str], dict[str, Any]]:
        quants = WAYS[arguments.child]
        run = _edgeprism(arguments, *quants) if quants else _transformers(arguments)

        def look(seed: str) -> dict[str, Any]:
            rng = np.random.default_rng(int(seed))
            pixels = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
            start = time.perf_counter()
            parts = run(pixels)
            return {"whole": time.perf_counter() - start, **parts, "peak": peak_bytes()}

        return look

    answer_lines(make)


def _edgeprism(arguments: argparse.Namespace, vision: str, lm: str) -> Run:
    from edgeprism import Captioner
    from tests.helpers.captions import stream

    bundle = _bundle(arguments.work, arguments.size, vision, lm)
    captioner = Captioner.load(bundle, device="cpu", threads=available_cores())

    def run(pixels: np.ndarray) -> dict[str, float]:
        made = stream(captioner, pixels, instruction=PROMPT, caption_tokens=arguments.tokens,
                      stop_at_end=False).finished()  # fmt: skip
        spent = made.caption.timings
        return {part: getattr(spent, part) / 1000 for part in ("encode", "prefill", "decode")}

    return run


def _transformers(arguments: argparse.Namespace) -> Run:
    import torch
    from transformers import BlipForConditionalGeneration, BlipProcessor

    torch.set_num_threads(available_cores())
    folder = arguments.checkpoint
    model = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = BlipProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> dict[str, float]:
        inputs = processor(images=pixels, text=PROMPT, return_tensors="pt")
        n = arguments.tokens
        model.generate(**inputs, max_new_tokens=n, min_new_tokens=n, do_sample=False, num_beams=1)
        return {}

    return run


if __name__ == "__main__":
    main()
