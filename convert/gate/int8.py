"""Write int8 vision graphs that pass the gate, and measure graphs of any kind. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprism.convert.gate import judge
from edgeprism.convert.memory import give_memory_back
from edgeprism.convert.vision.pack_onnx import pack_onnx
from edgeprism.convert.vision.quantize import (
    INPUT,
    int8_damage,
    quantizable_nodes,
    quantize_int8,
)
from edgeprism.progress import Progress

# If int8 fails the gate, keep the worst 1/16 of the matrices in float, then 1/8, 1/4 and 1/2.
_FLOAT_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
AUTO_ERROR = 0.04  # relative error that "auto" allows: half of what the gate allows int8
_NOTHING = judge.VisionRun(np.empty(0), ())
Measured = tuple[dict[str, float], list[str]]  # figures, and failures as sentences


@dataclass
class VisionGate:
    """The tiles that variants of a graph are measured on, with the reference's visual tokens.

    Parameters:
        pixels: tiles, or an array of them for each shape.
        reference: [n, n_tokens, n_embd]; with tiles of several shapes [1, all, n_embd].
        progress: receives every stage.
        last: what the graph made that was measured last; nothing before the first one.
    """

    pixels: judge.Pixels
    reference: np.ndarray
    progress: Progress
    last: judge.VisionRun = _NOTHING

    @property
    def n_tiles(self) -> int:
        """How many tiles there are."""
        return sum(map(len, judge.batches(self.pixels)))

    def measure(self, path: Path, quant: str) -> Measured:
        """Return figures and failures of a graph's visual tokens against the reference."""
        self.progress.stage(f"Measuring vision {quant}", self.n_tiles)
        self.last = self.run(path, quant == "int8-full")
        figures, failures = judge.judge_vision(quant, self.last.tokens, self.reference)
        return {**figures, "pictures": float(self.n_tiles)}, failures

    def run(self, path: Path, full_range: bool) -> judge.VisionRun:
        """Run a graph on the tiles."""
        return judge.run_vision(path, self.pixels, full_range, self.progress)

    def sample(self) -> dict[str, np.ndarray]:
        """Return the graph's inputs for one tile."""
        return {INPUT: judge.batches(self.pixels)[0][:1]}

    def int8_damage(self, graph: Path, full_range: bool) -> list[str]:
        """Return the matrices of a float32 graph, first those that int8 damages most."""
        self.progress.stage("Finding the matrices that int8 damages most")
        return int8_damage(graph, self.sample(), full_range)


def write_int8(graph: Path, out: Path, quant: str, gate: VisionGate) -> Measured:
    """Quantize; while the gate fails, keep more of the most damaged matrices in float."""
    full_range = quant == "int8-full"
    n_nodes = len(quantizable_nodes(graph))
    worst: list[str] = []
    n_float = 0
    for share in (0.0, *_FLOAT_SHARES):
        if share and not worst:
            worst = gate.int8_damage(graph, full_range)
        n_float = round(share * n_nodes)
        gate.progress.stage(f"Quantizing vision to {quant}")
        out.unlink(missing_ok=True)
        quantize_int8(graph, out, full_range, set(worst[:n_float]))
        give_memory_back()
        figures, failures = gate.measure(out, quant)
        if not failures:
            break
    if n_float:
        gate.progress.say(f"vision {quant}: {n_float} of {n_nodes} matrices stay in float.")
    return {**figures, "float_matrices": float(n_float)}, failures


def write_auto(
    graph: Path,
    folder: Path,
    gate: VisionGate,
    name: str = "vision",
    share: float = 1.0,
    whole: str = "fp32",
) -> tuple[str, Measured]:
    """Quantize as many matrices to int8 as a relative error of `share` · AUTO_ERROR allows.

    The matrices that int8 damages most stay in float: as few as are enough, found by halving. If
    not a single one can be int8, the graph stays in float32, and the gate judges it as `whole`.

    Returns:
        The quantization, "int8" or "fp32", of the graph `folder`/`name`.QUANT.onnx, and what was
        measured of it.
    """
    out, progress, bound = folder / f"{name}.int8.onnx", gate.progress, share * AUTO_ERROR
    n_nodes = len(quantizable_nodes(graph))

    def attempt(in_float: list[str]) -> Measured:
        progress.stage(f"Quantizing {name}, {len(in_float)} of {n_nodes} matrices in float")
        out.unlink(missing_ok=True)
        quantize_int8(graph, out, full_range=False, keep_float=set(in_float))
        give_memory_back()
        return gate.measure(out, "int8")

    def is_close(measured: Measured) -> bool:
        return not measured[1] and measured[0]["relative_error"] <= bound

    found, worst = attempt([]), list[str]()
    too_few, enough = 0, 0 if is_close(found) else n_nodes
    if enough:
        worst = gate.int8_damage(graph, full_range=False)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        measured = attempt(worst[:middle])
        if is_close(measured):
            enough, found = middle, measured
        else:
            too_few = middle
    if enough == n_nodes:
        _remove(out)
        out = folder / f"{name}.fp32.onnx"
        pack_onnx(graph, out)
        progress.say(f"{name}: no matrix can be int8 within an error of {bound:g}.")
        figures, failures = gate.measure(out, whole)
        return "fp32", ({**figures, "error_bound": AUTO_ERROR}, failures)
    if enough:
        found = attempt(worst[:enough])  # the last attempt may have been another one
        progress.say(f"{name}: {enough} of {n_nodes} matrices stay in float.")
    figures, failures = found
    more = {"float_matrices": float(enough), "error_bound": AUTO_ERROR}
    return "int8", ({**figures, **more}, failures)


def _remove(graph: Path) -> None:
    """Remove a graph and the weights beside it."""
    graph.unlink()
    graph.with_name(f"{graph.name}.data").unlink(missing_ok=True)
