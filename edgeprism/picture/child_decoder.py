"""A child process that decodes pictures: the parent's side of the pipe.

A request is a JSON line, and the file's bytes if the parent has them. The answer is a JSON line
and the pixels' bytes. Nothing is pickled, because the answer comes from a process that has just
read a stranger's file.
"""

from __future__ import annotations

import json
import threading
from typing import Any

from PIL import Image

from edgeprism.errors import ImageError
from edgeprism.machine.child import Child, edgeprism_command
from edgeprism.picture.cost import Cost
from edgeprism.picture.limits import Decoded

# the largest picture that the reader accepts takes 0.7 GB in Pillow, and at most four copies
MEMORY_BYTES = 4 << 30
_LINE_BYTES = 1 << 20


class ChildDecoder:
    """A running child. Its `ask` raises ImageError, even if the picture killed the child.

    Parameters:
        settings: What `workers.main` reads first: the limit of memory, and the image policy if
            the child is to make tiles.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._child = Child(edgeprism_command("edgeprism.picture.workers"))
        self.pid = self._child.pid
        self._send(settings)

    def ended(self) -> bool:
        """Whether the process has ended."""
        return not self._child.running()

    def end(self) -> None:
        """Kill the process and wait until it has ended."""
        self._child.end()

    def ask(
        self, request: dict[str, Any], payload: bytes, name: str, timeout_s: float
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request; return the answer and its bytes.

        Raises ImageError: the child's own, or that it took too long, or broke.
        """
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._child.kill()

        timer = threading.Timer(timeout_s, give_up)
        timer.start()
        try:
            self._send({**request, "timeout_s": timeout_s, "payload": len(payload)}, payload)
            answer, data = self._receive()
        except (OSError, ValueError, EOFError) as error:
            self.end()
            reason = f"took longer than {timeout_s:.0f} s" if late.is_set() else "broke its decoder"
            raise ImageError(
                f"{name}: reading it {reason}.", "Export a smaller or repaired copy."
            ) from error
        except BaseException:  # Ctrl-C
            self.end()
            raise
        finally:
            timer.cancel()
        if "error" in answer:
            raise ImageError(answer["error"], answer["hint"])
        return answer, data

    def _send(self, line: dict[str, Any], payload: bytes = b"") -> None:
        self._child.send(json.dumps(line).encode() + b"\n")
        if payload:
            self._child.send(payload)

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


def decode_in_child(data: bytes, name: str, enough: int | None, cost: Cost) -> Decoded:
    """Decode a file in a process of its own, with limits of time and memory.

    Raises ImageError as `bytes_to_rgb`, and if a limit is reached.
    """
    try:
        decoder = ChildDecoder({"memory_bytes": MEMORY_BYTES, "policy": None})
    except OSError as error:
        raise ImageError(
            f"{name}: needs a process of its own to be read, which does not start: {error}.",
            "Export a smaller copy. A program may also load its captioner with "
            "isolate_decoding=False.",
        ) from error
    try:
        request = {"name": name, "enough": enough}
        answer, pixels = decoder.ask(request, data, name, cost.time_limit_s)
    finally:
        decoder.end()
    rgb = Image.frombytes("RGB", tuple(answer["rgb_size"]), pixels)
    return Decoded(rgb, (answer["size"][0], answer["size"][1]), tuple(answer["notes"]))
