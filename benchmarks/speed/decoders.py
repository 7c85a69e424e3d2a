"""Compare ONNX Runtime and llama.cpp on one plain decoder: InternLM2-1.8B, random weights.

    python -m benchmarks.speed.decoders --work FOLDER [--rounds 5] [--layers 24] [--json FILE]

The decoder is the language model of PrismCaptioner-2B; its layers have the same random weights,
each at a place of its own in the files. ONNX Runtime runs it as EdgePrism's ONNX decoder runs its
own (`GroupQueryAttention`, `MatMulNBits`, keys and values in numpy arrays, float32 cells),
llama.cpp as EdgePrism runs every GGUF file (float16 cells). Each way has a process of its own and
all cores, and they take turns stage by stage. The peak of memory is that of the process, with
mapped files, after all stages. EdgePrism chooses nothing by these figures.

Stages: prefill of so many tokens of an empty sequence; decode of one sequence, after the longer of
these prompts; decode of eight sequences together, after 128 tokens each. Figures are tokens per
second, of all sequences together.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.children import Child, answer_lines
from benchmarks.decoders.files import (
    GGUF_QUANTS,
    LAYERS,
    LLAMA,
    ONNX_QUANTS,
    ORT,
    Files,
)
from benchmarks.decoders.table import SCHEMA, STAGES, table
from edgeprism.files.atomic import write_atomically
from edgeprism.machine.facts import available_cores, cpu_name, has_int8_dot
from edgeprism.machine.peak_memory import peak_bytes

WAYS = {
    **{f"{ORT}, {quant}": (ORT, quant) for quant in ONNX_QUANTS},
    **{f"{LLAMA} {quant}": (LLAMA, quant) for quant in GGUF_QUANTS},
}
SHORT, LONG, SEQUENCES = 128, 728, 8
PACKAGES = ("edgeprism", "llama-cpp-python", "onnxruntime")


class Decoding(Protocol):
    """What both engines' contexts have in common."""

    def prefill_tokens(self, seq: int, tokens: list[int], start: int) -> None:
        """Put `tokens` at positions `start`… of `seq`."""

    def step(self, tokens: list[tuple[int, int, int]]) -> None:
        """Decode one (seq, token, position) for each of several sequences."""

    def logits(self, index: int = -1) -> np.ndarray:
        """Return logits of the last call at `index` of its batch."""

    def keep(self, seq: int, length: int) -> bool:
        """Forget `seq` from position `length` on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where files are made and kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=LAYERS, help="fewer layers: faster")
    parser.add_argument("--tokens", type=int, default=32, help="decoded in a turn, per sequence")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    files = Files(arguments.work, arguments.layers)
    if arguments.child:
        _answer(files, *WAYS[arguments.child], arguments.tokens)
        return
    files.make()
    ways: dict[str, dict[str, Any]] = {
        name: {"engine": engine, "quant": quant, "file": files.size(engine, quant), "rounds": []}
        for name, (engine, quant) in WAYS.items()
    }
    result = {
        "schema": SCHEMA, "layers": arguments.layers, "tokens": arguments.tokens,
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": cpu_name(), "cores": available_cores(), "int8_dot": has_int8_dot()},
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "ways": list(ways.values()),
    }  # fmt: skip
    module = "benchmarks.speed.decoders"
    children = {name: Child(name, module, [*sys.argv[1:], "--child", name]) for name in ways}
    for turn in range(arguments.rounds + 1):
        rounds = _round(children, ways)
        if turn:  # the first round loads the files
            for name, way in ways.items():
                way["rounds"].append(rounds[name])
            print(f"round {turn} of {arguments.rounds} is done", file=sys.stderr, flush=True)
            if arguments.json:  # after each round, because a comparison may be cut short
                write_atomically(arguments.json, (json.dumps(result, indent=1) + "\n").encode())
    for child in children.values():
        child.close()
    print(table(result))


def _round(
    children: dict[str, Child], ways: dict[str, dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Return tokens per second of every way and stage, and keep the peaks of memory."""
    found: dict[str, dict[str, float]] = {name: {} for name in children}
    for stage in STAGES:
        for name, child in children.items():
            said = child.ask(stage)
            found[name][stage] = said["rate"]
            ways[name]["peak"] = said["peak"]
    return found


# ---- in a child


def _answer(files: Files, engine: str, quant: str, tokens: int) -> None:
    """Run each stage that standard input names; print its rate and the peak of memory."""

    def make() -> Callable[[str], dict[str, Any]]:
        context = _llama(files, quant) if engine == LLAMA else _onnx(files, quant)
        stages = _Stages(context, tokens)
        return lambda stage: {"rate": stages.run(stage), "peak": peak_bytes()}

    answer_lines(make)


def _onnx(files: Files, quant: str) -> Callable[[int, int], Decoding]:
    from benchmarks.decoders.context import PlainContext, kept_of, open_graph

    graph = open_graph(files.graph(quant), available_cores())
    kept = kept_of(files.gguf(GGUF_QUANTS[0]))
    return lambda cells, n_seq: PlainContext(graph, kept, cells, n_seq)


def _llama(files: Files, quant: str) -> Callable[[int, int], Decoding]:
    from edgeprism.language.model import LanguageModel

    model = LanguageModel(files.gguf(quant), threads=available_cores())
    return lambda cells, n_seq: model.context(cells * n_seq, n_seq=n_seq)


class _Stages:
    def __init__(self, make: Callable[[int, int], Decoding], tokens: int) -> None:
        self._tokens = tokens
        self._one, self._many = make(LONG + tokens, 1), make(SHORT + tokens, SEQUENCES)
        rng = np.random.default_rng(0)
        self._prompt = [int(i) for i in rng.integers(300, 400, LONG)]
        self._ready = False

    def run(self, stage: str) -> float:
        """Return the stage's tokens per second."""
        if stage.startswith("prefill"):
            n = {"prefill_short": SHORT, "prefill_long": LONG}[stage]
            self._one.keep(0, 0)
            start = time.perf_counter()
            self._one.prefill_tokens(0, self._prompt[:n], 0)
            self._one.logits()
            return n / (time.perf_counter() - start)
        if stage == "decode_one":  # after the longer prompt, which is in the cells since its stage
            return self._decode(self._one, 1, LONG)
        if not self._ready:
            for seq in range(SEQUENCES):
                self._many.prefill_tokens(seq, self._prompt[seq : seq + SHORT], 0)
            self._ready = True
        return self._decode(self._many, SEQUENCES, SHORT)

    def _decode(self, context: Decoding, n_seq: int, first: int) -> float:
        ids = self._prompt[:n_seq]
        for seq in range(n_seq):
            context.keep(seq, first)
        start = time.perf_counter()
        for position in range(first, first + self._tokens):
            context.step([(seq, token, position) for seq, token in enumerate(ids)])
            ids = [int(context.logits(seq).argmax()) for seq in range(n_seq)]
        return n_seq * self._tokens / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
