"""Measure what a second question on one picture costs, compared with the first.

    python -m benchmarks.speed.second_question [--bundle nano] [--reasoner smollm2-135m] [--runs 5]

In generic mode the second question reuses the caption, so only the reasoner works. In question mode
the captioner writes another caption with another focus, but neither encodes nor prefills the
picture again. Both models are loaded before the first question. Random weights take as long as
trained ones of their size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, Unpack

import numpy as np

from benchmarks.machine import spread
from edgeprism import Caption, Captioner, EncodedImage, Prism, Reasoner
from edgeprism.perceive.options import CaptionOptions
from edgeprism.picture.read import ImageSource
from tests.helpers.captions import stream

QUESTIONS = ("What colour is the largest object?", "How many objects are on the left side?")
FOCUSES = ("the colour of the largest object", "the number of objects on the left side")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


class FullLength:
    """A captioner whose captions always have `caption_tokens` tokens, even with random weights."""

    def __init__(self, captioner: Captioner) -> None:
        self.captioner = captioner

    def caption(
        self, image: ImageSource | EncodedImage, **options: Unpack[CaptionOptions]
    ) -> Caption:
        """Caption one picture."""
        return stream(self.captioner, image, stop_at_end=False, **options).finished().caption

    def close(self) -> None:
        """Free the engines."""
        self.captioner.close()


def picture(seed: int) -> np.ndarray:
    """Return another picture for each seed, so that no run profits from the one before."""
    return np.random.default_rng(seed).integers(0, 256, (480, 640, 3), dtype=np.uint8)


def generic(prism: Prism, seed: int, caption_tokens: int, answer_tokens: int) -> list[float]:
    """Return the seconds of a first question with its caption, and of a second without."""
    first, answer = timed(
        lambda: prism.ask(
            picture(seed), QUESTIONS[0], instruction_mode="generic",
            caption_tokens=caption_tokens, answer_tokens=answer_tokens,
        )
    )  # fmt: skip
    second, _ = timed(
        lambda: prism.answer(answer.captions, QUESTIONS[1], answer_tokens=answer_tokens)
    )
    return [first, second]


def question(prism: Prism, seed: int, caption_tokens: int, answer_tokens: int) -> list[float]:
    """Do as `generic` in question mode; given focuses spare the reasoner from drawing them."""

    def ask(encoded: EncodedImage, which: int) -> None:
        prism.ask(
            encoded, QUESTIONS[which], focus=FOCUSES[which],
            caption_tokens=caption_tokens, answer_tokens=answer_tokens,
        )  # fmt: skip

    captioner = prism.captioners[0]
    assert isinstance(captioner, FullLength)
    encoding, encoded = timed(lambda: captioner.captioner.encode(picture(seed)))
    first, _ = timed(lambda: ask(encoded, 0))
    second, _ = timed(lambda: ask(encoded, 1))
    return [encoding + first, second]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--reasoner", default="smollm2-135m")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--caption-tokens", type=int, default=128)
    parser.add_argument("--answer-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    lengths = (arguments.caption_tokens, arguments.answer_tokens)
    prism = Prism(
        FullLength(Captioner.load(arguments.bundle, threads=arguments.threads)),
        Reasoner.load(arguments.reasoner, threads=arguments.threads),
    )
    prism.ask(
        picture(0), QUESTIONS[0], focus=FOCUSES[0], caption_tokens=1, answer_tokens=1
    )  # loads both models
    for name, run in (("generic", generic), ("question", question)):
        times = [run(prism, 1 + i, *lengths) for i in range(arguments.runs)]
        first, second = ([pair[i] for pair in times] for i in (0, 1))
        ratios = [one / two for one, two in times]
        print(f"{name} mode, {arguments.runs} runs, minimum / median / maximum")
        print(f"  first question   {spread(first)} s")
        print(f"  second question  {spread(second)} s")
        print(f"  first : second   {spread(ratios)}")
    prism.close()


if __name__ == "__main__":
    main()
