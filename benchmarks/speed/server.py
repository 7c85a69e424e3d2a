"""Many clients of `edgeprism serve`: throughput, waiting, memory, whose caption is whose.

    python -m benchmarks.speed.server many [--clients 64] [--seconds 120] [--pictures 256]
    python -m benchmarks.speed.server cost [--rounds 200]

`many` lets clients ask a server process for captions, one picture at a time each, and compares each
caption with the one that Python makes of that picture; then the folder engine captions the same
pictures. The clients are one thin process: on two cores they, too, take time from the server.
`cost` asks a server process (`timed`) one by one, in turns over HTTP and in Python, and times the
first byte of a stream after the engine's first token.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE

from benchmarks.machine import spread
from edgeprism import Captioner
from edgeprism.folder.run import caption_folder
from edgeprism.models.nano.recipe.world import plain_scene
from edgeprism.serve import engine as serving
from edgeprism.serve.options import ServeOptions
from edgeprism.serve.run import make_server, open_socket, run_server


def render(count: int) -> list[bytes]:
    """Return JPEG files of scenes of nano's renderer."""
    rng, files = random.Random(0), []
    for _ in range(count):
        file = io.BytesIO()
        plain_scene.scene_to_image(plain_scene.sample_scene(rng)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def to_request(picture: bytes, *, stream: bool = False) -> bytes:
    """Return the bytes of a request for one caption."""
    image = base64.b64encode(picture).decode()
    body = json.dumps({"images": [image], "stream": stream}).encode()
    head = (
        "POST /v1/captions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass
class Tally:
    """What the clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    broken: int = 0


async def one_client(
    port: int, number: int, requests: list[bytes], texts: list[str], until: float, tally: Tally
) -> None:
    """Ask for one caption after another until the time is over."""
    rng = random.Random(number)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while time.monotonic() < until:
            index = rng.randrange(len(requests))
            start = time.monotonic()
            writer.write(requests[index])
            status, headers, body = await read_reply(reader)
            tally.statuses[status] += 1
            if status == 429:
                await asyncio.sleep(float(headers.get("retry-after", "1")))
                continue
            tally.seconds.append(time.monotonic() - start)
            told = json.loads(body)["captions"][0].get("caption") if status == 200 else None
            tally.wrong += told != texts[index]
    except (OSError, asyncio.IncompleteReadError):
        tally.broken += 1
    finally:
        writer.close()


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Read one whole answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.split(": ", 1) for line in head[1:] if line)
    headers = {name.lower(): value for name, value in pairs}
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, body


def family(pid: int) -> tuple[float, float]:
    """Return memory in MiB and processor seconds of a process and its children (proc(5))."""
    memory = seconds = 0.0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            status = (entry / "status").read_text()
        except OSError:
            continue
        if int(entry.name) == pid or int(fields[1]) == pid:
            lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
            memory += int(lines[0].split()[1]) / 1024 if lines else 0
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return memory, seconds


def many(arguments: argparse.Namespace) -> None:
    """Print throughput, waiting times and memory of a server with many clients."""
    pictures = render(arguments.pictures)
    with Captioner.load(arguments.model) as captioner:
        texts = [captioner.caption(picture).text for picture in pictures]
    requests = [to_request(picture) for picture in pictures]
    command = [sys.executable, "-m", "edgeprism", "serve", "--port", "0", "-q",
               "--model", arguments.model]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        asyncio.run(clients(port, 4, requests, texts, 5.0))  # warm up
        memory: list[float] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(1):
                memory.append(family(process.pid)[0])

        watcher = threading.Thread(target=watch)
        watcher.start()
        start, spent = time.monotonic(), family(process.pid)[1]
        tally = asyncio.run(clients(port, arguments.clients, requests, texts, arguments.seconds))
        took = time.monotonic() - start
        spent = family(process.pid)[1] - spent
        ended.set()
        watcher.join()
        process.terminate()
        process.wait()
    rate = len(tally.seconds) / took
    times = sorted(1000 * seconds for seconds in tally.seconds)
    print(f"{arguments.clients} clients, {took:.0f} s, {os.cpu_count()} cores, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(f"  answers by status {dict(tally.statuses)}; connections broken {tally.broken}")
    print(f"  captions of another picture: {tally.wrong}")
    print(
        f"  waiting, ms: p50 {times[len(times) // 2]:.0f}, p95 {times[len(times) * 95 // 100]:.0f}"
    )
    third = max(1, len(memory) // 3)
    print(f"  memory, MiB: first third at most {max(memory[:third]):.0f}, "
          f"last third at most {max(memory[-third:]):.0f}")  # fmt: skip
    print(f"  {rate:.1f} captions/s, {1000 * spent / len(times):.1f} ms of a core for each")
    folder, folder_ms = folder_rate(pictures, arguments)
    print(f"  the folder engine: {folder:.1f} captions/s, {folder_ms:.1f} ms of a core for each")
    print(f"  the server reached {rate / folder:.2f} of its rate, and "
          f"{folder_ms * len(times) / 1000 / spent:.2f} by processor time")  # fmt: skip


async def clients(
    port: int, count: int, requests: list[bytes], texts: list[str], seconds: float
) -> Tally:
    """Run clients side by side for a time."""
    tally, until = Tally(), time.monotonic() + seconds
    await asyncio.gather(
        *(one_client(port, number, requests, texts, until, tally) for number in range(count))
    )
    return tally


def folder_rate(pictures: list[bytes], arguments: argparse.Namespace) -> tuple[float, float]:
    """Return captions/s of the folder engine on the same pictures, and ms of a core for each."""
    rates, spent = [], []
    with tempfile.TemporaryDirectory() as name, Captioner.load(arguments.model) as captioner:
        for number in range(max(len(pictures), arguments.folder)):
            path = Path(name) / f"{number:05}.jpg"
            path.write_bytes(pictures[number % len(pictures)])
        for _ in range(3):
            start = sum(os.times()[:4])
            result = caption_folder(name, captioner, use_store=False)
            rates.append(result.captioned / result.seconds)
            spent.append(1000 * (sum(os.times()[:4]) - start) / result.captioned)
    return sorted(rates)[1], sorted(spent)[1]


def cost(arguments: argparse.Namespace) -> None:
    """Print what HTTP adds to one warm caption, and the first byte after the first token."""
    pictures = render(16)
    command = [sys.executable, "-m", "benchmarks.speed.server", "timed", "--model", arguments.model]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with Captioner.load(arguments.model) as captioner:
            asyncio.run(_turns(port, captioner, pictures, arguments.rounds))
        arrivals = asyncio.run(_first_bytes(port, pictures, arguments.rounds))
        tokens = json.loads(process.communicate()[0])  # it ends with its input
    later = sorted(1000 * (byte - token) for byte, token in zip(arrivals, tokens, strict=True))
    print(f"first byte of a stream after the first token, ms: {spread(later)}, "
          f"p95 {later[len(later) * 95 // 100]:.2f}")  # fmt: skip


def timed(arguments: argparse.Namespace) -> None:
    """Serve until standard input ends; then print when each stream had its first token.

    It is a process of its own, because a client in the same one would wait for the same lock of
    Python's. The times are of `time.perf_counter`, which all processes of a Linux system share.
    """
    first_tokens: dict[serving.Work, float] = {}
    tell = serving.Work.piece

    def piece(self: serving.Work, text: str) -> None:
        if self.streams:
            first_tokens.setdefault(self, time.perf_counter())
        tell(self, text)

    serving.Work.piece = piece  # type: ignore[method-assign]
    options = ServeOptions(port=0, model=arguments.model, keep_alive_s=float("inf"))
    with open_socket(options) as listener:
        server = make_server(options)
        thread = threading.Thread(target=run_server, args=(server, listener))
        thread.start()
        print(listener.getsockname()[1], flush=True)
        sys.stdin.read()
        server.stop()
        thread.join()
    print(json.dumps(list(first_tokens.values())))


async def _turns(port: int, captioner: Captioner, pictures: list[bytes], rounds: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    http, python, pairs, outside = [], [], [], []
    for number in range(rounds + 10):
        picture = pictures[number % len(pictures)]
        start = time.perf_counter()
        writer.write(to_request(picture))
        _, _, body = await read_reply(reader)
        between = time.perf_counter()
        captioner.caption(picture)
        end = time.perf_counter()
        if number >= 10:
            http.append(1000 * (between - start))
            python.append(1000 * (end - between))
            pairs.append(http[-1] - python[-1])
            stages = json.loads(body)["captions"][0]["timings_ms"]["total"]
            outside.append(http[-1] - stages)
    writer.close()
    print(f"one warm caption, ms (min / median / max), load {os.getloadavg()[0]:.1f}")
    print(f"  over HTTP {spread(http)}\n  in Python {spread(python)}\n  more      {spread(pairs)}")
    print(f"  over HTTP, outside the caption's own stages {spread(outside)}")


async def _first_bytes(port: int, pictures: list[bytes], rounds: int) -> list[float]:
    """Return when the first byte of each stream's text came."""
    arrivals = []
    for number in range(rounds):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(to_request(pictures[number % len(pictures)], stream=True))
        await reader.readuntil(b"caption.delta")
        arrivals.append(time.perf_counter())
        await reader.readuntil(b"event: done")
        writer.close()
    return arrivals


def main() -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("many", "cost", "timed"))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--folder", type=int, default=500, help="pictures of the folder")
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    {"many": many, "cost": cost, "timed": timed}[arguments.what](arguments)


if __name__ == "__main__":
    main()
