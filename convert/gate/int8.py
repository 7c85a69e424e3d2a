"""Write int8 vision graphs that pass the gate, and measure graphs of any kind. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeprism.convert.gate import judge
from edgeprism.convert.memory import give_memory_back
from edgeprism.convert.vision.quantize import int8_damage, quantizable_nodes, quantize_int8
from edgeprism.progress import Progress

# If int8 fails the gate, keep the worst 1/16 of the matrices in float, then 1/8, 1/4 and 1/2.
_FLOAT_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)


def measure_vision(path: Path, quant: str, pixels: judge.Pixels, reference: np.ndarray,
                   progress: Progress) -> tuple[dict[str, float], list[str]]:  # fmt: skip
    """Return figures and failures of a graph's visual tokens against `reference`."""
    progress.stage(f"Measuring vision {quant}", sum(map(len, judge.batches(pixels))))
    tokens = judge.run_vision(path, pixels, quant == "int8-full", progress)
    return judge.judge_vision(quant, tokens, reference)


def write_int8(graph: Path, out: Path, quant: str, pixels: judge.Pixels, reference: np.ndarray,
               progress: Progress) -> tuple[dict[str, float], list[str]]:  # fmt: skip
    """Quantize; while the gate fails, keep more of the most damaged matrices in float."""
    full_range = quant == "int8-full"
    n_nodes = len(quantizable_nodes(graph))
    worst: list[str] = []
    n_float = 0
    for share in (0.0, *_FLOAT_SHARES):
        if share and not worst:
            progress.stage("Finding the matrices that int8 damages most")
            worst = int8_damage(graph, judge.batches(pixels)[0][:1], full_range)
        n_float = round(share * n_nodes)
        progress.stage(f"Quantizing vision to {quant}")
        out.unlink(missing_ok=True)
        quantize_int8(graph, out, full_range, set(worst[:n_float]))
        give_memory_back()
        figures, failures = measure_vision(out, quant, pixels, reference, progress)
        if not failures:
            break
    if n_float:
        progress.say(f"vision {quant}: {n_float} of {n_nodes} matrices stay in float.")
    return {**figures, "float_matrices": float(n_float)}, failures
