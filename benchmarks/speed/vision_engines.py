"""Measure how fast EdgePrism's vision engine and llama.cpp's libmtmd encode a picture.

    python -m benchmarks.speed.vision_engines --size smolvlm-256m --work FOLDER [--rounds 5]

Both engines run the same random weights, at true dimensions, in one process: EdgePrism's graph as
fp32, int8 and, on CPUs with 8-bit dot products, int8-full; an mmproj as F16 and Q8_0, as the
converter of llama.cpp would write it. The engines take turns in each round, and a ratio compares
two times of one round. The script keeps its files in `--work`.

Each time covers resizing, cutting, normalising and encoding one picture of noise, from RGB pixels
in memory to an array of visual tokens. EdgePrism's time is that of `Captioner.encode`, which also
hashes the pixels; libmtmd's is that of its own functions with its own defaults, without EdgePrism.
Both must produce equally many tokens, or the script measures nothing. The times exclude reading and
decoding a file, loading, the first picture (a warm-up) and the language model. libmtmd needs a
language model for its width alone: it has one layer and never runs.

The limit is the machine's fp32 matrix rate, applied to the operations of the graph's matrix
products. An int8 graph may exceed it, because its operations are cheaper.

In a tower with a class row, libmtmd orders the rows differently from the models' authors
(tests/convert/test_engines_agree.py). So the script permutes the mmproj's positions: libmtmd then
computes the same in the same time. It prints the remaining difference between the engines. For
LLaVA, rows at the border differ, because libmtmd pads after scaling.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as llama
import llama_cpp.mtmd_cpp as mtmd
import numpy as np
from safetensors import safe_open

from benchmarks.checkpoints.true_dimensions import SIZES, checkpoint_folders
from benchmarks.machine import spread
from benchmarks.operations import picture_operations
from edgeprism import Captioner
from edgeprism.bench.limits import product_rate
from edgeprism.cli.terminal import StderrProgress
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.supervise import convert_in_child
from edgeprism.machine.facts import available_cores, cpu_name, has_int8_dot
from tests.helpers import bundles, peer_mmproj

CHOICES = ("smolvlm-256m", "smolvlm-500m", "llava-1.5-7b", "internvl-2b")
GRAPH_QUANTS, MMPROJ_QUANTS = ("fp32", "int8", "int8-full"), ("F16", "Q8_0")
VISION_SIDE = ("vision", "mm_projector", "mlp1", "connector")  # in names of vision tensors
_CALLBACKS: list[Any] = []  # callbacks that native code may call until the process ends

Times = list[tuple[float, float]]  # seconds of each round: in all, and of preparing the pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=CHOICES, default=CHOICES[0])
    parser.add_argument("--work", type=Path, required=True, help="where files are made and kept")
    parser.add_argument("--picture", metavar="WxH", default="1024x768")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cores(), help="of each engine")
    arguments = parser.parse_args()
    threads, (width, height) = arguments.threads, map(int, arguments.picture.split("x"))
    silence()
    arguments.work.mkdir(parents=True, exist_ok=True)
    bundle, mmprojs = make_files(arguments.work, arguments.size)
    graphs = [GraphEngine(bundle, quant, threads) for quant in GRAPH_QUANTS[: 2 + has_int8_dot()]]
    peers = [MtmdEngine(bundle / "lm.gguf", path, threads) for path in mmprojs]
    engines = [e for e in chain.from_iterable(zip_longest(graphs, peers)) if e is not None]
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows = {engine.name: engine.encode(pixels)[0] for engine in engines}  # also a warm-up
    shapes = {name: array.shape for name, array in rows.items()}
    if len(set(shapes.values())) > 1:
        raise SystemExit(f"the engines return different shapes: {shapes}")
    times: dict[str, Times] = {engine.name: [] for engine in engines}
    for _ in range(arguments.rounds):
        for engine in engines:
            start = time.perf_counter()
            preparing = engine.encode(pixels)[1]
            times[engine.name].append((time.perf_counter() - start, preparing))
    cost = graphs[0].captioner.cost((width, height))
    print(f"{arguments.size}: {width} × {height} pixels, {cost.tiles} tiles, "
          f"{cost.visual_tokens} visual tokens")  # fmt: skip
    report_times(times, picture_operations(graphs[0].captioner, cost.size), threads)
    report_ratios(times)
    report_difference(SIZES[arguments.size].family, rows)
    for engine in engines:
        engine.close()


# ---- the engines: pixels [height, width, 3] → rows [n, n_embd], and the seconds before encoding


class GraphEngine:
    """A variant of the bundle's vision graph, through EdgePrism's public API."""

    def __init__(self, bundle: Path, quant: str, threads: int) -> None:
        self.name = f"EdgePrism {quant}"
        self.captioner = Captioner.load(bundle, device="cpu", vision_quant=quant, threads=threads)

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, float]:
        encoded = self.captioner.encode(pixels)
        timings = encoded.timings
        return encoded.visual_tokens, (timings.decode_image + timings.preprocess) / 1000

    def close(self) -> None:
        self.captioner.close()


class MtmdEngine:
    """An mmproj file in libmtmd, through llama_cpp's binding of its functions."""

    def __init__(self, lm: Path, mmproj: Path, threads: int) -> None:
        self.name = f"libmtmd {mmproj.stem.rpartition('-')[2]}"
        settings = llama.llama_model_default_params()
        settings.use_extra_bufts = False  # do not repack the weights: the model never runs
        self._lm = llama.llama_model_load_from_file(str(lm).encode(), settings)
        params = mtmd.mtmd_context_params_default()
        params.use_gpu, params.n_threads = False, threads
        params.print_timings = params.warmup = False
        self._context = mtmd.mtmd_init_from_file(str(mmproj).encode(), self._lm, params)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot load {mmproj}")
        self._width = llama.llama_model_n_embd_inp(self._lm)

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        height, width = pixels.shape[:2]
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd.mtmd_bitmap_init(width, height, data)
        chunks = mtmd.mtmd_input_chunks_init()
        part = mtmd.mtmd_input_part(None, bitmap)
        parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
        if mtmd.mtmd_tokenize_from_parts(self._context, chunks, parts, 1, False):
            raise SystemExit("llama.cpp cannot prepare the picture")
        preparing = time.perf_counter() - start
        count, image = mtmd.mtmd_input_chunks_size(chunks), mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE
        pieces = [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(count)]
        tiles = [chunk for chunk in pieces if mtmd.mtmd_input_chunk_get_type(chunk) == image]
        rows = np.concatenate(list(self._encode_tiles(tiles)))
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        return rows, preparing

    def _encode_tiles(self, tiles: list[Any]) -> Iterator[np.ndarray]:
        """Yield each tile's rows; a batch has as many tiles as libmtmd accepts."""
        while tiles:
            batch = mtmd.mtmd_batch_init(self._context)
            size = 0
            while size < len(tiles) and not mtmd.mtmd_batch_add_chunk(batch, tiles[size]):
                size += 1
            if mtmd.mtmd_batch_encode(batch):
                raise SystemExit("llama.cpp failed on the picture")
            for tile in tiles[:size]:
                rows = mtmd.mtmd_batch_get_output_embd(batch, tile)
                shape = (mtmd.mtmd_input_chunk_get_n_tokens(tile), self._width)
                yield np.ctypeslib.as_array(rows, shape).copy()
            mtmd.mtmd_batch_free(batch)
            tiles = tiles[size:]

    def close(self) -> None:
        mtmd.mtmd_free(self._context)
        llama.llama_model_free(self._lm)


def silence() -> None:
    _CALLBACKS.append(llama.llama_log_callback(lambda _level, _text, _data: None))
    llama.llama_log_set(_CALLBACKS[0], ctypes.c_void_p(0))
    mtmd.mtmd_helper_log_set(_CALLBACKS[0], ctypes.c_void_p(0))
    llama.llama_backend_init()


# ---- the engines' files


def make_files(work: Path, name: str) -> tuple[Path, list[Path]]:
    """Return the bundle and the mmproj files in `work`; make those that are missing."""
    bundle = work / f"vision-{name}"
    mmprojs = [work / f"mmproj-{name}-{quant}.gguf" for quant in MMPROJ_QUANTS]
    if not bundle.exists():
        options = ConvertOptions(vision_quants=GRAPH_QUANTS, lm_quant="F16")
        with StderrProgress().shown() as progress:
            folders = checkpoint_folders(work, name, n_layers=1)
            convert_in_child(SIZES[name].family, bundle, options, folders, progress)
    for quant, path in zip(MMPROJ_QUANTS, mmprojs, strict=True):
        if not path.exists():
            parts = MMPROJS[SIZES[name].family](checkpoint_folders(work, name, n_layers=1))
            unfinished = path.with_suffix(".partial")
            peer_mmproj.quantized(parts, quant).write(unfinished)
            unfinished.rename(path)
    return bundle, mmprojs


def llava(folders: dict[str, Path]) -> bundles.GgufParts:
    vision, captioner = json_in(folders["vision"]), json_in(folders["captioner"])
    config = {"vision_config": vision, "vision_feature_layer": captioner["mm_vision_select_layer"]}
    tensors = vision_tensors(folders)
    return peer_mmproj.with_positions_turned(
        peer_mmproj.llava_mmproj(tensors, config, vision["image_size"])
    )


def internvl(folders: dict[str, Path]) -> bundles.GgufParts:
    config, tensors = json_in(folders["captioner"]), vision_tensors(folders)
    return peer_mmproj.with_positions_turned(peer_mmproj.internvl_mmproj(tensors, config))


def smolvlm(folders: dict[str, Path]) -> bundles.GgufParts:
    config = json_in(folders["captioner"])
    prepare = json_in(folders["captioner"], "preprocessor_config.json")
    return peer_mmproj.smolvlm_mmproj(vision_tensors(folders), config, prepare)


MMPROJS: dict[str, Callable[[dict[str, Path]], bundles.GgufParts]] = {
    "llava": llava, "internvl": internvl, "smolvlm": smolvlm,
}  # fmt: skip


def json_in(folder: Path, name: str = "config.json") -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / name).read_text())
    return data


def vision_tensors(folders: dict[str, Path]) -> dict[str, Any]:
    tensors = {}
    for path in chain.from_iterable(sorted(f.glob("*.safetensors")) for f in folders.values()):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - `file` is not a mapping
                if any(word in name for word in VISION_SIDE):
                    tensors[name] = file.get_tensor(name)
    return tensors


# ---- the report


def report_times(times: dict[str, Times], operations: float, threads: int) -> None:
    gflops = product_rate("float32", 1.0, threads)
    print(f"{cpu_name()}, {threads} threads, {len(next(iter(times.values())))} rounds; limit: "
          f"{gflops:.0f} GFLOP/s fp32 matrix product; a picture: {operations / 1e9:.0f} GFLOP, at "
          f"least {operations / gflops / 1e9:.2f} s at that rate")  # fmt: skip
    print("seconds, minimum / median / maximum; preparing alone; rate of the fastest round")
    for name, runs in times.items():
        whole, preparing = ([run[i] for run in runs] for i in (0, 1))
        rate = operations / min(whole) / 1e9
        print(f"  {name:19} {spread(whole):24} {spread(preparing):27} {rate:5.0f} GFLOP/s, "
              f"{rate / gflops:.0%} of the limit")  # fmt: skip


def report_ratios(times: dict[str, Times]) -> None:
    print("libmtmd's time / EdgePrism's in the same round (above 1: EdgePrism is faster)")
    for peer in (name for name in times if name.startswith("libmtmd")):
        for graph in (name for name in times if name.startswith("EdgePrism")):
            pairs = zip(times[peer], times[graph], strict=True)
            print(f"  {peer:12} : {graph:19} {spread([a[0] / b[0] for a, b in pairs])}")


def report_difference(family: str, rows: dict[str, np.ndarray]) -> None:
    reference, *others = rows.items()
    print(f"largest difference from {reference[0]}, as a part of the largest value")
    for name, actual in others:
        expected = reference[1]
        if family == "llava" and name.startswith("libmtmd"):
            actual, expected = actual[:-1], expected[1:]  # libmtmd leaves out the first patch
        print(f"  {name:19} {np.abs(actual - expected).max() / np.abs(expected).max():.2g}")


if __name__ == "__main__":
    main()
