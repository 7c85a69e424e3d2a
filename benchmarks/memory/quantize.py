"""Measure the memory of quantizing a vision tower of true dimensions to int8, and of nothing else.

    python -m benchmarks.memory.quantize --size qwen-vl --work FOLDER

The script writes random weights to `--work` in the published layout, exports the tower's float32
graph and quantizes it as a conversion does, without the reference and the gate, which take most of
the time of `benchmarks.memory.convert`. It prints one JSON object: seconds and peak anonymous
memory of both steps, the memory before them, and the size of each file. Needs Linux (/proc) and
the [convert] extra.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.checkpoints.true_dimensions import SIZES, checkpoint_folders
from benchmarks.memory.convert import SAMPLE_S, memory_bytes
from edgeprism.convert.discover import family_named
from edgeprism.convert.memory import give_memory_back
from edgeprism.convert.parts import captioner_parts
from edgeprism.convert.read.card import card_from_folder
from edgeprism.convert.vision.export import export_graph
from edgeprism.convert.vision.quantize import quantize_int8
from edgeprism.progress import Progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="qwen-vl")
    parser.add_argument("--work", type=Path, required=True, help="where checkpoint and graphs go")
    parser.add_argument("--layers", type=int, default=1, help="of the language model, which is "
                        "written but not read")  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="keep checkpoint and graphs")
    arguments = parser.parse_args()
    family = family_named(SIZES[arguments.size].family)
    folders = checkpoint_folders(arguments.work, arguments.size, arguments.layers)
    captioner = family.read(**family.settings(folders), progress=Progress())
    card = card_from_folder(captioner.folder)
    parts = captioner_parts(family.name, arguments.size, captioner, card)
    work = arguments.work / f"graphs-{arguments.size}"
    work.mkdir(exist_ok=True)
    out = work / "vision.int8.onnx"
    give_memory_back()
    before = memory_bytes(os.getpid(), "RssAnon")
    exporting = measured(
        lambda: export_graph(parts.vision(torch.float32), parts.vision_weights, work, "graph")
    )
    give_memory_back()
    quantizing = measured(lambda: quantize_int8(work / "graph.onnx", out, False, set()))
    result = {
        "size": arguments.size,
        "anonymous_before_gb": round(before / 1e9, 2),
        "export": exporting,
        "quantize": quantizing,
        "files": {path.name: path.stat().st_size for path in sorted(work.iterdir())},
    }
    print(json.dumps(result, indent=1))
    if not arguments.keep:
        shutil.rmtree(work)
        shutil.rmtree(next(iter(folders.values())).parent)


def measured(step: Callable[[], object]) -> dict[str, float]:
    """Run a step in this process; return its seconds and its peak anonymous memory."""
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(SAMPLE_S):
            peak = max(peak, memory_bytes(os.getpid(), "RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    try:
        step()
    finally:
        ended.set()
        watcher.join()
    seconds = round(time.monotonic() - began, 1)
    return {"seconds": seconds, "peak_anonymous_gb": round(peak / 1e9, 2)}


if __name__ == "__main__":
    main()
