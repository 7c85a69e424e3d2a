"""Measure memory and time of converting a checkpoint of true dimensions, and of a caption.

    python -m benchmarks.memory.convert --size prismcaptioner-2b --work /tmp/convert --keep
    python -m benchmarks.memory.convert --size smolvlm-256m --work /tmp/convert --caption 1024x768

The script writes random weights to `--work` in the published layout and converts them as
`edgeprism convert` does. It prints one JSON object: for each stage its seconds and the peak of the
converting process's anonymous memory, and the size of each file of the bundle. With `--caption`,
`edgeprism caption` also captions one picture of noise of that size; the object then has its timings
and its peaks of memory, anonymous and in all (mapped model files included); with
`--beside-transformers` also those of transformers' own class, where it has one. Needs
Linux (/proc) and the [convert] extra.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.checkpoints.true_dimensions import SIZES, checkpoint_folders
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.supervise import convert_in_child
from edgeprism.progress import Progress

SAMPLE_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="prismcaptioner-2b")
    parser.add_argument("--work", type=Path, required=True, help="where checkpoint and bundle go")
    parser.add_argument("--vision-quant", action="append", help="repeatable; default int8")
    parser.add_argument("--lm-quant", default="Q4_K_M")
    parser.add_argument("--keep", action="store_true", help="keep checkpoint and bundle")
    parser.add_argument("--layers", type=int, help="fewer layers of the language model: faster, "
                        "with the same peak, which the largest matrix sets")  # fmt: skip
    parser.add_argument("--caption", metavar="WxH", help="also caption a picture of this size")
    parser.add_argument("--max-tokens", type=int, default=64, help="of that caption")
    parser.add_argument("--beside-transformers", action="store_true",
                        help="with --caption: caption it by transformers' class, too")  # fmt: skip
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    n_layers = arguments.layers or size.lm_layers
    folders = checkpoint_folders(arguments.work, arguments.size, n_layers)
    out = arguments.work / f"bundle-{arguments.size}"
    options = ConvertOptions(
        vision_quants=tuple(arguments.vision_quant or ["int8"]),
        lm_quant=arguments.lm_quant,
        overwrite=True,
    )
    recorder = Recorder()
    threading.Thread(target=recorder.watch, daemon=True).start()
    convert_in_child(size.family, out, options, folders, recorder)
    recorder.stage("end")
    result = {
        "size": arguments.size,
        "lm_layers": n_layers,
        "lm_quant": arguments.lm_quant,
        "seconds": round(sum(stage["seconds"] for stage in recorder.stages), 1),
        "peak_anonymous_gb": max(stage["peak_anonymous_gb"] for stage in recorder.stages),
        "stages": recorder.stages,
        "files": {p.name: p.stat().st_size for p in sorted(out.glob("*"))},
    }
    if arguments.caption:
        result["caption"] = caption(out, arguments.caption, arguments.max_tokens)
    if arguments.caption and arguments.beside_transformers:
        result["transformers"] = by_transformers(
            arguments.size, folders["captioner"], arguments.caption, arguments.max_tokens
        )
    print(json.dumps(result, indent=1))
    if not arguments.keep:
        shutil.rmtree(out)
        shutil.rmtree(folders[size.folders[0]].parent)


def caption(bundle: Path, size: str, max_tokens: int) -> dict[str, Any]:
    """Return tokens, milliseconds and peak memory of one `edgeprism caption`."""
    width, height = map(int, size.split("x"))
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = bundle.parent / f"noise-{size}.png"
    Image.fromarray(noise).save(picture)
    command = [sys.executable, "-m", "edgeprism", "caption", str(picture), "--model", str(bundle),
               "--max-tokens", str(max_tokens), "--no-cache", "--json"]  # fmt: skip
    record, peaks = run_watched(command)
    return {
        "size": size, "tokens": record["tokens"], "timings_ms": record["timings_ms"], **peaks
    }  # fmt: skip


def by_transformers(size: str, folder: Path, picture: str, max_tokens: int) -> dict[str, Any]:
    """Return the times and the peak memory of a caption by transformers' own class."""
    width, height = picture.split("x")
    command = [sys.executable, "-m", "benchmarks.memory.by_transformers", size, str(folder), width,
               height, str(max_tokens)]  # fmt: skip
    said, peaks = run_watched(command)
    return {**said, **peaks}


def run_watched(command: list[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Run a program that prints one JSON object; return it, and the peaks of the memory."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        anonymous = whole = 0
        # read the output afterwards: the pipe has room for the one JSON object
        while process.poll() is None:
            anonymous = max(anonymous, memory_bytes(process.pid, "RssAnon"))
            whole = max(whole, memory_bytes(process.pid, "VmHWM"))
            time.sleep(SAMPLE_S)
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    peaks = {"peak_anonymous_gb": round(anonymous / 1e9, 2),
             "peak_resident_gb": round(whole / 1e9, 2)}  # fmt: skip
    return json.loads(output), peaks


class Recorder(Progress):
    """Record the seconds and the peak memory of each stage that the conversion reports."""

    def __init__(self) -> None:
        self.stages: list[dict[str, Any]] = []
        self._name, self._start, self._peak = "start", time.monotonic(), 0

    def stage(self, text: str, total: int = 0) -> None:
        now = time.monotonic()
        self.stages.append(
            {
                "stage": self._name,
                "seconds": round(now - self._start, 1),
                "peak_anonymous_gb": round(self._peak / 1e9, 2),
            }
        )
        self._name, self._start, self._peak = text, now, 0

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)

    def watch(self) -> None:
        """Sample the memory of the converting process without end, in a thread."""
        while True:
            _, *children = family_of(os.getpid())
            anonymous = sum(memory_bytes(child, "RssAnon") for child in children)
            self._peak = max(self._peak, anonymous)
            time.sleep(SAMPLE_S)


def family_of(pid: int) -> Iterator[int]:
    """Yield a process and all its descendants."""
    yield pid
    try:
        children = [
            int(child)
            for task in os.listdir(f"/proc/{pid}/task")
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        ]
    except OSError:
        return  # the process has just ended
    for child in children:
        yield from family_of(child)


def memory_bytes(pid: int, field: str) -> int:
    """Return a field of /proc/PID/status: RssAnon (without files) or VmHWM (peak, with files)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0  # the process has just ended
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
