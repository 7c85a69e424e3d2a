"""Decode pictures in worker processes, so that a decoder's crash costs only one picture.

A worker is `main` in a child process; `child_decoder.py` speaks to it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any, TypeVar

from edgeprism.errors import ImageError
from edgeprism.machine.child import end_with_parent
from edgeprism.machine.facts import limit_memory
from edgeprism.picture.child_decoder import MEMORY_BYTES, ChildDecoder
from edgeprism.picture.cost import MOST_S

if TYPE_CHECKING:
    import numpy as np

    from edgeprism.bundle.manifest import ImagePolicy
    from edgeprism.picture.source import ImageSource

Result = TypeVar("Result")
TIMEOUT_S = MOST_S
_LEAST_CPU_S = 30


@dataclass(frozen=True)
class Decoded:
    """One picture's tiles for the vision engine, with the reader's facts about the picture."""

    tiles: np.ndarray  # [n_tiles, size, size, 3] uint8
    sha256: str
    size: tuple[int, int]  # (width, height), upright
    notes: tuple[str, ...]
    decode_ms: float
    preprocess_ms: float


class DecodePool:
    """A pool of worker processes; `submit` queues a path and returns a Future of Decoded.

    The Future raises ImageError, which names the picture, even if the picture killed its worker.
    """

    def __init__(
        self,
        policy: ImagePolicy,
        workers: int = 1,
        *,
        timeout_s: float = TIMEOUT_S,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._settings = {"memory_bytes": memory_bytes, "policy": dataclasses.asdict(policy)}
        self._timeout_s = timeout_s
        self._local = threading.local()
        self._workers: list[ChildDecoder] = []
        self._lock = threading.Lock()
        self._closed = False
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def submit(self, path: str, data: bytes | None = None) -> Future[Decoded]:
        """Decode the picture at `path` in a worker; or `data`, a file's bytes with that name."""
        request = {"path": path} if data is None else {"name": path}
        return self._threads.submit(self._decode, request, data or b"", path)

    def submit_with_child(
        self, read: Callable[[Callable[[ChildDecoder], object]], Result]
    ) -> Future[Result]:
        """Call `read` in a thread of the pool, and end with the pool the child that it tells."""
        return self._threads.submit(read, self._own)

    def decode(self, data: bytes, name: str) -> Decoded:
        """Decode a file's bytes in the calling thread's own worker; errors call it `name`.

        Raises ImageError, even if the picture killed the worker.
        """
        return self._decode({"name": name}, data, name)

    def close(self) -> None:
        """End the workers at once and cancel what is queued."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.end()

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode(self, request: dict[str, Any], payload: bytes, name: str) -> Decoded:
        import numpy as np

        worker: ChildDecoder | None = getattr(self._local, "worker", None)
        if worker is None or worker.ended():
            worker = ChildDecoder(self._settings)
            self._local.worker = worker
            self._own(worker)
        answer, data = worker.ask(request, payload, name, self._timeout_s)
        return Decoded(
            tiles=np.frombuffer(data, np.uint8).reshape(answer["shape"]),
            sha256=answer["sha256"],
            size=(answer["size"][0], answer["size"][1]),
            notes=tuple(answer["notes"]),
            decode_ms=answer["decode_ms"],
            preprocess_ms=answer["preprocess_ms"],
        )

    def _own(self, worker: ChildDecoder) -> None:
        with self._lock:
            self._workers = [w for w in self._workers if not w.ended()] + [worker]
            if self._closed:
                worker.end()


# ---- inside the child


@dataclass(frozen=True)
class _Request:
    fields: dict[str, Any]
    payload: bytes


def main() -> None:
    """Run a worker: read settings from the first line, then requests, until the parent ends.

    A thread reads the requests: so it sees at once that the parent has ended, and ends this
    process even while a picture is decoded.
    """
    from edgeprism.bundle.manifest import ImagePolicy
    from edgeprism.files.strict_json import record_from_data

    end_with_parent()
    commands, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # so that text that a library prints does not get into the answers
    settings = json.loads(commands.readline())
    limit_memory(settings["memory_bytes"])
    policy = None
    if settings["policy"] is not None:
        policy = record_from_data(ImagePolicy, settings["policy"], "the worker's settings")
    requests: SimpleQueue[_Request] = SimpleQueue()
    threading.Thread(target=_read_requests, args=(commands, requests), daemon=True).start()
    while True:
        request = requests.get()
        _limit_cpu_time(request.fields["timeout_s"])
        answer, data = _answer(request, policy)
        answers.write(json.dumps({**answer, "bytes": len(data)}).encode() + b"\n")
        answers.write(data)
        answers.flush()


def _read_requests(commands: IO[bytes], requests: SimpleQueue[_Request]) -> None:
    for line in commands:
        fields = json.loads(line)
        payload = commands.read(fields["payload"])
        if len(payload) < fields["payload"]:
            break
        requests.put(_Request(fields, payload))
    os._exit(0)  # the parent has ended, or wants no more


def _limit_cpu_time(timeout_s: float) -> None:
    """End this process if the next picture takes far longer than the parent would wait for it.

    The parent ends it sooner; this holds where the parent has stopped or is gone.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    # decoders use several threads
    allowed = int(max(timeout_s, _LEAST_CPU_S) * max(2, os.cpu_count() or 1))
    soft = int(used.ru_utime + used.ru_stime) + allowed
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _answer(request: _Request, policy: ImagePolicy | None) -> tuple[dict[str, Any], bytes]:
    try:
        if policy is None:
            return _pixels(request)
        if "choice" in request.fields:
            return _frames(request, policy)
        return _tiles(request, policy)
    except ImageError as error:
        return {"error": error.message, "hint": error.hint}, b""
    except MemoryError:
        name = request.fields.get("path") or request.fields["name"]
        message = f"{name}: reading it needs more memory than there is."
        return {"error": message, "hint": "Export a smaller copy."}, b""


def _pixels(request: _Request) -> tuple[dict[str, Any], bytes]:
    """Decode the request's payload into RGB."""
    from edgeprism.picture.decode import bytes_to_rgb

    fields = request.fields
    decoded = bytes_to_rgb(request.payload, fields["name"], fields["enough"])
    answer = {"rgb_size": decoded.rgb.size, "size": decoded.size, "notes": decoded.notes}
    return answer, decoded.rgb.tobytes()


def _frames(request: _Request, policy: ImagePolicy) -> tuple[dict[str, Any], bytes]:
    """Read the frames of the request's video, each as one tile."""
    from edgeprism.picture.sampling import FrameChoice
    from edgeprism.picture.video_source import opened_video, read_here

    with opened_video(_source(request)) as (name, file):
        video = read_here(file, name, policy, FrameChoice(**request.fields["choice"]))
    answer = {
        **dataclasses.asdict(dataclasses.replace(video, tiles=video.tiles[:0])),
        "tiles": video.tiles.shape,
    }
    return answer, video.tiles.tobytes()


class _NamedFile(io.BytesIO):
    """A file's bytes under a name, which notes and errors use."""

    name: str


def _source(request: _Request) -> ImageSource:
    """Return the path that a request names, or the file that it brings."""
    if "path" in request.fields:
        return str(request.fields["path"])
    source = _NamedFile(request.payload)
    source.name = request.fields["name"]
    return source


def _tiles(request: _Request, policy: ImagePolicy) -> tuple[dict[str, Any], bytes]:
    """Read the request's picture and cut it into tiles."""
    import time

    from edgeprism.picture.layout import choose_grid
    from edgeprism.picture.read import enough_for, read_picture
    from edgeprism.picture.tile import picture_to_tiles

    picture = read_picture(_source(request), enough=enough_for(policy), isolate=False)
    start = time.perf_counter()
    tiles = picture_to_tiles(picture, policy, choose_grid(picture.size, policy))
    answer = {
        "shape": tiles.shape,
        "sha256": picture.sha256,
        "size": picture.size,
        "notes": picture.notes,
        "decode_ms": picture.decode_ms,
        "preprocess_ms": (time.perf_counter() - start) * 1000,
    }
    return answer, tiles.tobytes()
