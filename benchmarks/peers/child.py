"""One engine of the comparison in a process of its own.

    python -m benchmarks.peers.child JSON

It imports the libraries of its own engine alone, because its peak of memory is measured. It looks
at the picture of each seed on standard input, and prints a line of JSON for each.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.children import answer_lines
from benchmarks.peers.engine import VISUAL_TOKENS, Engine
from benchmarks.peers.weights import GRAPH_QUANTS, MMPROJ_QUANTS, Weights, noise
from edgeprism.machine.peak_memory import peak_bytes

OWN, FEWER = "EdgePrism", f"EdgePrism, {VISUAL_TOKENS} rows"
# of each engine: its module here, its class, and the types of its files
ENGINES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    OWN: ("edgeprism", "EdgePrism", GRAPH_QUANTS),
    FEWER: ("edgeprism", "FewerRows", GRAPH_QUANTS[1:]),
    "libmtmd": ("libmtmd", "Libmtmd", MMPROJ_QUANTS),
    "OpenVINO": ("openvino_runtime", "OpenVino", ("fp32", "int8 weights", "int8")),
    "transformers": ("transformers_torch", "Transformers", ("float32", "bfloat16")),
}


def engine_class(name: str) -> type[Engine]:
    """Import an engine of `ENGINES`."""
    module, kind, _ = ENGINES[name]
    return cast(
        "type[Engine]", getattr(importlib.import_module(f"benchmarks.peers.{module}"), kind)
    )


def answer(asked: dict[str, Any]) -> None:
    """Look at the picture of each seed on standard input; print times, rows' file and memory."""

    def make() -> Callable[[str], dict[str, Any]]:
        weights = Weights(Path(asked["work"]), asked["size"])
        ready = engine_class(asked["engine"])(weights, asked["quant"], asked["setting"])

        def look(seed: str) -> dict[str, Any]:
            seconds, rows = ready.look(noise(int(seed), tuple(asked["picture"])))
            np.save(asked["rows"], rows)
            return {"seconds": asdict(seconds), "peak": peak_bytes()}

        return look

    answer_lines(make)


if __name__ == "__main__":
    answer(json.loads(sys.argv[1]))
