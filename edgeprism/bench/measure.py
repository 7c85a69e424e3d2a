"""Runs a benchmark: each part in processes of its own, one after another, and nothing in between.

The order is: the machine's limits, cold captions, warm captions, the reasoner, a folder. The
processes are the ones that a user runs, so the figures are what a user waits for.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeprism.errors import EdgePrismError
from edgeprism.machine import child
from edgeprism.machine.device import EngineOptions
from edgeprism.vision.token_reduction import TokenLimit

_FOLDER_S = 4.0  # a folder should take about so long
_LEAST_PICTURES, _MOST_PICTURES = 4, 200
_STAGES = ("decode_image", "preprocess", "encode", "prefill", "decode")
Samples = dict[str, list[float]]  # stage → milliseconds of each run


@dataclass(frozen=True)
class Order:
    """What to measure.

    Parameters:
        model: a captioner, as `Captioner.load` takes it.
        reasoner: a reasoner on this machine, as `Reasoner.load` takes it; None: none.
        images: paths of pictures; several are taken in turn.
        runs: how often each thing is measured.
        caption_tokens: the longest caption; None: the model's.
        folder: whether to measure a folder too.
        engine: device, threads, gpu_layers, for both models.
        vision_quant: the variant of the vision graph; None: the best for the device.
        visual_tokens: the most that the language model gets of a picture; None: all.
    """

    model: str
    reasoner: str | None
    images: Sequence[str]
    runs: int
    caption_tokens: int | None = None
    folder: bool = True
    engine: EngineOptions = field(default_factory=EngineOptions)
    vision_quant: str | None = None
    visual_tokens: TokenLimit | None = None

    def command(self, *what: str) -> list[str]:
        """Return `edgeprism caption …` with this captioner, without the caption store."""
        options: list[str] = []
        for name, value in (
            ("--max-tokens", self.caption_tokens),
            ("--vision-quant", self.vision_quant),
            ("--visual-tokens", self.visual_tokens),
            ("--device", self.engine.get("device")),
            ("--threads", self.engine.get("threads")),
            ("--gpu-layers", self.engine.get("gpu_layers")),
        ):
            options += [] if value is None else [name, str(value)]
        return ["caption", *what, "--model", self.model, "--no-cache", *options]


def run_edgeprism(*arguments: str) -> tuple[float, str]:
    """Run the command line in a process of its own; return milliseconds and what it printed.

    Raises EdgePrismError with the process's last line if it fails.
    """
    command = child.edgeprism_command("edgeprism.cli.main", *arguments)
    start = time.perf_counter()
    ended = child.run(command)
    spent = (time.perf_counter() - start) * 1000
    if ended.code:
        raise EdgePrismError(
            f"A run of `edgeprism {arguments[0]}` ended with {ended.how}: {ended.last_words(400)}",
            "Run that command by itself.",
        )
    return spent, ended.output


def run_worker(order: Mapping[str, object]) -> dict[str, Any]:
    """Let `bench.worker` do one part; return what it measured.

    Parameters:
        order: `work`, "caption" or "answer", and the arguments of the function of that name.

    Raises EdgePrismError with the worker's error, or with how its process ended.
    """
    command = child.edgeprism_command("edgeprism.bench.worker")
    ended = child.run(command, json.dumps(order) + "\n")
    lines = ended.output.strip().splitlines()
    if ended.code or not lines:
        raise EdgePrismError(
            f"The process that measures ended with {ended.how}: {ended.last_line()}",
            "`edgeprism doctor` says whether the engines run.",
        )
    result: dict[str, Any] = json.loads(lines[-1])
    if "error" in result:
        error = EdgePrismError(result["error"], result["hint"])
        error.exit_code = result["exit_code"]
        raise error
    return result


def measure_cold(order: Order, step: Callable[[], None]) -> Samples:
    """Time whole processes from outside; the stages inside are those of their records.

    One run before the others does not count: it fills the system's file caches, and tries a model
    that never ran here. `rest` is what no stage covers: imports, the prompt, the record, the end.
    """
    samples: Samples = {}
    run_edgeprism(*order.command("--json", order.images[0]))
    for run in range(order.runs):
        image = order.images[run % len(order.images)]
        start_ms, _ = run_edgeprism("--version")
        whole, printed = run_edgeprism(*order.command("--json", image))
        times = json.loads(printed)["timings_ms"]
        stages = {name: times[name] for name in ("load", *_STAGES)}
        row = {"start": start_ms, **stages}
        row["rest"] = whole - sum(row.values())
        row["whole"] = whole
        _append(samples, row)
        step()
    return samples


def warm_samples(made: Sequence[dict[str, Any]]) -> Samples:
    """Turn the records of warm captions into samples."""
    samples: Samples = {}
    for record in made:
        row = {name: record["timings_ms"][name] for name in _STAGES}
        row["rest"] = record["whole"] - sum(row.values())
        row["whole"] = record["whole"]
        row["first_text"] = record["first_text"]
        if record["timings_ms"]["decode"]:
            generated = record["tokens"]["generated"]
            row["decode_rate"] = generated / record["timings_ms"]["decode"] * 1000
        _append(samples, row)
    return samples


def median_tokens(made: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return the median counts of tokens of captions."""
    return {
        name: round(statistics.median(record["tokens"][name] for record in made))
        for name in ("visual", "prompt", "generated")
    }


def measure_folder(order: Order, caption_ms: float, rounds: int = 2) -> tuple[int, list[float]]:
    """Caption copies of the pictures as a folder; return how many, and pictures per second.

    The first round counts only if no more follow: in it, EdgePrism may still try how many pictures
    it should work on at a time.
    """
    count = math.ceil(_FOLDER_S * 1000 / max(caption_ms, 1))
    count = min(max(count, _LEAST_PICTURES), _MOST_PICTURES)
    if caption_ms * count > 10 * _FOLDER_S * 1000:
        rounds = 1
    rates = []
    with tempfile.TemporaryDirectory(prefix="edgeprism-bench-") as folder:
        for number in range(count):
            source = Path(order.images[number % len(order.images)])
            shutil.copyfile(source, Path(folder, f"{number:04}{source.suffix}"))
        for _ in range(rounds):
            spent, printed = run_edgeprism(*order.command("--jsonl", folder))
            if len(printed.splitlines()) != count:
                raise EdgePrismError("A run over a folder did not caption all of its pictures.")
            rates.append(count / spent * 1000)
    return count, rates[1:] or rates


def _append(samples: Samples, row: dict[str, float]) -> None:
    for name, value in row.items():
        samples.setdefault(name, []).append(value)
