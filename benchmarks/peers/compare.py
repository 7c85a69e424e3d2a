"""Compare EdgePrism with other engines: same weights, pictures, prompt and cores, in one run.

    python -m benchmarks peers --size smolvlm-256m --work FOLDER [--rounds 5] [--json FILE]

Each engine runs in a process of its own, which looks at a new picture of noise when it is its turn;
so all engines share the machine's good and bad minutes, and each has its own peak of resident
memory. Before the turns, each flag of each peer is tried with each of its values, one flag after
another, and the fastest setting is kept: the search is printed. EdgePrism runs with the defaults
that a user has.

Stages: `encode`, from pixels in memory to visual tokens; `first token`, from pixels to the first
token of the caption; `decode`, one of the 16 tokens after it. Loading and the first picture are
excluded. An engine that only encodes has no other stage. "EdgePrism, 196 rows" gives the language
model that many visual tokens at most. `error` is the largest difference of the rows from those of
EdgePrism's fp32 graph, as a part of their largest value.

The language model of `llava-1.5-7b` has its width but 4 of its 32 layers, because 7 billion
parameters would not be made here in minutes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import Child
from benchmarks.machine import spread
from benchmarks.peers.child import ENGINES, FEWER, OWN, engine_class
from benchmarks.peers.engine import Setting
from benchmarks.peers.pipelines import pipelines_left_out
from benchmarks.peers.weights import LANGUAGE, Size, Weights
from edgeprism.bench.limits import measure_limits
from edgeprism.files.atomic import write_atomically
from edgeprism.machine.facts import available_cores, cpu_name, has_int8_dot

SCHEMA = 1
STAGES = ("encode", "first_token", "decode")
REFERENCE = f"{OWN} fp32"
PACKAGES = ("edgeprism", "llama-cpp-python", "onnxruntime", "openvino", "nncf", "torch",
            "transformers")  # fmt: skip


@dataclass
class Runner:
    """One engine with one type of files: what was tried, and what each round took."""

    engine: str
    quant: str
    setting: Setting = field(default_factory=dict)
    searched: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, float | None]] = field(default_factory=list)
    peak: int | None = None  # bytes
    error: float | None = None  # of the rows, against the reference

    @property
    def name(self) -> str:
        return f"{self.engine} {self.quant}"

    def median(self, stage: str) -> float | None:
        values = [turn[stage] for turn in self.rounds if turn[stage] is not None]
        return float(np.median(np.array(values, float))) if values else None


def main(argv: Sequence[str]) -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser("python -m benchmarks peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", choices=LANGUAGE, default="smolvlm-256m")
    parser.add_argument("--work", type=Path, required=True, help="where files are made and kept")
    parser.add_argument("--picture", metavar="WxH", default="1024x768")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument(
        "--search",
        nargs="*",
        metavar="FLAG",
        help="try other values of these flags alone; default: of all",
    )
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    arguments = parser.parse_args(argv)
    arguments.work.mkdir(parents=True, exist_ok=True)
    weights = Weights(arguments.work, arguments.size)
    width, height = map(int, arguments.picture.split("x"))
    size = (width, height)
    runners, left_out = _runners(weights, arguments.engines)
    rates = measure_limits(weights.language_model().stat().st_size)
    result = {
        "schema": SCHEMA, "size": arguments.size, "picture": size, "layers": weights.n_layers,
        "lm_quant": LANGUAGE[arguments.size][0], "date": datetime.date.today().isoformat(),
        "machine": {"cpu": cpu_name(), "cores": available_cores(), "int8_dot": has_int8_dot(),
                    "rates": asdict(rates)},
        "versions": _versions(), "left_out": left_out,
    }  # fmt: skip
    for runner in runners:
        _search(weights, runner, size, arguments.search)
    for done in _rounds(weights, runners, size, arguments.rounds):
        print(f"round {done} of {arguments.rounds} is done", flush=True)
        if arguments.json:  # after each round, because a comparison may be cut short
            kept = {**result, "rounds": done, "engines": [asdict(r) for r in runners]}
            write_atomically(arguments.json, (json.dumps(kept, indent=1) + "\n").encode())
    _report(runners, left_out)


def _runners(weights: Weights, engines: list[str]) -> tuple[list[Runner], dict[str, str]]:
    """Return the engines that can hold the weights, and why others cannot."""
    runners, left_out = [], pipelines_left_out(weights)
    for name in engines:
        engine, quants = engine_class(name), ENGINES[name][2]
        for quant in quants:
            if why := engine.obstacle(weights, quant):
                left_out[f"{name} {quant}"] = why
            else:
                runners.append(Runner(name, quant))
    if REFERENCE not in [runner.name for runner in runners]:
        raise SystemExit(f"--engines must hold {OWN}: its fp32 rows are what others are held to")
    return runners, left_out


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


# ---- the engines' processes


class _Engine(Child):
    """An engine in a process of its own."""

    def __init__(self, weights: Weights, runner: Runner, setting: Setting, size: Size) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._rows = Path(self._folder.name) / "rows.npy"
        asked = {"engine": runner.engine, "quant": runner.quant, "setting": setting,
                 "work": str(weights.work), "size": weights.size, "picture": size,
                 "rows": str(self._rows)}  # fmt: skip
        super().__init__(runner.name, "benchmarks.peers.child", [json.dumps(asked)])

    def rows(self) -> np.ndarray:
        """Return the rows of the last picture."""
        values: np.ndarray = np.load(self._rows)
        return values

    def close(self) -> None:
        super().close()
        self._folder.cleanup()


@contextmanager
def _engine(weights: Weights, runner: Runner, setting: Setting, size: Size) -> Iterator[_Engine]:
    child = _Engine(weights, runner, setting, size)
    try:
        yield child
    finally:
        child.close()


# ---- the search, the turns


def _search(weights: Weights, runner: Runner, size: Size, only: list[str] | None) -> None:
    """Try each value of each flag, one flag after another; keep the fastest setting."""
    flags = engine_class(runner.engine).settings(available_cores())
    runner.setting = {flag: values[0] for flag, values in flags.items()}
    tried = [flag for flag in flags if only is None or flag in only]
    others = [(flag, value) for flag in tried for value in flags[flag][1:]]
    if not others:
        return
    best = _try(weights, runner, runner.setting, size)
    for flag, value in others:
        if value == runner.setting[flag]:
            continue  # one core: both values are the same
        setting = {**runner.setting, flag: value}
        seconds = _try(weights, runner, setting, size)
        if seconds < best:
            best, runner.setting = seconds, setting
    print(f"{runner.name}: kept {runner.setting}", flush=True)


def _try(weights: Weights, runner: Runner, setting: Setting, size: Size) -> float:
    """Return the seconds of the first picture; add them to what was searched."""
    with _engine(weights, runner, setting, size) as child:
        said = child.ask("0")["seconds"]
    seconds = float(said["first_token"] or said["encode"])
    runner.searched.append({"setting": setting, "seconds": seconds})
    print(f"{runner.name} {setting}: {seconds:.3g} s", flush=True)
    return seconds


def _rounds(weights: Weights, runners: list[Runner], size: Size, rounds: int) -> Iterator[int]:
    """Let each engine look at one picture a round; yield how many rounds are done."""
    children = [_Engine(weights, runner, runner.setting, size) for runner in runners]
    drops_first = weights.manifest().vision.drop_first_patch
    reference = np.empty(0)
    for turn in range(rounds + 1):
        for runner, child in zip(runners, children, strict=True):
            said = child.ask(str(turn))
            if turn:
                runner.rounds.append(said["seconds"])
            elif runner.name == REFERENCE:
                reference = child.rows()
            else:
                runner.error = _difference(child.rows(), reference, drops_first)
            runner.peak = said["peak"]
        if turn:
            yield turn
    for child in children:
        child.close()


def _difference(rows: np.ndarray, reference: np.ndarray, drops_first: bool) -> float | None:
    """Return the largest difference of rows; None where an engine cuts the picture otherwise."""
    if drops_first and len(rows) == len(reference) + 1:
        rows = rows[1:]
    if rows.shape != reference.shape:
        return None
    return float(np.abs(rows - reference).max() / np.abs(reference).max())


def _report(runners: list[Runner], left_out: dict[str, str]) -> None:
    width = max(len(runner.name) for runner in runners) + 2
    print("seconds, minimum / median / maximum")
    print(" " * width + "".join(f"{stage:>24}" for stage in STAGES) + "  peak MB   error")
    for runner in runners:
        cells = []
        for stage in STAGES:
            values = [turn[stage] for turn in runner.rounds if turn[stage] is not None]
            cells.append(spread([float(v or 0) for v in values]) if values else "–")
        error = "" if runner.error is None else f"{runner.error:.2g}"
        print(f"{runner.name:{width}}" + "".join(f"{cell:>24}" for cell in cells)
              + f"{(runner.peak or 0) / 1e6:>9.0f} {error:>7}")  # fmt: skip
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    for stage in STAGES:
        for line in ratio_lines(runners, stage):
            print(line)


def ratio_lines(runners: list[Runner], stage: str) -> list[str]:
    """Compare EdgePrism's fastest type with each peer's fastest, round by round."""
    best: dict[str, Runner] = {}
    for runner in runners:
        median = runner.median(stage)
        if median is None or runner.name == REFERENCE:
            continue
        current = best.get(runner.engine)
        if current is None or median < (current.median(stage) or 0):
            best[runner.engine] = runner
    ours = [best.pop(name) for name in (OWN, FEWER) if name in best]
    lines = []
    for own in ours:
        if own.engine == FEWER and stage != "first_token":
            continue  # only prefill differs
        for peer in best.values():
            pairs = zip(peer.rounds, own.rounds, strict=True)
            ratios = [float(a[stage] or 0) / float(b[stage] or 1) for a, b in pairs]
            lines.append(f"{stage}: {peer.name}'s time / {own.name}'s: {spread(ratios)}")
    return lines
