"""Measure how close to the machine's limits a bundle runs, stage by stage.

    python -m benchmarks.speed.stages BUNDLE [--runs 3] [--vision-quant …] [--device cuda]

The limit of encode is its fp32 operations at the machine's fp32 matrix rate (an int8 graph may
exceed 100 %, because its operations are cheaper). The limit of decode is reading the language
model's weights once per token at the machine's memory bandwidth, and that of prefill its operations
at the fp32 rate. The script measures limits and stages in the same run. The picture is noise: time
does not depend on its content, and with `stop_at_end` off the number of tokens does not either.

On an NVIDIA GPU the rates are the GPU's, for fp16 products; PyTorch with CUDA must be installed to
measure them.
"""

from __future__ import annotations

import argparse
import resource
import sys

import numpy as np

from benchmarks.machine import cpu_limits, gpu_limits, spread
from benchmarks.operations import picture_operations
from edgeprism import Caption, Captioner
from edgeprism.machine.facts import available_cores, cpu_name
from tests.helpers.captions import stream

PICTURE = (640, 480)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--vision-quant")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    cores = available_cores()
    print(f"{cpu_name()}, {cores} cores, Python {sys.version.split()[0]}")
    captioner = Captioner.load(
        arguments.bundle, device=arguments.device, vision_quant=arguments.vision_quant
    )
    rng = np.random.default_rng(0)
    records = []
    for _ in range(arguments.runs + 1):  # the first run loads the engines and does not count
        picture = rng.integers(0, 256, (*PICTURE[::-1], 3), dtype=np.uint8)
        caption = stream(captioner, picture, caption_tokens=arguments.tokens, stop_at_end=False)
        records.append(caption.finished().caption)
    first, counted = records[0], records[1:]
    print(f"model: {first.model}\ntokens: {first.tokens}\nload: {first.timings.load:.0f} ms")
    for stage in ("decode_image", "preprocess", "encode", "prefill", "decode", "total"):
        print(f"  {stage:13} ms {spread([getattr(c.timings, stage) for c in counted])}")
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    # after the line above, because measuring the bandwidth takes memory itself
    print(f"device: {captioner.device}")
    on_gpu = captioner.device == "cuda"
    kind = "fp16" if on_gpu else "fp32"
    gflops, bandwidth = gpu_limits() if on_gpu else cpu_limits()
    if gflops:
        print(
            f"limits: {gflops:.0f} GFLOP/s {kind} matrix product, {bandwidth:.1f} GB/s memory read"
        )
        report_limits(captioner, counted, gflops, bandwidth, kind)


def report_limits(
    captioner: Captioner, counted: list[Caption], gflops: float, bandwidth: float, kind: str
) -> None:
    manifest = captioner.bundle.manifest
    best = {s: min(getattr(c.timings, s) for c in counted) for s in ("prefill", "decode")}
    tokens = counted[0].tokens
    weights = (captioner.bundle.path / manifest.lm.file).stat().st_size
    per_token = best["decode"] / tokens.generated
    floor = weights / bandwidth / 1e6
    print(f"decode  {1000 / per_token:.1f} tok/s; reading the weights alone allows "
          f"{1000 / floor:.1f}: {floor / per_token:.0%} of the limit")  # fmt: skip
    encode = min(c.timings.encode for c in counted)
    work = picture_operations(captioner, PICTURE)
    print(f"encode  {work / 1e9:.1f} GFLOP in {encode:.0f} ms: {work / encode / 1e6:.0f} GFLOP/s, "
          f"{work / encode / 1e6 / gflops:.1%} of the {kind} matrix rate")  # fmt: skip
    rows = tokens.visual + tokens.prompt
    print(f"prefill {rows / best['prefill'] * 1000:.1f} rows/s ({rows} rows); "
          f"{kind} matrix rate {gflops:.0f} GFLOP/s")  # fmt: skip


if __name__ == "__main__":
    main()
