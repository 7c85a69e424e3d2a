"""Caption folders of pictures: speed, kills, hostile files, memory, resuming, wide batches.

    python -m benchmarks.speed.folder speed [--pictures 600] [--rounds 5] [--batch N]
                                      [--model BUNDLE] [--tokens N]
    python -m benchmarks.speed.folder kill [--pictures 300] [--kills 30]
    python -m benchmarks.speed.folder hostile [--pictures 2000]
    python -m benchmarks.speed.folder memory [--pictures 5000]
    python -m benchmarks.speed.folder resume [--pictures 40000]
    python -m benchmarks.speed.folder width [--pictures 300]

Pictures are scenes of nano's renderer. They and the caption store lie in a temporary folder.
`speed` alternates between captioning one picture at a time and the batch, in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import ThreadClock, cpu_limits, spread
from benchmarks.operations import picture_operations
from edgeprism import Caption, Captioner
from edgeprism.folder.batch import Batch
from edgeprism.folder.tuning import batch_shape
from edgeprism.language.generator import Finished
from edgeprism.machine.facts import available_cores
from edgeprism.models.nano.recipe.world import plain_scene
from edgeprism.picture.find import PictureFile, find_pictures
from edgeprism.store.caption_store import CaptionStore
from tests.helpers.captions import caption_ids, plan_of

COMMAND = [sys.executable, "-m", "edgeprism", "caption"]


def render(folder: Path, count: int, distinct: int | None = None) -> Path:
    """Write `count` scenes as JPEG; after the first `distinct`, hard links to earlier ones."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    for i in range(count):
        part = folder / f"{i // 1000:03}"
        part.mkdir(exist_ok=True)
        path = part / f"{i:06}.jpg"
        if distinct is not None and i >= distinct:
            path.hardlink_to(folder / f"{i % distinct // 1000:03}" / f"{i % distinct:06}.jpg")
        else:
            plain_scene.scene_to_image(plain_scene.sample_scene(rng)).save(path, quality=90)
    return folder


def speed(work: Path, arguments: argparse.Namespace) -> None:
    """Print pictures per second, one at a time and as a batch in turns, and each pair's ratio."""
    files = list(find_pictures([render(work / "pictures", arguments.pictures)]))
    captioner = Captioner.load(arguments.model, device=arguments.device)
    # with random weights, a caption may never end by itself
    plan = captioner.plan()
    if arguments.tokens:
        plan = plan_of(captioner, caption_tokens=arguments.tokens, stop_at_end=False)
    width, lanes = batch_shape(captioner, arguments.batch)
    noise = np.random.default_rng(0).integers(0, 256, (144, 144, 3), dtype=np.uint8)
    # warm up with a picture that is not in the folder: the captioner remembers a picture's rows
    captioner.caption(noise, caption_tokens=2)
    ones, batches = [], []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        records = [captioner.start(file.path, plan).finished().caption for file in files]
        ones.append(len(files) / (time.perf_counter() - start))
        start = time.perf_counter()
        with ThreadClock() as clock:
            outcomes = list(Batch(captioner, plan, parallel=width, lanes=lanes).run(files))
        batches.append(len(files) / (time.perf_counter() - start))
        if any(outcome.record is None for outcome in outcomes):
            raise SystemExit("a picture failed")
    print(f"{len(files)} pictures, width {width}, {lanes} lanes, pictures/s (min / median / max)")
    print(f"  one at a time {spread(ones)}")
    print(f"  batch         {spread(batches)}")
    print(f"  ratio         {spread([b / a for a, b in zip(ones, batches, strict=True)])}")
    print("stages of one picture alone, ms (median):")
    for stage in ("decode_image", "preprocess", "encode", "prefill", "decode"):
        values = sorted(getattr(record.timings, stage) for record in records)
        print(f"  {stage:13} {values[len(values) // 2]:.2f}")
    if captioner.device == "cpu":
        floors(captioner, records[-1], width, max(batches))
    cores = available_cores()
    whole = 1000 * cores / batches[-1]
    spent = {name: 1000 * seconds / len(files) for name, seconds in clock.seconds.items()}
    spent["nothing"] = whole - sum(spent.values())
    print(f"the last batch, ms of a core for a picture, by thread, of {whole:.2f}:")
    for name, ms in spent.items():
        if abs(ms) >= 0.05:
            print(f"  {name:20} {ms:.2f}")


def floors(captioner: Captioner, record: Caption, width: int, best: float) -> None:
    """Print the time per picture if only operations and bytes cost time, on all cores."""
    from gguf import GGUFReader

    lm = captioner.bundle.path / captioner.bundle.manifest.lm.file
    tensors = [
        t for t in GGUFReader(lm).tensors if len(t.shape) == 2 and "token_embd" not in t.name
    ]
    weights, size = (sum(int(getattr(t, n)) for t in tensors) for n in ("n_elements", "n_bytes"))
    gflops, bandwidth = cpu_limits()
    tokens, encode = record.tokens, picture_operations(captioner, record.image_size)
    rows = tokens.visual + tokens.prompt
    # the sequences of a batch share one reading of the weights
    decode_bytes = tokens.generated * size / width
    decode_operations = 2 * weights * tokens.generated
    stages = {
        "encode": encode / gflops / 1e6,
        "prefill": 2 * weights * rows / gflops / 1e6,
        "decode": max(decode_bytes / bandwidth, decode_operations / gflops) / 1e6,
    }
    print(f"floors of a picture, ms, at {gflops:.0f} fp32 GFLOP/s and {bandwidth:.1f} GB/s:")
    for stage, ms in stages.items():
        print(f"  {stage:13} {ms:.2f}")
    limit = 1000 / sum(stages.values())
    print(f"  together {limit:.1f} pictures/s; the best batch reached {best / limit:.0%} of that")


def _start_over(folder: Path, out: Path, store: Path) -> None:
    for path in (out, *store.parent.glob(f"{store.name}*"), *folder.rglob("*.txt")):
        path.unlink(missing_ok=True)


def kill(work: Path, arguments: argparse.Namespace) -> None:
    """Kill −9 at random moments of a run, resume, and look for lost, double and partial output."""
    folder = render(work / "pictures", arguments.pictures)
    out = work / "all.jsonl"
    command = [*COMMAND, str(folder), "--txt", "--yes", "--jsonl", "--output", str(out)]
    environment = {**os.environ, "EDGEPRISM_HOME": str(work / "home")}
    rng = random.Random(1)
    kills, counts = 0, []
    store = work / "home" / "captions.sqlite3"
    start = time.perf_counter()
    subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True)
    whole = time.perf_counter() - start
    _start_over(folder, out, store)
    while True:
        limit = rng.uniform(0, whole) if kills < arguments.kills else None
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            process.wait(limit)
            if kills >= arguments.kills:
                break
            # the run ended before its kill: start again
            _start_over(folder, out, store)
            continue
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        if out.exists() and len(out.read_text().splitlines()) != arguments.pictures:
            raise SystemExit("an unfinished output has its final name")
        counts.append(_count(store))
        halves = [p for p in folder.rglob("*.txt") if not p.read_text().endswith("\n")]
        if halves:
            raise SystemExit(f"half-written: {halves}")
    records = [json.loads(line) for line in out.read_text().splitlines()]
    images = [record["image"] for record in records]
    print(f"{kills} kills within {whole:.1f} s; captions in the store after each: {counts}")
    print(f"records {len(records)}, pictures {arguments.pictures}, distinct {len(set(images))}")
    leftovers = [p for p in folder.rglob("*") if ".partial-" in p.name]
    print(f"captions in the store {_count(store)}; leftovers {len(leftovers)}")
    texts = {p.stem: p.read_text().strip() for p in folder.rglob("*.txt")}
    same = sum(texts[Path(r["image"]).stem] == r["caption"] for r in records)
    print(f"sidecars equal to their record: {same}")


def hostile(work: Path, arguments: argparse.Namespace) -> None:
    """Caption a folder of which 5 % of the files are bad in six ways and some vanish meanwhile."""
    folder = render(work / "pictures", arguments.pictures)
    paths = sorted(folder.rglob("*.jpg"))
    rng = random.Random(2)
    bad = rng.sample(paths, len(paths) // 20)
    vanishing = bad[::6]
    for i, path in enumerate(bad):
        if path in vanishing:
            continue
        data = path.read_bytes()
        path.unlink()
        if i % 6 == 1:
            path.write_bytes(data[: len(data) // 2])
        elif i % 6 == 2:
            path.write_bytes(_bomb())
        elif i % 6 == 3:
            path.write_text("no picture")
        elif i % 6 == 4:
            path.symlink_to(folder / "nowhere.jpg")
        else:
            path.touch()
    report, out = work / "errors.jsonl", work / "all.jsonl"
    command = [*COMMAND, str(folder), "--jsonl", "--output", str(out), "--errors", str(report)]
    process = subprocess.Popen(command, env={**os.environ, "EDGEPRISM_HOME": str(work / "home")})
    time.sleep(0.5)  # by now the folder is listed, but most pictures are not read yet
    for path in vanishing:
        path.unlink()
    code = process.wait()
    good = {json.loads(line)["image"] for line in out.read_text().splitlines()}
    named = {json.loads(line)["image"] for line in report.read_text().splitlines()}
    expected = {str(p) for p in paths} - {str(p) for p in bad}
    print(f"exit code {code}; {len(good)} captioned, {len(named)} named with a reason")
    print(f"good pictures without a caption: {len(expected - good)}")
    surely_bad = {str(p) for p in bad if p not in vanishing}
    print(f"bad pictures without a reason: {len(surely_bad - named)}")
    print(f"vanishing pictures: {len(vanishing)}, of them read before they went: "
          f"{len(good & {str(p) for p in vanishing})}")  # fmt: skip


def memory(work: Path, arguments: argparse.Namespace) -> None:
    """Print the process's resident memory at every 500th picture."""
    files = find_pictures([render(work / "pictures", arguments.pictures, distinct=1000)])
    captioner = Captioner.load("nano")
    plan, shape = captioner.plan(caption_tokens=60), batch_shape(captioner)
    home = work / "captions.sqlite3"
    for use_store in (False, True):
        batch = Batch(
            captioner,
            plan,
            open_store=(lambda: CaptionStore(home)) if use_store else None,
            parallel=shape.width,
            lanes=shape.lanes,
        )
        sizes = []
        for count, _ in enumerate(batch.run(list(files) if not use_store else _again(work)), 1):
            if count % 500 == 0:
                sizes.append(_resident_mb())
        print(f"with a store: {use_store}; MB at every 500th picture: {sizes}")
        print(f"  last against first: {sizes[-1] / sizes[0] - 1:+.1%}")


def resume(work: Path, arguments: argparse.Namespace) -> None:
    """Time a second run on a finished folder, which holds links to a few pictures."""
    folder = render(work / "pictures", arguments.pictures, distinct=50)
    environment = {**os.environ, "EDGEPRISM_HOME": str(work / "home")}
    for name, extra in (
        ("jsonl", ["--jsonl"]),
        ("txt", ["--txt", "--yes"]),
        ("xmp", ["--xmp", "--yes"]),
    ):
        command = [*COMMAND, str(folder), *extra]
        times = []
        for _ in range(2):
            start = time.perf_counter()
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
            times.append(time.perf_counter() - start)
        print(
            f"{name}: {arguments.pictures} pictures, first {times[0]:.1f} s, again {times[1]:.1f} s"
        )


def width(work: Path, arguments: argparse.Namespace) -> None:
    """Count the captions of wide batches that differ from the same picture's at width 1."""
    files = list(find_pictures([render(work / "pictures", arguments.pictures)]))
    captioner = Captioner.load(arguments.model)
    plan = captioner.plan()
    encoded = [captioner.encode(file.path) for file in files]
    alone = [caption_ids(captioner, image) for image in encoded]
    again = [caption_ids(captioner, image) for image in encoded]
    print(f"width 1, twice: {sum(a != b for a, b in zip(alone, again, strict=True))} differ")
    for parallel in (2, 4, 8, 16):
        generator = captioner.engines.new_generator(parallel)
        requests = (captioner.request(image, plan) for image in encoded)
        events = (e for e in generator.run(requests) if isinstance(e, Finished))
        ids = {event.index: event.ids for event in events}
        generator.close()
        different = [i for i, a in enumerate(alone) if ids[i] != a]
        print(f"width {parallel}: {len(different)} of {len(files)} differ")


def _again(work: Path) -> list[PictureFile]:
    return list(find_pictures([work / "pictures"]))


def _count(store: Path) -> int:
    if not store.exists():
        return 0
    with CaptionStore(store) as opened:
        return int(opened.info()["captions"])


def _resident_mb() -> float:
    fields = Path("/proc/self/status").read_text().split()
    return round(int(fields[fields.index("VmRSS:") + 1]) / 1024, 1)


def _bomb() -> bytes:
    """Return the beginning of a PNG of 50,000 × 50,000 pixels."""
    import struct
    import zlib

    body = b"IHDR" + struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


SIZES = {"speed": 600, "kill": 300, "hostile": 2000, "memory": 5000, "resume": 40000, "width": 300}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", choices=SIZES)
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--tokens", type=int, help="fixed length of a caption, for speed")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--device", default="cpu", help="of speed")
    arguments = parser.parse_args()
    arguments.pictures = arguments.pictures or SIZES[arguments.question]
    with tempfile.TemporaryDirectory(prefix="edgeprism-folder-") as work:
        globals()[arguments.question](Path(work), arguments)


if __name__ == "__main__":
    main()
