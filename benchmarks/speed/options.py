"""Measure how long questions with lettered options take, with an adapter and without.

    python -m benchmarks.speed.options [--plain smollm2-135m+none] [--adapted smollm2-135m]
        [--runs 5] [--threads N]

A reasoner whose adapter was taught EdgePrism's prompts reads each option behind the question and
takes the likeliest; others read the options in the prompt and write a letter. Asks about one known
caption: an open question, then with four options of one word, four of twelve words and 26 of
twelve words. Both ways take turns. Prints minimum / median / maximum in seconds.
"""

from __future__ import annotations

import argparse
import string
import time

from benchmarks.machine import spread
from edgeprism import Caption, ModelInfo, Reasoner, Timings, TokenCounts

TEXT = (
    "A harbour in the evening. Two fishing boats lie at the quay, a blue one in front and a white "
    "one behind it. On the quay an old man mends a net, and a child feeds the gulls with bread. "
    "Behind them are three warehouses with red roofs; the middle one has a clock that shows six."
)
QUESTION = "Which of these does the picture show?"
WORDS = (
    "the", "old", "man", "with", "the", "child", "and", "two", "boats", "near", "a", "clock",
)  # fmt: skip
CASES = (
    ("open", 0, 0),
    ("4 of 1 word", 4, 1),
    ("4 of 12 words", 4, 12),
    ("26 of 12 words", 26, 12),
)


def to_options(count: int, words: int) -> dict[str, str]:
    """Return options that differ from their first word on, as those of question sets do."""
    texts = {}
    for number, letter in enumerate(string.ascii_uppercase[:count]):
        turned = WORDS[number % len(WORDS) :] + WORDS[: number % len(WORDS)]
        texts[letter] = " ".join([*turned[: words - 1], f"{turned[-1]}{number}"])
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", default="smollm2-135m+none")
    parser.add_argument("--adapted", default="smollm2-135m")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    names = {"plain": arguments.plain, "adapter": arguments.adapted}
    reasoners = {n: Reasoner.load(it, threads=arguments.threads) for n, it in names.items()}
    caption = Caption(
        text=TEXT, image="harbour", image_sha256="", finish_reason="stop",
        tokens=TokenCounts(0, 0, 0), timings=Timings(), model=ModelInfo("written", ""), device="",
        instruction="", version="",
    )  # fmt: skip
    for name, reasoner in reasoners.items():
        print(f"{name}: {reasoner.model.name}")
        reasoner.answer([caption], QUESTION, answer_tokens=8)
    for case, count, words in CASES:
        options = to_options(count, words)
        seconds: dict[str, list[float]] = {name: [] for name in reasoners}
        for _ in range(arguments.runs):
            for name, reasoner in reasoners.items():
                start = time.perf_counter()
                reasoner.answer([caption], QUESTION, options=options or None, answer_tokens=8)
                seconds[name].append(time.perf_counter() - start)
        for name, each in seconds.items():
            print(f"  {case:15} {name:8} {spread(each)} s")


if __name__ == "__main__":
    main()
