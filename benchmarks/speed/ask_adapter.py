"""Measure `ask` with an adapter of its reasoner and without, where the caption is known.

    python -m benchmarks.speed.ask_adapter [--plain smollm2-135m+none] [--adapted smollm2-135m]
        [--runs 9] [--threads N] [--only shell|loaded]

First from the shell: `edgeprism ask --show-captions` (start, focus, caption from the store, answer,
evidence) in a data folder made for this, each way in turns. Then in one process with both loaded:
focus, caption from the store, the answer's first words, the whole answer and evidence, about
another picture of the examples each time. Prints minimum / median / maximum in seconds, what a
round with the adapter takes of one without, and whether the aims are held: the whole `ask` from the
shell in 2.5 s, and from the question to the answer's first words in 1.0 s once models are loaded.
The processor's seconds stand beside; other programs disturb them less, above all with one thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import spread
from benchmarks.speed.ask_first_words import EXAMPLES, QUESTION, Run, reasoner_path, run
from edgeprism import Caption, Captioner, Reasoner
from edgeprism.store.caption_store import CaptionStore
from edgeprism.store.stored_captioner import StoredCaptioner

SHELL_AIM, FIRST_AIM = 2.5, 1.0  # seconds
QUESTIONS = (
    "What colour is the largest object?", "How many objects are on the left side?",
    "What is written on the sign?", "Is there a red star?",
)  # fmt: skip
ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Stages:
    """Seconds of one question in a process with everything loaded."""

    focus: float
    first_words: float  # from the question on, the focus and the caption included
    answer: float
    evidence: float
    whole: float
    processor: float  # of the whole
    tokens: int  # of the answer


def ask(reasoner: Reasoner, captioner: StoredCaptioner, image: str, question: str) -> Stages:
    start, worked = time.perf_counter(), time.process_time()
    focus, _ = reasoner.draw_focus(question)
    focused = time.perf_counter()
    caption: Caption = captioner.caption(image, focus=focus)
    captioned = time.perf_counter()
    first: list[float] = []
    answer = reasoner.answer(
        [caption], question, answer_tokens=ANSWER_TOKENS,
        on_text=lambda _: first.append(time.perf_counter()),
    )  # fmt: skip
    answered = time.perf_counter()
    reasoner.find_evidence([caption], question, answer.text)
    end = time.perf_counter()
    began = first[0] if first else answered
    return Stages(
        focused - start, began - start, answered - captioned, end - answered, end - start,
        time.process_time() - worked, answer.tokens.generated,
    )  # fmt: skip


def in_shell(names: dict[str, str], image: str, runs: int, threads: int | None) -> None:
    tool = str(Path(sys.executable).parent / "edgeprism")
    options = ["--threads", str(threads)] if threads else []
    made: dict[str, list[Run]] = {way: [] for way in names}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(runs + 1):  # the first one fills file caches and the store
            for way, name in names.items():
                command = [tool, "ask", image, QUESTION, "--show-captions", *options]
                one = run([*command, "--reasoner", reasoner_path(name)], Path(folder))
                if turn:
                    made[way].append(one)
    print("whole ask from the shell, minimum / median / maximum")
    for way, each in made.items():
        print(f"  {way:8} {spread([one.whole for one in each])} s", end="")
        print(f", processor {spread([one.processor for one in each])} s")
    tell_ratio([one.whole for one in made["plain"]], [one.whole for one in made["adapter"]])
    tell_aim("whole ask", [one.whole for one in made["adapter"]], SHELL_AIM)


def loaded(names: dict[str, str], runs: int, threads: int | None) -> None:
    images = [str(path) for path in sorted(EXAMPLES.glob("*.png"))]
    made: dict[str, list[Stages]] = {way: [] for way in names}
    with tempfile.TemporaryDirectory() as folder:
        store = CaptionStore(Path(folder) / "captions.db")
        captioner = StoredCaptioner(Captioner.load("nano", threads=threads), store)
        reasoners = {way: Reasoner.load(name, threads=threads) for way, name in names.items()}
        rounds = [(images[i % len(images)], QUESTIONS[i % len(QUESTIONS)]) for i in range(runs)]
        for reasoner in reasoners.values():
            for each in rounds:
                ask(reasoner, captioner, *each)  # loads, and puts the captions into the store
        for each in rounds:
            for way, reasoner in reasoners.items():
                made[way].append(ask(reasoner, captioner, *each))
    print("loaded, minimum / median / maximum")
    for stage in ("focus", "first_words", "answer", "evidence", "whole", "processor"):
        times = {way: [getattr(one, stage) for one in each] for way, each in made.items()}
        for way, each_time in times.items():
            print(f"  {stage:12} {way:8} {spread(each_time)} s")
        tell_ratio(times["plain"], times["adapter"])
    for way, each_made in made.items():
        print(f"  tokens of an answer, {way}: {spread([float(one.tokens) for one in each_made])}")
    tell_aim("first words", [one.first_words for one in made["adapter"]], FIRST_AIM)


def tell_ratio(plain: list[float], adapted: list[float]) -> None:
    ratios = [one / other for one, other in zip(adapted, plain, strict=True)]
    print(f"    with : without     {spread(ratios)}")


def tell_aim(what: str, seconds: list[float], aim: float) -> None:
    median = statistics.median(seconds)
    verdict = "held" if median <= aim else "MISSED"
    print(f"  aim, {what} with the adapter in {aim} s: {verdict} (median {median:.2f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", default="smollm2-135m+none")
    parser.add_argument("--adapted", default="smollm2-135m")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", choices=("shell", "loaded"))
    parser.add_argument("--image", default=str(min(EXAMPLES.glob("*.png"))))
    arguments = parser.parse_args()
    names = {"plain": arguments.plain, "adapter": arguments.adapted}
    for name in names.values():
        print(Reasoner.load(name).model)
    if arguments.only != "loaded":
        in_shell(names, arguments.image, arguments.runs, arguments.threads)
    if arguments.only != "shell":
        loaded(names, arguments.runs, arguments.threads)


if __name__ == "__main__":
    main()
