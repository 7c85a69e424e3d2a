"""Captions on a Ray cluster of this machine: beside the folder engine, what an actor takes, kills.

    python -m benchmarks.speed.scale speed [--pictures 600] [--rounds 5] [--actors 2] [--cpus 1]
                                     [--model BUNDLE] [--batch N]
    python -m benchmarks.speed.scale kill [--pictures 300] [--kills 20]

Pictures are scenes of nano's renderer. `speed` alternates between the folder engine, which has all
cores, and as many actors as there are cores; of each run the first quarter of the pictures does not
count, in which processes and models start. It prints the memory of an actor's processes, where a
picture's time goes, and what a million pictures would take at these rates. `kill` kills actors −9
at random moments and looks for lost and repeated rows.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.machine import spread
from benchmarks.speed.folder import render
from edgeprism import Captioner
from edgeprism.folder.batch import Batch
from edgeprism.folder.run import FolderResult
from edgeprism.folder.tuning import batch_shape
from edgeprism.machine.facts import available_cores
from edgeprism.picture.find import find_pictures
from edgeprism.scale.cluster import ClusterOptions, caption_on_cluster
from edgeprism.scale.storage import Place

MILLION = 1_000_000
STAGES = ("decode_image", "preprocess", "encode", "prefill", "decode")
# an actor, its captioner, and that one's decoder of pictures, by their command lines
KINDS = {"actor": "ray::Map", "captioner": "edgeprism.scale.worker",
         "decoder": "edgeprism.picture.workers"}  # fmt: skip


class Meter:
    """The rate of a run, without its first quarter."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._first = (0.0, 0)  # (moment, pictures) at which counting begins
        self._last = (0.0, 0)

    def note(self, done: int) -> None:
        now = time.perf_counter()
        if not self._first[1] and done >= self._total // 4:
            self._first = now, done
        self._last = now, done

    def rate(self) -> float:
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])


def own_processes() -> dict[int, str]:
    """The processes below this one, with their command lines."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            parents[int(entry.name)] = int(fields[1])
        except (OSError, ValueError):
            continue  # it has ended, or is no process
    below, before = {os.getpid()}, 0
    while len(below) > before:
        before = len(below)
        below |= {pid for pid, parent in parents.items() if parent in below}
    return {pid: names[pid] for pid in below - {os.getpid()}}


@contextmanager
def watched_memory() -> Iterator[dict[str, float]]:
    """Yield the largest resident memory in MB, by kind, of one process of it."""
    largest: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            for pid, name in own_processes().items():
                for kind, sign in KINDS.items():
                    if sign in name:
                        largest[kind] = max(largest[kind], resident_mb(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield largest
    finally:
        ended.set()
        thread.join()


def resident_mb(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/status").read_text().split()
        return int(fields[fields.index("VmRSS:") + 1]) / 1024
    except (OSError, ValueError):
        return 0.0


def on_folder(folder: Path, arguments: argparse.Namespace) -> float:
    """The folder engine's pictures a second."""
    files = list(find_pictures([folder]))
    meter = Meter(len(files))
    with Captioner.load(arguments.model, device="cpu") as captioner:
        width, lanes = batch_shape(captioner, arguments.batch)
        batch = Batch(captioner, captioner.plan(), parallel=width, lanes=lanes)
        for done, outcome in enumerate(batch.run(files), 1):
            if outcome.record is None:
                raise SystemExit(f"a picture failed: {outcome.error}")
            meter.note(done)
    return meter.rate()


def on_cluster(folder: Path, out: Path, arguments: argparse.Namespace) -> float:
    """The cluster's pictures a second."""
    meter = Meter(arguments.pictures)
    captioner = {"model": arguments.model, "device": "cpu"}
    if arguments.batch:
        captioner["parallel"] = arguments.batch
    result = caption_on_cluster(
        Place.of(folder), Place.of(out),
        ClusterOptions("local", arguments.actors, arguments.cpus, part=arguments.part), captioner,
        on_progress=lambda result: meter.note(result.done),
    )  # fmt: skip
    if result.captioned != arguments.pictures:
        raise SystemExit(f"{len(result.failures)} pictures failed")
    return meter.rate()


def speed(work: Path, arguments: argparse.Namespace) -> None:
    folder = render(work / "pictures", arguments.pictures)
    folders, clusters = [], []
    with watched_memory() as memory:
        for number in range(arguments.rounds):
            folders.append(on_folder(folder, arguments))
            clusters.append(on_cluster(folder, work / f"out{number}", arguments))
    ratios = [cluster / alone for cluster, alone in zip(clusters, folders, strict=True)]
    print(f"{arguments.pictures} pictures, {available_cores()} cores, {arguments.actors} actors of "
          f"{arguments.cpus:g} CPUs; pictures/s (min / median / max)")  # fmt: skip
    print(f"  folder engine {spread(folders)}")
    print(f"  cluster       {spread(clusters)}")
    print(f"  ratio         {spread(ratios)}; aim 0.9: "
          f"{'met' if sorted(ratios)[len(ratios) // 2] >= 0.9 else 'missed'}")  # fmt: skip
    print("memory of one process, MB: "
          + ", ".join(f"{kind} {size:.0f}" for kind, size in memory.items()))  # fmt: skip
    table = pq.read_table(work / "out0")
    print("a picture's stages in an actor, ms (mean):")
    for stage in STAGES:
        values = table[f"{stage}_ms"].to_pylist()
        print(f"  {stage:13} {sum(values) / len(values):.2f}")
    size = sum(path.stat().st_size for path in (work / "out0").iterdir())
    best = max(clusters)
    hours = MILLION / best / 3600
    cores, parquet = hours * available_cores(), size / table.num_rows * MILLION / 1e9
    print(f"a million such pictures: {hours:.1f} h here, {cores:.0f} core hours; {parquet:.2f} GB")


def kill(work: Path, arguments: argparse.Namespace) -> None:
    folder, out = render(work / "pictures", arguments.pictures), work / "out"
    rng, ended, kills = random.Random(1), threading.Event(), 0

    def killer() -> None:
        nonlocal kills
        while kills < arguments.kills and not ended.wait(rng.uniform(0.2, 3)):
            actors = [pid for pid, name in own_processes().items() if name.startswith("ray::Map")]
            if actors:
                os.kill(rng.choice(actors), signal.SIGKILL)
                kills += 1

    thread = threading.Thread(target=killer)
    thread.start()
    results: list[FolderResult] = []
    options = ClusterOptions("local", arguments.actors, arguments.cpus, part=8)
    try:
        while not results or kills < arguments.kills:  # a run that ended goes on from its output
            results.append(caption_on_cluster(Place.of(folder), Place.of(out), options,
                                              {"model": arguments.model}))  # fmt: skip
            if kills < arguments.kills:
                for part in sorted(out.iterdir())[::2]:
                    part.unlink()
    finally:
        ended.set()
        thread.join()
    images = pq.read_table(out)["image"].to_pylist()
    expected = {str(path) for path in folder.rglob("*.jpg")}
    print(f"{kills} kills in {len(results)} runs; {len(images)} rows")
    print(f"lost {len(expected - set(images))}, repeated {len(images) - len(set(images))}, "
          f"left over {sum(p.suffix != '.parquet' for p in out.iterdir())}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", choices=["speed", "kill"])
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--actors", type=int, default=available_cores())
    parser.add_argument("--cpus", type=float, default=1)
    parser.add_argument("--part", type=int, default=64)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--model", default="nano")
    arguments = parser.parse_args()
    arguments.pictures = arguments.pictures or {"speed": 600, "kill": 300}[arguments.question]
    with tempfile.TemporaryDirectory(prefix="edgeprism-scale-") as work:
        {"speed": speed, "kill": kill}[arguments.question](Path(work), arguments)


if __name__ == "__main__":
    main()
