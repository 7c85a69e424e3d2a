"""Decode pictures in worker processes, so that a decoder's crash costs only one picture.

A worker is `main` in a child process. It reads one JSON line per picture, and answers with one
JSON line and the pixels' bytes. Nothing is pickled, because the answer comes from a process that
has just read a stranger's file.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from edgeprism.errors import ImageError
from edgeprism.machine.child import Child, edgeprism_command
from edgeprism.machine.facts import limit_memory

if TYPE_CHECKING:
    import numpy as np

    from edgeprism.bundle.manifest import ImagePolicy

# the largest picture that the reader accepts takes 0.5 GB as RGB, and at most three copies
MEMORY_BYTES = 4 << 30
TIMEOUT_S = 60.0
_LINE_BYTES = 1 << 20


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
        self._settings = json.dumps({**dataclasses.asdict(policy), "memory_bytes": memory_bytes})
        self._timeout_s = timeout_s
        self._local = threading.local()
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def submit(self, path: str) -> Future[Decoded]:
        """Decode the picture at `path` in a worker."""
        return self._threads.submit(self._decode, path)

    def close(self) -> None:
        """End the workers at once and cancel what is queued."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for worker in self._workers:
                worker.end()

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode(self, path: str) -> Decoded:
        worker: _Worker | None = getattr(self._local, "worker", None)
        if worker is None or worker.ended():
            worker = _Worker(self._settings)
            self._local.worker = worker
            with self._lock:
                self._workers = [w for w in self._workers if not w.ended()] + [worker]
        return worker.decode(path, self._timeout_s)


class _Worker:
    def __init__(self, settings: str) -> None:
        self._child = Child(edgeprism_command("edgeprism.picture.workers"))
        self._send(settings)

    def ended(self) -> bool:
        return not self._child.running()

    def end(self) -> None:
        self._child.end()

    def decode(self, path: str, timeout_s: float) -> Decoded:
        import numpy as np

        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._child.kill()

        timer = threading.Timer(timeout_s, give_up)
        timer.start()
        try:
            self._send(json.dumps({"path": path}))
            answer, data = self._receive()
        except (OSError, ValueError, EOFError) as error:
            self.end()
            reason = f"took longer than {timeout_s:.0f} s" if late.is_set() else "broke its decoder"
            raise ImageError(
                f"{path}: reading it {reason}.", "Export a smaller or repaired copy."
            ) from error
        finally:
            timer.cancel()
        if "error" in answer:
            raise ImageError(answer["error"], answer["hint"])
        tiles = np.frombuffer(data, np.uint8).reshape(answer["shape"])
        return Decoded(
            tiles=tiles,
            sha256=answer["sha256"],
            size=(answer["size"][0], answer["size"][1]),
            notes=tuple(answer["notes"]),
            decode_ms=answer["decode_ms"],
            preprocess_ms=answer["preprocess_ms"],
        )

    def _send(self, line: str) -> None:
        self._child.send(line.encode() + b"\n")

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        pipe = self._child.output
        line = pipe.readline(_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise EOFError
        answer = json.loads(line)
        data = pipe.read(answer["bytes"])
        if len(data) != answer["bytes"]:
            raise EOFError
        return answer, data


def main() -> None:
    """Run a worker: read settings from the first line, then one picture per line, until the end."""
    from edgeprism.bundle.manifest import ImagePolicy
    from edgeprism.files.strict_json import record_from_data

    commands, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # so that text that a library prints does not get into the answers
    settings = json.loads(commands.readline())
    limit_memory(settings.pop("memory_bytes"))
    policy = record_from_data(ImagePolicy, settings, "the worker's settings")
    for line in commands:
        answer, data = _answer(json.loads(line)["path"], policy)
        _write(answers, json.dumps({**answer, "bytes": len(data)}).encode() + b"\n" + data)


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(data)
    pipe.flush()


def _answer(path: str, policy: ImagePolicy) -> tuple[dict[str, Any], bytes]:
    import time

    from edgeprism.picture.layout import choose_grid
    from edgeprism.picture.read import enough_for, read_picture
    from edgeprism.picture.tile import picture_to_tiles

    try:
        picture = read_picture(path, enough=enough_for(policy))
        start = time.perf_counter()
        tiles = picture_to_tiles(picture, policy, choose_grid(picture.size, policy))
    except ImageError as error:
        return {"error": error.message, "hint": error.hint}, b""
    except MemoryError:
        hint = "Export a smaller copy."
        return {"error": f"{path}: reading it needs more memory than there is.", "hint": hint}, b""
    answer = {
        "shape": tiles.shape,
        "sha256": picture.sha256,
        "size": picture.size,
        "notes": picture.notes,
        "decode_ms": picture.decode_ms,
        "preprocess_ms": (time.perf_counter() - start) * 1000,
    }
    return answer, tiles.tobytes()
