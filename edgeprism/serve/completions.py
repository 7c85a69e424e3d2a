"""`POST /v1/chat/completions`, as OpenAI's API defines it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgeprism.reason.shape import Shape
from edgeprism.serve.bodies import Checker, read_json
from edgeprism.serve.chat import ChatEvent, Delta, Ended, Message, Seen
from edgeprism.serve.chat_requests import Form, read_chat, reply_to_chat
from edgeprism.serve.dialect import (
    ANY_OBJECT,
    SEED,
    TEMPERATURE,
    TOKENS,
    TOOLS,
    VISUAL_TOKENS,
    Pictures,
    content_to_message,
    explain_parts,
    new_id,
    to_shape,
)
from edgeprism.serve.options import Limits
from edgeprism.serve.replies import EVENT_STREAM, to_event
from edgeprism.serve.service import Service

_PART = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            "required": ["type", "text"],
        },
        {
            "type": "object",
            "properties": {
                "type": {"const": "image_url"},
                "image_url": {
                    "type": "object",
                    "properties": {"url": {"type": "string", "description": "A data URL."}},
                    "required": ["url"],
                },
            },
            "required": ["type", "image_url"],
        },
    ]
}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {
            "anyOf": [
                {"type": ["string", "null"]},
                {"type": "array", "items": _PART, "maxItems": 200},
            ]
        },
    },
    "required": ["role", "content"],
}
_FORMAT = {
    "anyOf": [
        {"type": "null"},
        {
            "type": "object",
            "properties": {"type": {"enum": ["text", "json_object"]}},
            "required": ["type"],
        },
        {
            "type": "object",
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "schema": ANY_OBJECT},
                    "required": ["schema"],
                },
            },
            "required": ["type", "json_schema"],
        },
    ]
}


def completions_schema() -> dict[str, Any]:
    """Return the schema of the body; what it does not name is passed over, as sampling is ours."""
    return {
        "type": "object",
        "properties": {
            "model": {"type": ["string", "null"]},
            "messages": {"type": "array", "items": _MESSAGE, "minItems": 1, "maxItems": 200},
            "max_tokens": TOKENS,
            "max_completion_tokens": TOKENS,
            "temperature": TEMPERATURE,
            "seed": SEED,
            "visual_tokens": VISUAL_TOKENS,
            "n": {"enum": [1, None], "description": "One answer is given; leave n out."},
            "stream": {"type": ["boolean", "null"]},
            "stream_options": {
                "type": ["object", "null"],
                "properties": {"include_usage": {"type": ["boolean", "null"]}},
            },
            "response_format": _FORMAT,
            "tools": TOOLS,
        },
        "required": ["messages"],
    }


class CompletionRoutes:
    """The request, for one server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._checker = Checker(completions_schema(), explain_parts("messages", _PART))

    async def completions(self, request: Request) -> Response:
        """Answer the last message of a chat."""
        body = await read_json(request, self._checker)
        chat = await read_chat(
            self._service, body, _to_messages(body["messages"], self._service.limits),
            tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
            shape=await _to_shape(body.get("response_format")),
            sampling=body,
            streams=body.get("stream"),
        )  # fmt: skip
        head = {
            "id": new_id("chatcmpl-"),
            "created": int(time.time()),
            "model": str(chat.model),
        }
        with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        form = Form(
            to_whole=lambda ended: _to_completion(ended, head),
            to_parts=lambda events: _to_chunks(events, head, with_usage),
            to_failure=lambda error: to_event({"error": error}),
            media_type=EVENT_STREAM,
        )
        return await reply_to_chat(request, self._service, chat, form)


def _to_messages(messages: list[Mapping[str, Any]], limits: Limits) -> tuple[Message, ...]:
    pictures = Pictures(limits)
    return tuple(
        content_to_message(each["role"], each["content"], _picture_in, pictures, limits)
        for each in messages
    )


def _picture_in(part: Mapping[str, Any]) -> str | None:
    return part["image_url"]["url"] if part["type"] == "image_url" else None


async def _to_shape(response_format: Mapping[str, Any] | None) -> Shape | None:
    kind = (response_format or {"type": "text"})["type"]
    if response_format is None or kind == "text":
        return None
    schema = response_format["json_schema"]["schema"] if kind == "json_schema" else None
    return await to_shape(schema, "response_format.json_schema.schema")


def _to_usage(ended: Ended) -> dict[str, int]:
    return {
        "prompt_tokens": ended.prompt_tokens,
        "completion_tokens": ended.new_tokens,
        "total_tokens": ended.prompt_tokens + ended.new_tokens,
    }


def _to_completion(ended: Ended, head: Mapping[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": ended.text, "refusal": None}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": ended.finish_reason,
    }
    return {
        **head,
        "object": "chat.completion",
        "choices": [choice],
        "usage": _to_usage(ended),
        "edgeprism": ended.to_extension(),
    }


async def _to_chunks(
    events: AsyncGenerator[ChatEvent], head: Mapping[str, Any], with_usage: bool
) -> AsyncGenerator[bytes]:
    def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        data = {**head, "object": "chat.completion.chunk", "choices": [choice], **more}
        return to_event(data)

    first = True
    async with aclosing(events):
        async for event in events:
            start = {"role": "assistant"} if first else {}
            first = False
            if isinstance(event, Delta):
                yield chunk({**start, "content": event.text})
                continue
            if isinstance(event, Seen):
                seen = {"caption": event.caption.to_dict()}
                yield chunk({**start, "content": ""}, edgeprism=seen)
                continue
            yield chunk(start, event.finish_reason, edgeprism=event.to_extension())
            if with_usage:
                usage = {"choices": [], "usage": _to_usage(event)}
                yield to_event({**head, "object": "chat.completion.chunk", **usage})
    yield b"data: [DONE]\n\n"
