"""Write int8 vision graphs that pass the gate, and measure graphs of any kind. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeprism.convert.gate import judge
from edgeprism.convert.memory import give_memory_back
from edgeprism.convert.vision.pack_onnx import pack_onnx
from edgeprism.convert.vision.quantize import int8_damage, quantizable_nodes, quantize_int8
from edgeprism.progress import Progress

# If int8 fails the gate, keep the worst 1/16 of the matrices in float, then 1/8, 1/4 and 1/2.
_FLOAT_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
AUTO_ERROR = 0.04  # relative error that "auto" allows: half of what the gate allows int8
Measured = tuple[dict[str, float], list[str]]  # figures, and failures as sentences


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


def write_auto(graph: Path, folder: Path, pixels: np.ndarray, reference: np.ndarray,
               progress: Progress) -> tuple[str, Measured]:  # fmt: skip
    """Quantize as many matrices to int8 as a relative error of AUTO_ERROR allows.

    The matrices that int8 damages most stay in float: as few as are enough, found by halving. If
    not a single one can be int8, the graph stays in float32.

    Returns:
        The quantization, "int8" or "fp32", of the graph `folder`/vision.QUANT.onnx, and what was
        measured of it.
    """
    out = folder / "vision.int8.onnx"
    n_nodes = len(quantizable_nodes(graph))

    def attempt(in_float: list[str]) -> Measured:
        progress.stage(f"Quantizing vision, {len(in_float)} of {n_nodes} matrices in float")
        out.unlink(missing_ok=True)
        quantize_int8(graph, out, full_range=False, keep_float=set(in_float))
        give_memory_back()
        return measure_vision(out, "int8", pixels, reference, progress)

    def is_close(measured: Measured) -> bool:
        return not measured[1] and measured[0]["relative_error"] <= AUTO_ERROR

    found, worst = attempt([]), list[str]()
    too_few, enough = 0, 0 if is_close(found) else n_nodes
    if enough:
        progress.stage("Finding the matrices that int8 damages most")
        worst = int8_damage(graph, pixels, full_range=False)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        measured = attempt(worst[:middle])
        if is_close(measured):
            enough, found = middle, measured
        else:
            too_few = middle
    if enough == n_nodes:
        _remove(out)
        out = folder / "vision.fp32.onnx"
        pack_onnx(graph, out)
        progress.say(f"vision: no matrix can be int8 within an error of {AUTO_ERROR:g}.")
        return "fp32", measure_vision(out, "fp32", pixels, reference, progress)
    if enough:
        found = attempt(worst[:enough])  # the last attempt may have been another one
        progress.say(f"vision: {enough} of {n_nodes} matrices stay in float.")
    figures, failures = found
    more = {"float_matrices": float(enough), "error_bound": AUTO_ERROR}
    return "int8", ({**figures, **more}, failures)


def _remove(graph: Path) -> None:
    """Remove a graph and the weights beside it."""
    graph.unlink()
    graph.with_name(f"{graph.name}.data").unlink(missing_ok=True)
