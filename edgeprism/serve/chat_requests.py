"""A chat's request → its answer, for every API: only the forms of body and answer are theirs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgeprism.reason.shape import Shape
from edgeprism.serve.chat import Chat, ChatEvent, Ended, Message, answer_chat
from edgeprism.serve.dialect import to_seed
from edgeprism.serve.replies import stream_reply, while_present
from edgeprism.serve.service import Service


@dataclass(frozen=True)
class Form:
    """How an API writes an answer: whole, as parts of a stream, and an error within a stream."""

    to_whole: Callable[[Ended], dict[str, Any]]
    to_parts: Callable[[AsyncGenerator[ChatEvent]], AsyncGenerator[bytes]]
    to_failure: Callable[[dict[str, Any]], bytes]
    media_type: str  # of a stream


async def read_chat(
    service: Service,
    body: Mapping[str, Any],
    messages: tuple[Message, ...],
    *,
    tokens: int | None,
    shape: Shape | None,
    sampling: Mapping[str, Any],
    streams: bool | None,
    keep_alive_s: float | None = None,
) -> Chat:
    """Return the chat of a request; `sampling` may hold temperature, seed and visual_tokens.

    Without a temperature it is 0, so that answers are the same. Raises Refusal for a model that is
    not here.
    """
    return Chat(
        await service.models.resolve(body.get("model")),
        messages,
        tokens=tokens,
        temperature=float(sampling.get("temperature") or 0.0),
        seed=to_seed(sampling.get("seed")),
        visual_tokens=sampling.get("visual_tokens"),
        shape=shape,
        streams=bool(streams),
        keep_alive_s=keep_alive_s,
    )


async def reply_to_chat(request: Request, service: Service, chat: Chat, form: Form) -> Response:
    """Answer a chat, whole or as a stream, in the form of an API."""
    if chat.streams:
        return await stream_reply(
            request, service, form.to_parts(answer_chat(service, chat)),
            media_type=form.media_type, to_failure=form.to_failure,
        )  # fmt: skip
    ended = await while_present(request, service.limits, _last_of(service, chat))
    return JSONResponse(form.to_whole(ended))


async def _last_of(service: Service, chat: Chat) -> Ended:
    async with aclosing(answer_chat(service, chat)) as events:
        async for event in events:
            if isinstance(event, Ended):
                return event
    raise RuntimeError("a chat ended without an answer")
