"""A connection that cannot be held by a client that does nothing.

uvicorn limits the size of a request's head and closes a connection that stays idle after an answer.
It lets clients take any time for their first byte, drip a head byte by byte, or read no answer, and
it takes any number of connections. This class adds those limits.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgeprism.files.safe_text import json_text
from edgeprism.serve.options import Limits
from edgeprism.serve.refusals import Refusal, to_error


@dataclass
class Crowd:
    """All connections of one server."""

    limits: Limits
    count: int = 0
    # those without a request, the longest waiting first
    waiting: dict[GuardedConnection, None] = field(default_factory=dict)


class GuardedConnection(H11Protocol):
    """uvicorn's connection, with time limits; `crowd` is set on a subclass for each server."""

    crowd = Crowd(Limits())

    _timer: asyncio.TimerHandle | None = None  # until the head has arrived, or the client reads
    _counts = False  # among the crowd

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection; where there are too many, the longest waiting one ends."""
        super().connection_made(transport)
        self._counts = True
        self.crowd.count += 1
        self._watch_head()
        if self.crowd.count > self.crowd.limits.connections:
            next(iter(self.crowd.waiting)).give_up()

    def data_received(self, data: bytes) -> None:
        """Take data, and limit the time for the rest of a request's head."""
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Let the client begin another request."""
        super().on_response_complete()
        self.crowd.waiting.pop(self, None)  # it waits from now on
        if self._counts and self.awaits_request():
            self.crowd.waiting[self] = None

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also if its client has not read the last answer."""
        super().timeout_keep_alive_handler()
        self._give_up_later(self.crowd.limits.write_seconds)

    def pause_writing(self) -> None:
        """Wait for a client that reads slowly, but not for ever."""
        super().pause_writing()
        self._give_up_later(self.crowd.limits.write_seconds)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        self._cancel_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._leave()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as every other refusal is answered, in JSON."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # an answer has begun already
            return
        refusal = Refusal(
            400, "invalid_http", msg, "Send HTTP/1.1, with at most 64 KiB of headers."
        )
        body = json_text({"error": to_error(refusal)}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def awaits_request(self) -> bool:
        """Return whether no request is being received or answered."""
        return self.conn.their_state is h11.IDLE

    def give_up(self) -> None:
        """End the connection at once."""
        self._leave()
        self.transport.abort()

    def _watch_head(self) -> None:
        if not self._counts:
            return
        if not self.awaits_request():
            self.crowd.waiting.pop(self, None)
            if not self.flow.write_paused:
                self._cancel_timer()
            return
        self.crowd.waiting.setdefault(self)
        if self._timer is None:
            self._give_up_later(self.crowd.limits.head_seconds)

    def _leave(self) -> None:
        self._cancel_timer()
        self.crowd.waiting.pop(self, None)
        self.crowd.count -= self._counts
        self._counts = False

    def _give_up_later(self, seconds: float) -> None:
        self._cancel_timer()
        if self._counts:
            self._timer = self.loop.call_later(seconds, self.give_up)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
