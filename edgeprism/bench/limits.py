"""What this machine can do, measured on the spot, and the floors that follow from it."""

from __future__ import annotations

from edgeprism.bench.report import Floor, Rates
from edgeprism.bench.work import LanguageWork, Operations
from edgeprism.machine.facts import available_cores
from edgeprism.machine.rates import measure_rates

_EDGE = 1024  # of the square matrices
_LEAST_BLOCK, _MOST_BLOCK = 256 << 10, 64 << 20  # bytes that each core reads again and again
_FLOAT32, _UINT8, _INT8, _INT32 = 1, 2, 3, 6  # ONNX's numbers of types
_IR_VERSION, _OPSET = 8, 17


def measure_limits(read_bytes: int, seconds: float = 1.5) -> Rates:
    """Measure the rates of all cores, in about `seconds`.

    Parameters:
        read_bytes: how much is read, as large as a model's weights: what fits into the caches is
            read faster, and so is a small model.

    The products are ONNX Runtime's; float32 is numpy's where that is faster.
    """
    cores = available_cores()
    block = min(max(read_bytes // cores, _LEAST_BLOCK), _MOST_BLOCK) // 4 * 4
    measured = measure_rates(2 * seconds / 3, block)
    float32 = max(product_rate("float32", seconds / 3), measured.gflops)
    return Rates(
        float32_gflops=float32,
        # small whole numbers can be multiplied as float32 too
        int8_gops=max(product_rate("int8", seconds / 3), float32),
        read_gbs=measured.read_gbs,
        read_bytes=block * cores,
    )


def product_rate(kind: str, seconds: float, threads: int | None = None) -> float:
    """Return 10^9 operations a second of a matrix product, "float32" or "int8".

    `threads` share it; None: one on each core.
    """
    import numpy as np

    from edgeprism.vision.onnx import time_graph

    rng = np.random.default_rng(0)
    shape = (_EDGE, _EDGE)
    if kind == "float32":
        graph = product_graph("MatMul", _FLOAT32, _FLOAT32, _FLOAT32)
        inputs: dict[str, np.ndarray] = {n: rng.random(shape, dtype=np.float32) for n in "ab"}
    else:
        graph = product_graph("MatMulInteger", _UINT8, _INT8, _INT32)
        inputs = {
            "a": rng.integers(0, 128, shape, dtype=np.uint8),
            "b": rng.integers(-64, 64, shape, dtype=np.int8),
        }
    return 2 * _EDGE**3 / time_graph(graph, inputs, threads or available_cores(), seconds) / 1e9


def product_graph(operator: str, a: int, b: int, c: int) -> bytes:
    """Return an ONNX model c = a · b of square matrices; a, b and c are ONNX's numbers of types.

    Source of the field numbers: onnx.proto (public).
    """
    node = _text(1, "a") + _text(1, "b") + _text(2, "c") + _text(4, operator)
    graph = (
        _field(1, node) + _text(2, "product")
        + _field(11, _matrix("a", a)) + _field(11, _matrix("b", b)) + _field(12, _matrix("c", c))
    )  # fmt: skip
    opset = _text(1, "") + _number(2, _OPSET)
    return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, opset)


def _matrix(name: str, kind: int) -> bytes:
    edge = _field(1, _number(1, _EDGE))
    tensor = _number(1, kind) + _field(2, edge + edge)
    return _text(1, name) + _field(2, _field(1, tensor))


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode("ascii"))


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


# ---- floors


def operations_ms(work: Operations, rates: Rates) -> float:
    """Return the milliseconds of `work` at the machine's rates."""
    return (work.float32 / rates.float32_gflops + work.int8 / rates.int8_gops) / 1e6


def time_floor(work: Operations, rates: Rates, measured_ms: float) -> Floor:
    """Return the floor of a stage of matrix products that took `measured_ms`."""
    least = operations_ms(work, rates)
    parts = [
        f"{count / 1e9:.3g} {unit} at {rate:.0f} {unit}/s"
        for count, unit, rate in (
            (work.float32, "GFLOP", rates.float32_gflops),
            (work.int8, "GOP of int8", rates.int8_gops),
        )
        if count
    ]
    return Floor(least, least / max(measured_ms, 1e-9), " and ".join(parts))


def token_floor(work: LanguageWork, rates: Rates, tokens_per_s: float) -> Floor:
    """Return the highest rate of new tokens: weights are read once, products made once."""
    reading = work.token_bytes / rates.read_gbs / 1e6
    least = max(reading, operations_ms(work.token(), rates))
    basis = f"{work.token_bytes / 1e6:.3g} MB of weights a token at {rates.read_gbs:.1f} GB/s"
    if least > reading:
        basis = f"{work.token().total / 1e9:.3g} G operations a token"
    return Floor(1000 / least, tokens_per_s * least / 1000, basis)
