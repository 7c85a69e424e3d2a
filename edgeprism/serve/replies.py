"""Answers as HTTP: whole or as a stream, for a client that may leave at any moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse

from edgeprism.files.safe_text import json_text
from edgeprism.serve.options import Limits
from edgeprism.serve.refusals import ClientLeft, Refusal, to_error, to_refusal

if TYPE_CHECKING:
    from edgeprism.serve.service import Service

Result = TypeVar("Result")
EVENT_STREAM, NDJSON = "text/event-stream", "application/x-ndjson"


async def while_present(request: Request, limits: Limits, work: Awaitable[Result]) -> Result:
    """Return the result of `work`, whose request has been read; give it up if the client leaves.

    Raises ClientLeft, and Refusal if it takes longer than the limit.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.create_task(_until_gone(request))
    try:
        await asyncio.wait(
            {task, watcher},
            timeout=limits.answer_seconds,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if task.done():
            return task.result()
        raise ClientLeft if watcher.done() else too_slow(limits)
    finally:
        for each in (task, watcher):
            each.cancel()
        with contextlib.suppress(BaseException):
            await task


def too_slow(limits: Limits) -> Refusal:
    """Return the refusal of a request that took too long to answer."""
    return Refusal(
        504, "too_slow", f"There was no answer within {limits.answer_seconds:.0f} s.",
        "Ask for fewer pictures or tokens at a time.",
    )  # fmt: skip


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def to_event(data: Any, name: str | None = None) -> bytes:
    """Return one server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json_text(data)}\n\n".encode()


def to_line(data: Any) -> bytes:
    """Return one line of JSON."""
    return f"{json_text(data)}\n".encode()


async def stream_reply(
    request: Request,
    service: Service,
    parts: AsyncGenerator[bytes],
    *,
    media_type: str,
    to_failure: Callable[[dict[str, Any]], bytes],
) -> StreamingResponse:
    """Return a response that streams `parts`.

    It waits for the first part, so that what fails before it is answered with a status. A later
    error is a last part, `to_failure(error)`.
    """
    limits = service.limits
    first = await while_present(request, limits, anext(parts, b""))

    async def all_parts() -> AsyncIterator[bytes]:
        async with aclosing(parts):
            yield first
            try:
                async with asyncio.timeout(limits.answer_seconds):
                    async for part in parts:
                        yield part
            except TimeoutError:
                yield to_failure(to_error(too_slow(limits)))
            except Exception as error:
                service.log_failure(error)
                yield to_failure(to_error(to_refusal(error)))

    return StreamingResponse(all_parts(), media_type=media_type)
