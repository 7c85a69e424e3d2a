"""Measure the time to the first token by the number of visual tokens, in turns in one run.

    python -m benchmarks.speed.visual_tokens BUNDLE [--tokens all auto 196 64] [--rounds 3]
        [--threads N] [--vision-quant QUANT] [--size WIDTHxHEIGHT]

Each figure comes from a captioner that was loaded for it and has described another picture before.
The picture is noise: time does not depend on what it shows. A bundle of a published model's
dimensions with random weights: `python -m benchmarks.memory.convert --size prismcaptioner-2b --work
FOLDER --keep`.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.machine import spread
from edgeprism import Captioner, Timings
from edgeprism.vision.token_reduction import TokenLimit

STAGES = ("encode", "prefill")


def to_limit(text: str) -> TokenLimit | None:
    """Read "all", "auto" or a number."""
    if text == "all":
        return None
    return "auto" if text == "auto" else int(text)


def noise(seed: int, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def first_token(
    limit: TokenLimit | None, seed: int, options: argparse.Namespace
) -> tuple[int, Timings]:
    """Return the visual tokens of one caption of one token, and its times."""
    width, height = map(int, options.size.split("x"))
    with Captioner.load(
        options.bundle,
        visual_tokens=limit,
        threads=options.threads,
        vision_quant=options.vision_quant,
    ) as captioner:
        captioner.caption(noise(0, (width, height)), caption_tokens=1)
        caption = captioner.caption(noise(seed, (width, height)), caption_tokens=1)
    return caption.tokens.visual, caption.timings


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", help="a bundle's folder, or a model's name")
    parser.add_argument("--tokens", nargs="+", default=["all", "auto", "196", "64"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--vision-quant")
    parser.add_argument("--size", default="1024x768")
    options = parser.parse_args()
    found: dict[str, list[Timings]] = {name: [] for name in options.tokens}
    visual: dict[str, int] = {}
    for number in range(options.rounds):
        for name in options.tokens:
            visual[name], times = first_token(to_limit(name), 1 + number, options)
            found[name].append(times)
    print(f"{options.bundle}, {options.size}, {options.rounds} rounds in turns; "
          "minimum / median / maximum, seconds")  # fmt: skip
    for name, made in found.items():
        seconds = {stage: [getattr(t, stage) / 1000 for t in made] for stage in STAGES}
        first = [(t.total - t.decode - t.load) / 1000 for t in made]
        base = found[options.tokens[0]]
        ratios = [(b.total - b.decode - b.load) / 1000 / f
                  for b, f in zip(base, first, strict=True)]  # fmt: skip
        parts = ", ".join(f"{stage} {spread(values)}" for stage, values in seconds.items())
        print(f"{name:>5}: {visual[name]} visual tokens, {parts}, first token {spread(first)}, "
              f"{spread(ratios)} times as soon as {options.tokens[0]}")  # fmt: skip


if __name__ == "__main__":
    main()
