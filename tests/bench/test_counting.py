"""What is counted and read: operations, bytes, sensors, files of results."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeprism.bench.floors import Work, with_floors
from edgeprism.bench.limits import product_graph, token_floor
from edgeprism.bench.report import Rates, Stage, Tokens, quantile, read_report, summarize
from edgeprism.bench.work import Operations, language_work, nodes_to_operations
from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.bundle.open import open_bundle
from edgeprism.errors import ModelError, UsageError
from edgeprism.machine.load import LoadMeter
from edgeprism.machine.sensors import clock_mhz, temperature_c, throttle_count
from edgeprism.vision.onnx import profile_graph, time_graph
from tests.helpers import bundles
from tests.helpers.hollow_lm import Shape, Type, write_hollow_lm

RATES = Rates(float32_gflops=100.0, int8_gops=200.0, read_gbs=10.0, read_bytes=1)


# ---- operations


def operations_by_inference(path: Path) -> float:
    """The operations of all matrix products, from shapes that the package onnx infers."""
    model = onnx.load(str(path))
    graph = model.graph
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return math.fsum(
        2.0 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        for node in graph.node
        if node.op_type in ("MatMul", "MatMulInteger")
    )


def test_operations_of_an_int8_graph() -> None:
    bundle = open_bundle("nano")
    path = bundle.file("vision.int8.onnx")
    size = bundle.manifest.image.size
    counted = nodes_to_operations(profile_graph(path, np.zeros((1, size, size, 3), np.uint8)))
    assert counted.total == operations_by_inference(path)
    assert counted.int8 > counted.float32 > 0


def test_operations_of_a_float_graph(random_bundle: Path) -> None:
    tile = np.zeros((1, bundles.SIZE, bundles.SIZE, 3), np.uint8)
    counted = nodes_to_operations(profile_graph(random_bundle / "vision.fp32.onnx", tile))
    products = bundles.N_TOKENS * bundles.PATCH**2 * 3 * bundles.N_EMBD
    assert counted == Operations(float32=2.0 * products)


def test_a_graph_that_does_not_run(tmp_path: Path) -> None:
    broken = tmp_path / "graph.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"graph\.onnx"):
        profile_graph(broken, np.zeros((1, 2, 2, 3), np.uint8))


def test_work_of_a_language_model(random_bundle: Path) -> None:
    work = language_work(read_gguf_header(random_bundle / "lm.gguf"))
    shape = bundles.LmShape()
    weights = shape.n_layer * (4 * shape.n_embd**2 + 3 * shape.n_embd * shape.n_ff)
    head = bundles.N_VOCAB * shape.n_embd
    norms = (2 * shape.n_layer + 1) * shape.n_embd
    assert work.row == Operations(float32=2.0 * weights)
    assert work.head == Operations(float32=2.0 * head)
    assert work.attention == 4.0 * shape.n_embd * shape.n_layer
    assert work.token_bytes == 4 * (weights + head + norms)  # one row of the embedding besides
    # the second row attends to both
    assert work.prefill(2).total == 2 * (2 * weights + head) + 3 * work.attention


def test_work_of_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    """A prompt's rows pass through the one, new tokens through the other."""
    shape = Shape(2, 64, 96, 4, 4, 32, kind=Type.F32, table=Type.F32)
    work = language_work(read_gguf_header(write_hollow_lm(tmp_path / "t5.gguf", shape, "t5")))
    attention, feeding, head = 4 * 64 * 4 * 32, 3 * 64 * 96, 3000 * 64
    assert work.row == Operations(float32=2.0 * 2 * (attention + feeding))
    assert work.step == Operations(float32=2.0 * 2 * (2 * attention + feeding))
    assert work.token().total == work.step.total + 2.0 * head
    assert work.prefill(3).total > 3 * work.row.total
    norms, biases = (2 * 3 + 1) * 64, 32 * 4
    assert work.token_bytes == 4 * (2 * (2 * attention + feeding) + head + norms + biases)


def test_quantized_weights_count_as_int8() -> None:
    """nano's head is its embedding, and its bytes are nearly all of the file's."""
    path = open_bundle("nano").file("lm.gguf")
    header = read_gguf_header(path)
    work = language_work(header)
    assert work.row.int8 > 0 == work.row.float32
    sizes = {name: header.tensor_bytes(name) for name in header.tensors}
    unused = 0 if "output.weight" not in sizes else sizes["token_embd.weight"]
    assert work.token_bytes == sum(sizes.values()) - unused
    assert 0.5 * path.stat().st_size < sum(sizes.values()) < path.stat().st_size


def test_the_graphs_that_measure_products() -> None:
    for operator, kinds, types in (("MatMul", (1, 1, 1), (np.float32, np.float32)),
                                   ("MatMulInteger", (2, 3, 6), (np.uint8, np.int8))):  # fmt: skip
        graph = product_graph(operator, *kinds)
        model = onnx.load_from_string(graph)
        onnx.checker.check_model(model, full_check=True)
        (dims,) = {tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
                   for value in (*model.graph.input, *model.graph.output)}  # fmt: skip
        a, b = (np.ones(dims, kind) for kind in types)
        assert time_graph(graph, {"a": a, "b": b}, 1, 0.01) > 0


# ---- floors


def stage(name: str, *values: float, group: str = "warm", unit: str = "ms") -> Stage:
    return summarize(group, name, values, unit)


def test_floors(random_bundle: Path) -> None:
    language = language_work(read_gguf_header(random_bundle / "lm.gguf"))
    work = Work(Operations(float32=1e9, int8=2e9), language)  # 10 ms, and 10 ms
    stages = [stage("encode", 40.0), stage("first_text", 50.0), stage("load", 9.0, group="cold"),
              stage("focus", 9.0, group="reasoner"), stage("decode", 30.0), stage("whole", 100.0),
              stage("throughput", 5.0, group="folder", unit="pictures/s")]  # fmt: skip
    found = {s.name: s.floor for s in with_floors(stages, work, RATES, Tokens(16, 4, 10))}
    assert found["load"] is found["focus"] is None
    encode, first, whole = found["encode"], found["first_text"], found["whole"]
    decode, throughput = found["decode"], found["throughput"]
    assert encode
    assert first
    assert whole
    assert decode
    assert throughput
    assert encode.value == pytest.approx(20)
    assert encode.share == pytest.approx(0.5)
    prefill = language.prefill(20).float32 / 100e6
    assert first.value == pytest.approx(20 + prefill)
    assert decode.value == pytest.approx(10 * language.token_bytes / 10e6)
    assert whole.value == pytest.approx(first.value + decode.value)
    assert throughput.value == pytest.approx(1000 / whole.value)
    rate = token_floor(language, RATES, 100.0)
    assert rate.share == pytest.approx(100.0 / rate.value)


def test_no_floor_of_an_encoder_that_is_not_known(random_bundle: Path) -> None:
    work = Work(None, language_work(read_gguf_header(random_bundle / "lm.gguf")))
    (found,) = with_floors([stage("encode", 40.0)], work, RATES, Tokens(16, 4, 10))
    assert found.floor is None


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_quantiles(share: float) -> None:
    values = list(np.random.default_rng(0).random(13))
    assert quantile(values, share) == pytest.approx(np.quantile(values, share))


def test_the_slow_end_of_a_rate_is_low() -> None:
    rate = stage("decode_rate", *map(float, range(1, 101)), unit="tokens/s")
    time = stage("decode", *map(float, range(1, 101)))
    assert rate.p95 == pytest.approx(5.95)
    assert time.p95 == pytest.approx(95.05)


# ---- sensors


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="ascii")


def test_clocks_and_heat(tmp_path: Path) -> None:
    assert clock_mhz(tmp_path, tmp_path / "none") is None
    assert temperature_c(tmp_path) is throttle_count(tmp_path) is None
    write(tmp_path / "cpuinfo", "cpu MHz\t\t: 2000.5\nmodel name : x\ncpu MHz : 1000.5")
    assert clock_mhz(tmp_path, tmp_path / "cpuinfo") == 1500.5
    for core, khz in enumerate((1_000_000, 3_000_000, 2_000_000)):
        write(tmp_path / f"cpu{core}" / "cpufreq" / "scaling_cur_freq", khz)
        write(tmp_path / f"cpu{core}" / "thermal_throttle" / "core_throttle_count", core)
    assert clock_mhz(tmp_path, tmp_path / "cpuinfo") == 2000
    assert throttle_count(tmp_path) == 3
    for zone, degrees in enumerate((41_000, 63_500)):
        write(tmp_path / f"thermal_zone{zone}" / "temp", degrees)
    write(tmp_path / "thermal_zone2" / "temp", "N/A")
    assert temperature_c(tmp_path) == 63.5


def test_a_system_that_does_not_tell_its_load(tmp_path: Path) -> None:
    assert LoadMeter(tmp_path / "none").others() is None


# ---- files of results


@pytest.mark.parametrize(("text", "fault"), [("{", "not JSON"), ("[]", "an object is expected"),
                                             ('{"schema": 1}', "version: missing")])  # fmt: skip
def test_files_that_hold_no_results(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"old\.json.*{fault}"):
        read_report(path)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json"):
        read_report(tmp_path / "none.json")
