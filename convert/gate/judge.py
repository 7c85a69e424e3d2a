"""The gate: does the bundle compute what the checkpoint does? Limits, measuring, judging.

The gate runs vision graphs on its pictures and compares their visual tokens with the torch
reference's. It runs the GGUF teacher-forced on its texts and compares the logits with the
reference's. The figures go into the manifest whether they pass or not.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeprism.convert.vision.quantize import FEATURES, IDS, INPUT
from edgeprism.machine.facts import available_cores
from edgeprism.progress import Progress


@dataclass(frozen=True)
class VisionLimit:
    """‖y − r‖ / ‖r‖ over all pictures, and the mean cosine of a visual token with its reference."""

    relative_error: float
    cosine: float


@dataclass(frozen=True)
class LmLimit:
    """Relative error of centred logits, mean KL divergence in nats, and top-1 agreement."""

    relative_error: float
    kl: float
    top1: float


# fp32      the same sums in another order: 1e-6 to 1e-5 is usual. An extra layer, a shifted patch
#           or a transposed matrix gives far more than 1e-3.
# fp16      11 bits in every product of two dozen layers: 1e-3 to 1e-2 is usual.
# int8      8-bit activations and 7- or 8-bit weights: 0.02 to 0.06 is usual; saturation on a CPU
#           without VNNI gives 0.3. At 0.08 greedy captions rarely change.
VISION_LIMITS = {
    "fp32": VisionLimit(1e-3, 0.99999),
    "fp16": VisionLimit(2e-2, 0.9995),
    "int8": VisionLimit(0.08, 0.995),
    "int8-full": VisionLimit(0.08, 0.995),
}

# F32       as fp32 above. F16: weights and activations are rounded to 11 bits. The other limits
#           follow the width of the weights (a 4-bit weight errs by about 8 % of its size, which two
#           dozen layers partly average out); an unpacking mistake gives a relative error near 1.
# top-1 counts positions where the reference's best two logits are clearly apart: by more than twice
# the standard error that the same limit allows in their difference (√2 × relative_error × rms of
# the centred logits). At closer positions the winner says nothing about the conversion, and with
# random weights most positions are close. The rate over all positions is recorded as well.
LM_LIMITS = {
    "F32": LmLimit(1e-3, 1e-4, 0.999),
    "F16": LmLimit(2e-2, 1e-3, 0.99),
    "Q8_0": LmLimit(6e-2, 1e-2, 0.98),
    "Q6_K": LmLimit(0.12, 4e-2, 0.96),
    "Q5_K_M": LmLimit(0.2, 8e-2, 0.94),
    "Q5_K_S": LmLimit(0.2, 8e-2, 0.94),
    "Q5_1": LmLimit(0.2, 8e-2, 0.94),
    "Q5_0": LmLimit(0.2, 8e-2, 0.94),
    "Q4_K_M": LmLimit(0.35, 0.2, 0.90),
    "Q4_K_S": LmLimit(0.35, 0.2, 0.90),
    "Q4_1": LmLimit(0.35, 0.2, 0.90),
    "Q4_0": LmLimit(0.35, 0.2, 0.90),
}


_CLEAR = 2 * 2**0.5


@dataclass
class Verdict:
    """The measured figures, {check: {figure: number}}, and the failures as sentences."""

    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # the checks that have failures

    def add(self, check: str, figures: dict[str, float], failures: list[str]) -> None:
        """Record a check's figures, and its failures with its name."""
        # JSON has no NaN or infinity; the failures name the figures that are not finite
        finite = {name: float(value) for name, value in figures.items() if np.isfinite(value)}
        self.figures[check] = finite
        self.failures += [f"{check}: {failure}" for failure in failures]
        self.failed += [check] * bool(failures)


# quantization → the next finer one with another limit; those of the float types have none, because
# what fails with them is no matter of rounding
FINER = {
    "int8": "fp16", "int8-full": "fp16", "fp16": "fp32",
    "Q8_0": "F16", "Q6_K": "Q8_0", "F16": "F32",
}  # fmt: skip
_PARTS = {
    "vision": "the vision graph",
    "lm": "the language model",
    "rows": "what its picture rows go through",
}


def parts_of(checks: Sequence[str]) -> list[str]:
    """Return which parts the checks `vision QUANT`, `lm QUANT`, `rows QUANT` and others judge."""
    parts = []
    for check in checks:
        kind, _, quant = check.partition(" ")
        parts.append(f"{_PARTS[kind]} ({quant})" if kind in _PARTS else f"the {check}")
    return parts


def remedy(checks: Sequence[str], lm_quants: Collection[str] = LM_LIMITS) -> str:
    """Return what to try where `checks` failed, as a sentence with the options' keywords.

    `lm_quants` are those that the family's language model can have.
    """
    options = []
    for check in checks:
        kind, _, quant = check.partition(" ")
        if kind == "vision" and quant in FINER:
            options.append(f"`vision_quants={FINER[quant]}`")
        elif kind in ("lm", "rows") and quant != "F32":
            finer = FINER.get(quant, "Q6_K")
            options.append(f"`lm_quant={finer if finer in lm_quants else 'F32'}`")
    if len(options) < len(checks):
        return (
            "No quantization explains that: the checkpoint may be damaged or not what its files "
            "say; if it is as published, please report it."
        )
    return f"Try {' and '.join(dict.fromkeys(options))}."


# tiles [n, height, width, channels], or an array of them for each shape
Pixels = np.ndarray | Sequence[np.ndarray]


def batches(pixels: Pixels) -> list[np.ndarray]:
    """Return what a graph runs on at a time: one tile, but the last two of one array together."""
    if not isinstance(pixels, np.ndarray):
        return list(pixels)
    starts = [*range(len(pixels) - 2), len(pixels) - 2] if len(pixels) > 1 else [0]
    return [pixels[i:j] for i, j in zip(starts, [*starts[1:], len(pixels)], strict=True)]


@dataclass(frozen=True)
class VisionRun:
    """What a graph made of some tiles.

    Parameters:
        tokens: visual tokens [n, n_tokens, n_embd]; with tiles of several shapes [1, all, n_embd].
        seconds: of each of `batches`, in their order.
    """

    tokens: np.ndarray
    seconds: tuple[float, ...]


def run_vision(path: Path, pixels: Pixels, full_range: bool, progress: Progress) -> VisionRun:
    """Run a graph on tiles with all cores; the last two tiles of one shape run as one batch."""
    run = _runner(path, full_range)
    outputs, seconds = [], []
    for batch in batches(pixels):
        began = time.perf_counter()
        made = run({INPUT: np.ascontiguousarray(batch)})
        # those of a picture and of a frame; a newline's row is no [n, n_tokens, n_embd]
        outputs.append(np.concatenate([rows for rows in made if rows.ndim == 3], axis=1))
        seconds.append(time.perf_counter() - began)
        progress.advance(len(batch))
    if isinstance(pixels, np.ndarray):
        return VisionRun(np.concatenate(outputs), tuple(seconds))
    tokens = np.concatenate([rows.reshape(1, -1, rows.shape[-1]) for rows in outputs], axis=1)
    return VisionRun(tokens, tuple(seconds))


def run_connector(
    path: Path, features: np.ndarray, ids: Sequence[np.ndarray], full_range: bool
) -> np.ndarray:
    """Run a connector's graph with all cores, for each tile's features and its text's ids [1, T].

    Returns visual tokens [n, n_tokens, n_embd].
    """
    run = _runner(path, full_range)
    tiles = zip(np.split(features, len(features)), ids, strict=True)
    return np.concatenate([run({FEATURES: x, IDS: text})[0] for x, text in tiles])


def _runner(path: Path, full_range: bool) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """Return what runs a graph on its inputs, with all cores, and returns its outputs."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = available_cores()  # by itself it counts those of others too
    if full_range:
        # A full-range graph is for CPUs with VNNI. On other CPUs this option makes the products
        # exact (and slow), so that the gate measures the graph and not this machine.
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        made: list[np.ndarray] = session.run(None, inputs)
        return made

    return run


def judge_vision(
    quant: str, tokens: np.ndarray, reference: np.ndarray
) -> tuple[dict[str, float], list[str]]:
    """Return figures and failures of visual tokens [n, n_tokens, n_embd] against the reference."""
    limit = VISION_LIMITS[quant]
    if tokens.shape != reference.shape:
        return {}, [f"shape {list(tokens.shape)}, the reference has {list(reference.shape)}"]
    norm = np.linalg.norm(reference)
    error = np.linalg.norm(tokens - reference) / norm if norm else math.nan  # which fails
    lengths = np.linalg.norm(tokens, axis=-1) * np.linalg.norm(reference, axis=-1)
    cosines = (tokens * reference).sum(axis=-1) / np.maximum(lengths, 1e-20)
    figures = {
        "relative_error": float(error),
        "mean_cosine": float(cosines.mean()),
        "min_cosine": float(cosines.min()),
    }
    failures = []
    # `not … <=` rather than `>`: a NaN must fail
    if not error <= limit.relative_error:
        failures.append(f"relative error {error:.3g} > {limit.relative_error:g}")
    if not cosines.mean() >= limit.cosine:
        failures.append(f"mean cosine {cosines.mean():.6f} < {limit.cosine:g}")
    return figures, failures


def judge_lm(
    quant: str, logits: list[np.ndarray], reference: list[np.ndarray]
) -> tuple[dict[str, float], list[str]]:
    """Return figures and failures of each text's logits [n_tokens, n_vocab]."""
    limit = LM_LIMITS[quant]
    difference = norm = kl = 0.0
    n = n_equal = n_clear = n_clear_equal = 0
    for measured, expected in zip(logits, reference, strict=True):
        y, r = (rows - rows.mean(axis=-1, keepdims=True) for rows in (measured, expected))
        difference += float(np.square(y - r).sum(dtype=np.float64))
        norm += float(np.square(r).sum(dtype=np.float64))
        kl += float(_kl(r, y).sum())
        best_two = np.partition(r, -2, axis=-1)[:, -2:]  # [n_tokens, 2]
        allowed = limit.relative_error * np.sqrt(np.square(r).mean(axis=-1))
        clear = best_two[:, 1] - best_two[:, 0] > _CLEAR * allowed
        equal = y.argmax(axis=-1) == r.argmax(axis=-1)
        n, n_equal = n + len(r), n_equal + int(equal.sum())
        n_clear += int(clear.sum())
        n_clear_equal += int((equal & clear).sum())
    # logits that are all alike say nothing: not a number, which fails
    error = (difference / norm) ** 0.5 if norm else math.nan
    top1 = n_clear_equal / n_clear if n_clear else 1.0
    figures = {
        "relative_error": error,
        "mean_kl": kl / n,
        "top1": top1,
        "top1_positions": n_clear,
        "top1_everywhere": n_equal / n,
        "positions": n,
    }
    failures = []
    if not error <= limit.relative_error:
        failures.append(f"relative error of the logits {error:.3g} > {limit.relative_error:g}")
    if not kl / n <= limit.kl:
        failures.append(f"mean KL {kl / n:.3g} nats > {limit.kl:g}")
    if not top1 >= limit.top1:
        failures.append(f"top-1 agreement {top1:.2%} < {limit.top1:.1%}")
    return figures, failures


def _kl(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return KL(reference ‖ logits) in nats for each row of logits."""
    p, q = _log_softmax(reference), _log_softmax(logits)
    divergence: np.ndarray = (np.exp(p) * (p - q)).sum(axis=-1)
    return divergence


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def judge_tokenizer(
    ids: list[list[int]], reference: list[list[int]]
) -> tuple[dict[str, float], list[str]]:
    """Return figures and failures: every text must give the reference tokenizer's ids."""
    different = sum(a != b for a, b in zip(ids, reference, strict=True))
    figures = {"texts": float(len(ids)), "different": float(different)}
    return figures, [f"{different} of {len(ids)} texts are cut differently"] if different else []
