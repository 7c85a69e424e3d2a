"""The child process that captions, or answers, while `bench.measure` waits.

It has a process of its own, so that its peak memory is that of one stage. It reads a line of JSON,
does what it says, and writes a line of JSON: what it measured, or the error that ended it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from edgeprism.errors import EdgePrismError, NoAnswerError
from edgeprism.machine.child import end_with_parent
from edgeprism.machine.peak_memory import peak_bytes

if TYPE_CHECKING:
    from edgeprism.perceive.captioner import Captioner
    from edgeprism.reason.base import BaseReasoner
    from edgeprism.records import Caption

QUESTIONS = (
    "What colour is the largest object?",
    "How many objects are on the left side?",
    "What is in front of the house?",
)
ANSWER_TOKENS = 64
_GREY = (64, 64, 3)  # [height, width, channels] of a picture between two runs


def main() -> None:
    """Do what standard input says."""
    end_with_parent()
    order = json.loads(sys.stdin.readline())
    work: dict[str, Callable[..., dict[str, Any]]] = {"caption": caption, "answer": answer}
    try:
        result = work[order.pop("work")](**order)
    except EdgePrismError as error:
        result = {"error": error.summary, "hint": error.hint, "exit_code": error.exit_code}
    print(json.dumps(result))


# ---- captions


def caption(
    model: str, engine: dict[str, Any], images: list[str], runs: int, caption_tokens: int | None
) -> dict[str, Any]:
    """Caption the pictures in turn until there are `runs` captions, after one that loads."""
    from edgeprism.machine.energy import EnergyMeter
    from edgeprism.perceive.captioner import Captioner

    memory: dict[str, int | None] = {}
    with Captioner.load(model, **engine) as captioner:
        before = free_device_memory(captioner)
        memory["imports"] = peak_bytes()
        encoded = captioner.encode(images[0])
        memory["encoded"] = peak_bytes()
        captioner.caption(encoded, caption_tokens=caption_tokens)
        memory["captioned"] = peak_bytes()
        energy = EnergyMeter()
        made = []
        for image in each_of(images, runs):
            clear_prompt(captioner)
            with energy.counting():
                made.append(timed_caption(captioner, image, caption_tokens))
        memory["captioned"] = peak_bytes()
        after = free_device_memory(captioner)
        memory["device"] = None if before is None or after is None else max(0, before - after)
        engines = captioner.engines
        return {
            "made": made,
            "memory": memory,
            "joules_per_caption": None if energy.reason else energy.joules / runs,
            "energy_reason": energy.reason,
            "energy_counted": energy.names,
            "device": captioner.device,
            "threads": max(engines.vision_threads(), engines.lm_threads()),
            "vision_file": engines.vision_variant().file,
        }


def free_device_memory(captioner: Captioner) -> int | None:
    """Return the free bytes of the GPU that the captioner uses; None if it uses none."""
    if captioner.device == "cpu":
        return None
    from edgeprism.language.gpu import find_gpu

    gpu = find_gpu()
    return gpu.free if gpu else None


def each_of(images: list[str], runs: int) -> Iterator[str]:
    """Yield the images in turn, `runs` of them."""
    for run in range(runs):
        yield images[run % len(images)]


def clear_prompt(captioner: Captioner) -> None:
    """Caption a grey picture, so that nothing of the next prompt is in the KV cache.

    A second caption of the same picture would skip its prefill.
    """
    import numpy as np

    captioner.caption(np.full(_GREY, 128, np.uint8), caption_tokens=1)


def timed_caption(captioner: Captioner, image: str, caption_tokens: int | None) -> dict[str, Any]:
    """Caption a picture; return its record with `first_text` and `whole` in milliseconds."""
    start = time.perf_counter()
    first = None
    stream = captioner.stream(image, caption_tokens=caption_tokens)
    for _ in stream:
        first = first or time.perf_counter()
    end = time.perf_counter()
    record = stream.caption.to_dict()
    record["first_text"] = ((first or end) - start) * 1000
    record["whole"] = (end - start) * 1000
    return record


# ---- answers


def answer(
    reasoner: str, engine: dict[str, Any], captions: list[dict[str, Any]], runs: int
) -> dict[str, Any]:
    """Answer questions on captions, `runs` times after one that loads."""
    from edgeprism.reason.local import Reasoner
    from edgeprism.store.stored_record import record_to_caption

    seen = [record_to_caption(record) for record in captions]
    opened = Reasoner.load(reasoner, **engine)
    with contextlib.closing(opened):
        opened.draw_focus(QUESTIONS[0])  # which tries a model that never ran here
        opened.close()
        opened.draw_focus(QUESTIONS[0])
        loading = opened.focus_timings.load
        made, failed = [], 0
        for run in range(runs):
            times, ok = timed_answer(opened, seen[run % len(seen)], QUESTIONS[run % len(QUESTIONS)])
            made.append(times)
            failed += not ok
        return {
            "load": loading,
            "made": made,
            "failed": failed,
            "memory": peak_bytes(),
            "model": asdict(opened.model),
        }


def timed_answer(
    reasoner: BaseReasoner, seen: Caption, question: str
) -> tuple[dict[str, float], bool]:
    """Draw a focus, answer, and find evidence; return milliseconds, and whether it answered."""
    marks = [time.perf_counter()]
    reasoner.draw_focus(question)
    marks.append(time.perf_counter())
    try:
        text, ok = reasoner.answer([seen], question, answer_tokens=ANSWER_TOKENS).text, True
    except NoAnswerError:  # it took the time of one nevertheless
        text, ok = "It is not known.", False
    marks.append(time.perf_counter())
    reasoner.find_evidence([seen], question, text)
    marks.append(time.perf_counter())
    spent = [(after - before) * 1000 for before, after in pairwise(marks)]
    return dict(zip(("focus", "answer", "evidence"), spent, strict=True)), ok
