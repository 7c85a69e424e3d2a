"""Measure the time to the first token of a pair, with llama.cpp's encoder and with its own graph.

    python -m benchmarks.speed.pair_encoders --size smolvlm-256m --work FOLDER [--rounds 5]

The same two files at true dimensions, with random weights: an mmproj in F16 as it is published, and
a language model in Q8_0. `convert mmproj` makes the bundle, so the graph passed its gate. Every
engine runs in a process of its own, which captions a new picture of noise with one token when it
is its turn; so all engines share the machine's good and bad minutes, and each has its own peak of
resident memory. libmtmd runs with and without flash attention; its better median counts. A turn is
printed when it is done.

Times are the record's own: preparing, encoding, prefill, and all until the first token. They
exclude loading and the first picture. A row that misses its aim is printed with the stage that
takes most of the graph's time. The last lines say how near the graph is to what this machine can
do: its multiplications and additions, counted, over the rates of products of large matrices.

The language models of `gemma3-4b`, `internvl-2b` and `qwen2.5-vl-3b` have their width but fewer
layers, because billions of parameters would not be made here in minutes; the script prints what the
prefill of all layers would take, and the ratio with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from benchmarks.machine import spread
from edgeprism.bench.limits import measure_limits, operations_ms
from edgeprism.bench.report import Rates
from edgeprism.bench.work import Operations, language_work, nodes_to_operations
from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.mmproj.speed_up import speed_up_pair
from edgeprism.convert.options import PairOptions
from edgeprism.machine.facts import available_cores, cpu_name, has_int8_dot
from edgeprism.picture.layout import picture_to_layout
from edgeprism.progress import Progress
from edgeprism.vision.onnx import profile_graph
from edgeprism.vision.pair import write_pair
from tests.helpers import bundles, mmprojs
from tests.language.test_generator import multi_axis

STAGES = ("preprocess", "encode", "prefill", "first token")
GRAPH, FLASH, NO_FLASH = "graph", "libmtmd, flash attention", "libmtmd"


@dataclass(frozen=True)
class Size:
    """A pair's dimensions; `lm_layers` of all the model's `lm_all_layers` are made."""

    projector: str
    tower: tuple[int, int, int, int]  # layers, width, heads, ffn
    size: int
    patch: int
    merge: int
    lm: bundles.LmShape
    lm_all_layers: int
    aim: float


SIZES = {
    "smolvlm-256m": Size("idefics3", (12, 768, 12, 3072), 512, 16, 4,
                         bundles.LmShape(576, 9, 30, 1536, 8192), 30, 2.5),
    "smolvlm-500m": Size("idefics3", (12, 768, 12, 3072), 512, 16, 4,
                         bundles.LmShape(960, 15, 32, 2560, 8192), 32, 2.5),
    "gemma3-4b": Size("gemma3", (27, 1152, 16, 4304), 896, 14, 4,
                      bundles.LmShape(2560, 20, 3, 10240, 8192), 34, 2.0),
    "internvl-2b": Size("internvl", (24, 1024, 16, 4096), 448, 14, 2,
                        bundles.LmShape(2048, 16, 3, 8192, 8192), 24, 2.0),
    "qwen2.5-vl-3b": Size(mmprojs.QWEN25.projector, (32, 1280, 16, 3420), 560, 14, 2,
                          bundles.LmShape(2048, 16, 3, 11008, 8192), 36, 2.0),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="smolvlm-256m")
    parser.add_argument("--work", type=Path, help="where files are made and kept")
    parser.add_argument("--picture", metavar="WxH", default="1024x768")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument(
        "--flash-only",
        action="store_true",
        help="leave out libmtmd without flash attention, which is slower for large towers",
    )
    parser.add_argument("--engine", help=argparse.SUPPRESS)  # in the children
    arguments = parser.parse_args()
    if arguments.engine:
        answer(arguments)
        return
    size = SIZES[arguments.size]
    arguments.work.mkdir(parents=True, exist_ok=True)
    make_files(arguments.work / arguments.size, size)
    print(f"{arguments.size}, {arguments.picture} pixels, {arguments.rounds} rounds, "
          f"{arguments.threads} threads, {cpu_name()}")  # fmt: skip
    print(f"8-bit dot products: {has_int8_dot()}", flush=True)
    rates = measure_limits((arguments.work / arguments.size / "lm.gguf").stat().st_size)
    said = measure(arguments)
    report(said, size)
    report_floors(said, arguments, rates)


# ---- the files


def make_files(folder: Path, size: Size) -> None:
    """Write lm.gguf, mmproj.gguf and the bundles pair/ and graph/, unless they are there."""
    if (folder / "graph" / "manifest.json").is_file():
        return
    folder.mkdir(exist_ok=True)
    lm, mmproj = folder / "lm.gguf", folder / "mmproj.gguf"
    parts = bundles.lm_parts(shape=size.lm)
    if size.projector in mmprojs.ROTATING:
        parts = multi_axis(parts, (16, 24, 24, 0))
    parts.metadata["tokenizer.ggml.add_space_prefix"] = ("bool", False)
    marks = [mark for mark in mmprojs.MARKS if mark != "\n"]
    packed(mmprojs.with_marks(parts, marks=marks), gguf.GGMLQuantizationType.Q8_0).write(lm)
    packed(mmproj_parts(size), gguf.GGMLQuantizationType.F16).write(mmproj)
    write_pair(lm, mmproj, folder / "pair", overwrite=True)
    write_pair(lm, mmproj, folder / "graph", overwrite=True)
    print(speed_up_pair(folder / "graph", Said(), PairOptions(always=True)))


class Said(Progress):
    """Prints what the conversion says."""

    def say(self, text: str) -> None:
        print(f"  {text}", flush=True)


def packed(parts: bundles.GgufParts, kind: gguf.GGMLQuantizationType) -> bundles.GgufParts:
    """Return `parts` with the matrices in `kind`, as llama.cpp's converters store them."""
    result = dataclasses.replace(parts, tensors={}, quants={})
    for name, values in parts.tensors.items():
        result.tensors[name] = values
        if values.ndim > 1 and "position_embd" not in name:
            result.tensors[name] = gguf.quants.quantize(values, kind)
            result.quants[name] = kind
    return result


class RandomTensors(dict[str, np.ndarray]):
    """The tensors of an mmproj file; small values, as norms keep them in real towers."""

    def __init__(self, norm_biases: bool) -> None:
        super().__init__()
        self.rng, self._norm_biases = np.random.default_rng(0), norm_biases

    def linear(self, name: str, rows: int, columns: int, bias: bool = True) -> None:
        scale = np.sqrt(columns)
        self[f"{name}.weight"] = self.rng.standard_normal((rows, columns), np.float32) / scale
        if bias:
            self[f"{name}.bias"] = np.zeros(rows, np.float32)

    def norm(self, name: str, n: int) -> None:
        self[f"{name}.weight"] = np.ones(n, np.float32)
        if self._norm_biases:
            self[f"{name}.bias"] = np.zeros(n, np.float32)


def mmproj_parts(size: Size) -> bundles.GgufParts:
    """Return an mmproj of `size`'s dimensions."""
    layers, e, heads, ffn = size.tower
    rotates = size.projector == mmprojs.QWEN25.projector
    parts = bundles.GgufParts(architecture="clip")
    parts.metadata = mmprojs.header(
        size.projector, image_size=size.size, patch_size=size.patch, embedding_length=e,
        feed_forward_length=ffn, block_count=layers, projection_dim=size.lm.n_embd,
        attention__head_count=heads, projector__scale_factor=size.merge,
    )  # fmt: skip
    parts.metadata["clip.use_silu" if rotates else "clip.use_gelu"] = ("bool", True)
    if rotates:
        parts.metadata["clip.vision.n_wa_pattern"] = ("uint32", 8)
    if size.projector == "idefics3":
        parts.metadata["clip.vision.preproc_image_size"] = ("uint32", 4 * size.size)
    t = RandomTensors(norm_biases=not rotates)
    t.linear("v.patch_embd", e, 3 * size.patch**2, bias=not rotates)
    kernel = t["v.patch_embd.weight"].reshape(e, 3, size.patch, size.patch)
    t["v.patch_embd.weight"] = kernel
    internvl = size.projector == "internvl"
    n_rows = (size.size // size.patch) ** 2 + internvl
    if rotates:
        t["v.patch_embd.weight.1"] = kernel[::-1].copy()
    else:
        t["v.position_embd.weight"] = t.rng.standard_normal((n_rows, e), np.float32) * 0.1
    for i in range(layers):
        p = f"v.blk.{i}."
        for name, rows, columns in (
            ("attn_q", e, e), ("attn_k", e, e), ("attn_v", e, e), ("attn_out", e, e),
            ("ffn_up", ffn, e), ("ffn_down", e, ffn), *([("ffn_gate", ffn, e)] if rotates else []),
        ):  # fmt: skip
            t.linear(p + name, rows, columns)
        t.norm(f"{p}ln1", e)
        t.norm(f"{p}ln2", e)
        if internvl:
            t |= {f"{p}ls{k}.weight": np.full(e, 0.5, np.float32) for k in (1, 2)}
    if internvl:
        t["v.class_embd"] = t.rng.standard_normal(e).astype(np.float32)
    add_projector(t, size)
    parts.tensors = t
    return parts


def add_projector(t: RandomTensors, size: Size) -> None:
    e, n_embd = size.tower[1], size.lm.n_embd
    merged = e * size.merge**2
    match size.projector:
        case "internvl":
            t.norm("mm.model.mlp.0", merged)
            t.linear("mm.model.mlp.1", n_embd, merged)
            t.linear("mm.model.mlp.3", n_embd, n_embd)
            return
        case "gemma3":
            t.linear("mm.input_projection", e, n_embd, bias=False)
            t["mm.soft_emb_norm.weight"] = np.ones(e, np.float32)
        case mmprojs.QWEN25.projector:
            t.linear("mm.0", merged, merged)
            t.linear("mm.2", n_embd, merged)
        case _:
            t.linear("mm.model.fc", n_embd, merged, bias=False)
    t.norm("v.post_ln", e)


# ---- measuring


def answer(arguments: argparse.Namespace) -> None:
    """Caption a new picture for each line of standard input, and print its times as JSON."""
    from edgeprism import Captioner
    from edgeprism.machine.peak_memory import peak_bytes

    folder = arguments.work / arguments.size / ("graph" if arguments.engine == GRAPH else "pair")
    width, height = map(int, arguments.picture.split("x"))
    flash = {GRAPH: None, FLASH: True, NO_FLASH: False}[arguments.engine]
    with Captioner.load(
        folder, device="cpu", threads=arguments.threads, flash_attention=flash
    ) as captioner:
        for seed, _ in enumerate(sys.stdin):
            rng = np.random.default_rng(seed)
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            caption = captioner.caption(pixels, caption_tokens=1)
            timings, tokens = caption.timings, caption.tokens
            seconds = {"preprocess": timings.preprocess, "encode": timings.encode,
                       "prefill": timings.prefill}  # fmt: skip
            seconds["first token"] = timings.total - timings.load
            seconds = {stage: value / 1000 for stage, value in seconds.items()}
            said = {"seconds": seconds, "visual": tokens.visual, "prompt": tokens.prompt,
                    "peak": peak_bytes()}  # fmt: skip
            print(json.dumps(said), flush=True)


def measure(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Let the engines take turns; return what each said of each round, without the first."""
    given = ["--size", arguments.size, "--work", str(arguments.work), "--picture",
             arguments.picture, "--threads", str(arguments.threads)]  # fmt: skip
    module = [sys.executable, "-m", "benchmarks.speed.pair_encoders"]
    children = {
        engine: subprocess.Popen(
            [*module, *given, "--engine", engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for engine in (GRAPH, FLASH, *([] if arguments.flash_only else [NO_FLASH]))
    }
    said: dict[str, list[dict[str, Any]]] = {engine: [] for engine in children}
    for turn in range(arguments.rounds + 1):
        for engine, child in children.items():
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("\n")
            child.stdin.flush()
            line = child.stdout.readline()
            if not line:
                raise SystemExit(f"{engine} ended: its error stands above")
            if turn:
                said[engine].append(json.loads(line))
                seconds = said[engine][-1]["seconds"]
                shown = ", ".join(f"{stage} {seconds[stage]:.3g} s" for stage in STAGES)
                print(f"  {turn}, {engine}: {shown}", flush=True)
    for child in children.values():
        child.communicate()
    return said


def report(said: dict[str, list[dict[str, Any]]], size: Size) -> None:
    print(f"{'engine':26}" + "".join(f"{stage:>24}" for stage in STAGES) + f"{'peak MB':>10}")
    for engine, turns in said.items():
        cells = [spread([turn["seconds"][stage] for turn in turns]) for stage in STAGES]
        peak = max(turn["peak"] or 0 for turn in turns) / 1e6
        print(f"{engine:26}" + "".join(f"{cell:>24}" for cell in cells) + f"{peak:>10.0f}")
    print(f"visual tokens: {said[GRAPH][0]['visual']} and {said[FLASH][0]['visual']}")
    best = min(said.keys() - {GRAPH}, key=lambda engine: median(said[engine], "first token"))
    ratios = {stage: median(said[best], stage) / median(said[GRAPH], stage)
              for stage in ("encode", "first token")}  # fmt: skip
    print(f"against {best}: encoding {ratios['encode']:.2f} times as fast, "
          f"first token {ratios['first token']:.2f} times")  # fmt: skip
    if size.lm_all_layers > size.lm.n_layer:
        more = size.lm_all_layers / size.lm.n_layer - 1
        whole = [median(said[e], "first token") + more * median(said[e], "prefill")
                 for e in (best, GRAPH)]  # fmt: skip
        print(f"with all {size.lm_all_layers} layers of the language model, reckoned from "
              f"{size.lm.n_layer}: {whole[0]:.1f} s and {whole[1]:.1f} s, "
              f"{whole[0] / whole[1]:.2f} times")  # fmt: skip
    if ratios["first token"] < size.aim:
        stage = max(("preprocess", "encode", "prefill"), key=lambda s: median(said[GRAPH], s))
        share = median(said[GRAPH], stage) / median(said[GRAPH], "first token")
        print(f"missed: the aim is {size.aim} times; {stage} takes {share:.0%} of the graph's time")


def report_floors(
    said: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace, rates: Rates
) -> None:
    """Print what the graph's work would take at the rates of products of large matrices."""
    folder = arguments.work / arguments.size / "graph"
    manifest = manifest_from_bundle(folder)
    width, height = map(int, arguments.picture.split("x"))
    shapes = picture_to_layout((width, height), manifest).shapes
    encode = Operations()
    for shape, n_tiles in Counter(shapes).items():
        tile = np.zeros((1, *shape, 3), np.uint8)
        nodes = profile_graph(folder / manifest.vision.variants[0].file, tile)
        encode += nodes_to_operations(nodes) * n_tiles
    tokens = said[GRAPH][0]["visual"] + said[GRAPH][0]["prompt"]
    language = language_work(read_gguf_header(folder / manifest.lm.file))
    floors = {
        "encode": operations_ms(encode, rates) / 1000,
        "prefill": operations_ms(language.prefill(tokens), rates) / 1000,
    }
    print(f"rates: float32 {rates.float32_gflops:.0f} GFLOP/s, int8 {rates.int8_gops:.0f} GOP/s; "
          f"{len(shapes)} tiles have {encode.float32 / 1e9:.0f} GFLOP and "
          f"{encode.int8 / 1e9:.0f} GOP of int8")  # fmt: skip
    for stage, floor in floors.items():
        share = floor / median(said[GRAPH], stage)
        print(f"floor of {stage}: {floor:.2f} s; the graph's engine reaches {share:.0%} of it")
    whole = min(median(said[engine], "first token") for engine in said.keys() - {GRAPH})
    prefill = median(said[GRAPH], "prefill")
    print(f"were encoding at its floor, the first token would come "
          f"{whole / (floors['encode'] + prefill):.2f} times as fast as libmtmd's")  # fmt: skip


def median(turns: list[dict[str, Any]], stage: str) -> float:
    return float(np.median([turn["seconds"][stage] for turn in turns]))


if __name__ == "__main__":
    main()
