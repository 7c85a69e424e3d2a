"""One request's two directions, and how many bytes the bodies of all requests may take."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from edgeprism.files.safe_text import json_text
from edgeprism.serve.refusals import Refusal, to_error

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from edgeprism.serve.options import Limits

_DRAIN_S, _DRAIN_BYTES = 3.0, 64 << 20  # of a refused body, read and dropped
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Bodies:
    """The bytes of all bodies that are arriving or being answered, within a limit.

    Where they are too many, the largest body that has not arrived yet gives way: half bodies keep
    nobody out.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._total = 0
        self._arriving: set[Exchange] = set()

    def add(self, exchange: Exchange, more: int, *, arriving: bool) -> None:
        """Count more bytes of a body. Raises Refusal if it, or all together, are too large."""
        exchange.received += more
        self._total += more
        (self._arriving.add if arriving else self._arriving.discard)(exchange)
        if exchange.received > self.limits.body_bytes:
            raise too_large(self.limits)
        while self._total > self.limits.bodies_bytes:
            largest = max(self._arriving, key=lambda each: each.received, default=exchange)
            self.release(largest)
            if largest is exchange:
                raise _no_room()
            largest.push_out()

    def release(self, exchange: Exchange) -> None:
        """Count a body no longer."""
        self._total -= exchange.received
        exchange.received = 0
        self._arriving.discard(exchange)


class Exchange:
    """One request's two directions, with their limits."""

    def __init__(self, bodies: Bodies, scope: Scope, receive: Receive, send: Send) -> None:
        self._bodies, self._receive, self._send = bodies, receive, send
        self._seconds = bodies.limits.body_seconds
        self._path = scope.get("path", "")
        self._deadline = time.monotonic() + self._seconds
        names = {name for name, _ in scope["headers"]} if scope["type"] == "http" else set()
        # the body has arrived, or there is none
        self._complete = not names & {b"content-length", b"transfer-encoding"}
        self._timeout: asyncio.Timeout | None = None  # while it waits for more of the body
        self._pushed_out = False
        self.received = 0  # bytes that count among the bodies
        self.status = 0  # 0: no answer has begun
        self.code = ""  # the word of an error
        self.refusal_headers: dict[str, str] = {}  # sent with every refusal

    async def receive(self) -> Message:
        """Return the next part of the body, within its limits of size and time."""
        if self._complete:
            return await self._receive()  # which comes when the client leaves
        if self._pushed_out:
            raise _no_room()
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()) as self._timeout:
                message = await self._receive()
        except TimeoutError:
            raise (_no_room() if self._pushed_out else _too_slow(self._seconds)) from None
        finally:
            self._timeout = None
        if message["type"] == "http.request":
            self._complete = not message.get("more_body", False)
            self._bodies.add(self, len(message.get("body", b"")), arriving=not self._complete)
        return message

    def push_out(self) -> None:
        """Give up a body that is still arriving, for the sake of others."""
        self._pushed_out = True
        if self._timeout is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time())

    async def send(self, message: Message) -> None:
        """Send a part of the answer, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {name for name, _ in message["headers"]}
            headers = [*message["headers"], *(h for h in _HEADERS if h[0] not in given)]
            if not self._complete:  # what is left of the body would be taken for a new request
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with an error, after what the client is still sending.

        Else the end of the connection could reach the client before the answer does.
        """
        if refusal.status != 408 and not self._pushed_out:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_S):
                    await self._drain()
        error: dict[str, Any] = to_error(refusal)
        self.code = refusal.code
        # Ollama's clients take the error for a text
        told = error["message"] if self._path.startswith("/api/") else error
        body = json_text({"error": told}).encode()  # whatever characters the message repeats
        response = Response(
            body, refusal.status, {**refusal.headers, **self.refusal_headers}, "application/json"
        )
        await self.send(
            {"type": "http.response.start", "status": refusal.status,
             "headers": response.raw_headers}
        )  # fmt: skip
        await self._send({"type": "http.response.body", "body": response.body})

    async def _drain(self) -> None:
        passed = 0
        while not self._complete and passed < _DRAIN_BYTES:
            message = await self._receive()
            passed += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)


def too_large(limits: Limits) -> Refusal:
    """Return the refusal of a body over the limit."""
    return Refusal(
        413, "body_too_large", f"The request is larger than {limits.body_bytes >> 20} MiB.",
        "Send fewer pictures at a time, or smaller copies.",
    )  # fmt: skip


def _too_slow(seconds: float) -> Refusal:
    return Refusal(
        408, "body_too_slow", f"The request did not arrive within {seconds:.0f} s.",
    )  # fmt: skip


def _no_room() -> Refusal:
    return Refusal(
        429, "too_many_bytes", "Other requests fill the memory for pictures.",
        "Try again in 1 s.", headers={"Retry-After": "1"},
    )  # fmt: skip
