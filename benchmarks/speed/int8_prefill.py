"""Decide whether ONNX Runtime should prefill a picture's rows in 8 bits, in llama.cpp's place.

    python -m benchmarks.speed.int8_prefill [--rows 768] [--rounds 5] [--threads N]
        [--prefill-share 0.8] [--peak-gb 3.01]

The keys and values of rows that another engine computed can be handed to llama.cpp exactly, so any
engine may prefill. This measures what each would bring at PrismCaptioner-2B's shapes, in turns in
one run: the products of one layer in ONNX Runtime, without attention and norms, against whole
layers in llama.cpp, with both. So the ratios are the most that an exchange could bring, and the
memory, which counts the second copy of the weights alone, is the least. It is worth its price only
if a caption becomes 1.25 times as fast in at most 1.5 times the memory.

`--prefill-share` is prefill's share of a caption's time, `--peak-gb` the peak memory of a caption
today; the defaults were measured with random weights (benchmarks/README.md).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.machine import spread
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Request, Sampling
from edgeprism.machine.facts import available_cores, cpu_name, has_int8_dot
from edgeprism.machine.onnx_runtime import import_onnxruntime
from tests.helpers.hollow_lm import Shape, write_hollow_lm

WIDTH, WIDE, HEADS, SHARED_HEADS, HEAD, LAYERS = 2048, 8192, 16, 8, 128, 24
# [columns, rows] of a layer's matrices: queries, keys and values; output; gate; up; down
MATRICES = (
    (WIDTH, (HEADS + 2 * SHARED_HEADS) * HEAD), (WIDTH, WIDTH), (WIDTH, WIDE), (WIDTH, WIDE),
    (WIDE, WIDTH),
)  # fmt: skip
WEIGHTS = sum(columns * rows for columns, rows in MATRICES)  # of one layer
FASTER, LARGER = 1.25, 1.5  # what a caption must gain, and the memory that it may take
TRIED_LAYERS = 2  # of llama.cpp's models
Run = Callable[[], float]  # does the work once and returns its seconds
Nodes = tuple[list[onnx.NodeProto], dict[str, np.ndarray]]  # a product, and its weights


# ---- ONNX Runtime


def float_nodes(name: str, value: str, columns: int, rows: int) -> Nodes:
    """Return a product in float32, and its weights."""
    weight = np.zeros((columns, rows), np.float32)
    return [helper.make_node("MatMul", [value, name], [f"{name}_out"])], {name: weight}


def int8_nodes(name: str, value: str, columns: int, rows: int) -> Nodes:
    """Return a product of 8-bit rows and weights, with a scale for each row of the weights."""
    weights = {
        name: np.random.default_rng(0).integers(-64, 64, (columns, rows), np.int8),
        f"{name}_scale": np.full(rows, 0.01, np.float32),
    }
    nodes = [
        helper.make_node("MatMulInteger", [f"{value}_q", name, f"{value}_zero"], [f"{name}_sum"]),
        helper.make_node("Cast", [f"{name}_sum"], [f"{name}_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{value}_scale", f"{name}_scale"], [f"{name}_both"]),
        helper.make_node("Mul", [f"{name}_float", f"{name}_both"], [f"{name}_out"]),
    ]
    return nodes, weights


def block_nodes(bits: int, name: str, value: str, columns: int, rows: int) -> Nodes:
    """Return a product with weights in blocks of 32 numbers, whose sums are made in 8 bits."""
    blocks = columns // 32
    rng = np.random.default_rng(0)
    weights = {
        name: rng.integers(0, 256, (rows, blocks, 4 * bits), np.uint8),
        f"{name}_scale": np.full((rows, blocks), 0.01, np.float32),
    }
    node = helper.make_node(
        "MatMulNBits", [value, name, f"{name}_scale"], [f"{name}_out"], domain="com.microsoft",
        K=columns, N=rows, bits=bits, block_size=32, accuracy_level=4,
    )  # fmt: skip
    return [node], weights


KINDS: dict[str, tuple[Callable[[str, str, int, int], Nodes], float]] = {
    # name: (the nodes of a product, bytes of a weight)
    "ONNX Runtime float32": (float_nodes, 4),
    "ONNX Runtime int8": (int8_nodes, 1),
    "ONNX Runtime int8 in blocks": (lambda *a: block_nodes(8, *a), 1.125),
    "ONNX Runtime int4 in blocks": (lambda *a: block_nodes(4, *a), 0.625),
}


def layer_graph(kind: str) -> bytes:
    """Return the products of one layer; those with the same input share its 8-bit form."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {}
    values = {columns: f"rows_{columns}" for columns, _ in MATRICES}
    if kind == "ONNX Runtime int8":
        for value in values.values():
            outputs = [f"{value}_q", f"{value}_scale", f"{value}_zero"]
            nodes.append(helper.make_node("DynamicQuantizeLinear", [value], outputs))
    for number, (columns, rows) in enumerate(MATRICES):
        made, held = KINDS[kind][0](f"w{number}", values[columns], columns, rows)
        nodes += made
        weights |= held
    graph = helper.make_graph(
        nodes, "layer",
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", columns])
         for columns, value in values.items()],
        [helper.make_tensor_value_info(f"w{i}_out", TensorProto.FLOAT, None)
         for i in range(len(MATRICES))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return model


def onnx_run(kind: str, rows: int, threads: int) -> Run:
    """Return what runs one layer's products on `rows` rows."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(layer_graph(kind), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    inputs = {
        f"rows_{columns}": rng.standard_normal((rows, columns), dtype=np.float32)
        for columns in {columns for columns, _ in MATRICES}
    }

    def run() -> float:
        start = time.perf_counter()
        session.run(None, inputs)
        return time.perf_counter() - start

    return run


# ---- llama.cpp


def llama_run(path: Path, rows: int, threads: int) -> Run:
    """Return what prefills `rows` rows through one layer."""
    generator = Generator(LanguageModel(path, threads=threads))
    rng = np.random.default_rng(0)

    def run() -> float:
        # other rows each time: those of the last prompt are in the cache
        values = rng.standard_normal((rows, WIDTH), dtype=np.float32)
        request = Request((values, [1]), Sampling(max_tokens=1, stop_at_end=False))
        done = [event for event in generator.run([request]) if isinstance(event, Finished)]
        return done[0].prefill_ms / 1000 / TRIED_LAYERS

    return run


def hollow(folder: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """Write a model of a few layers."""
    shape = Shape(TRIED_LAYERS, WIDTH, WIDE, HEADS, SHARED_HEADS, HEAD, kind=kind)
    return write_hollow_lm(folder / f"{kind.name}.gguf", shape)


# ---- the decision


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=768, help="728 visual tokens and the text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--prefill-share", type=float, default=0.8)
    parser.add_argument("--peak-gb", type=float, default=3.01)
    options = parser.parse_args()
    quants = gguf.GGMLQuantizationType
    with tempfile.TemporaryDirectory() as folder:
        runs = {kind: onnx_run(kind, options.rows, options.threads) for kind in KINDS} | {
            f"llama.cpp {kind.name}": llama_run(
                hollow(Path(folder), kind), options.rows, options.threads
            )
            for kind in (quants.Q4_K, quants.Q8_0)
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(options.rounds + 1):
            for name, run in runs.items():
                spent = run()
                if number:  # the first round warms up
                    seconds[name].append(spent)
    dot = "with" if has_int8_dot() else "without"
    print(f"{cpu_name()} {dot} 8-bit dot products, {options.threads} threads; {options.rows} rows "
          f"through one layer of {WIDTH}/{WIDE}, {options.rounds} rounds in turns, "
          "minimum / median / maximum")  # fmt: skip
    operations = 2 * WEIGHTS * options.rows / 1e9
    for name, values in seconds.items():
        print(f"{name:<28} {spread([operations / v for v in values])} GOP/s")
    print_decision(seconds, options.prefill_share, options.peak_gb)


def print_decision(seconds: dict[str, list[float]], share: float, peak_gb: float) -> None:
    """Print, for each way, the most that a caption gains and the memory that it then takes."""
    theirs = [values for name, values in seconds.items() if name.startswith("llama.cpp")]
    for name, (_, per_weight) in KINDS.items():
        ratios = [min(them) / own for own, *them in zip(seconds[name], *theirs, strict=True)]
        ratio = sorted(ratios)[len(ratios) // 2]
        gain = 1 / (1 - share + share / ratio)
        larger = 1 + LAYERS * WEIGHTS * per_weight / 1e9 / peak_gb
        faults = ["too slow"] * (gain < FASTER) + ["too large"] * (larger > LARGER)
        verdict = " and ".join(faults) or "worth a whole trial"
        print(f"{name:<28} {spread(ratios)} times as fast as the faster llama.cpp; a caption at "
              f"most {gain:.2f} times (of {FASTER}), memory at least {larger:.3f} times "
              f"(of {LARGER}): {verdict}")  # fmt: skip


if __name__ == "__main__":
    main()
