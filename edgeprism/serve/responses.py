"""`POST /v1/responses`, as OpenAI's API defines it; nothing is stored between two requests."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgeprism.reason.shape import Shape
from edgeprism.serve.bodies import Checker, read_json
from edgeprism.serve.chat import Chat, ChatEvent, Delta, Ended, Message, Seen
from edgeprism.serve.chat_requests import Form, read_chat, reply_to_chat
from edgeprism.serve.dialect import (
    ANY_OBJECT,
    TEMPERATURE,
    TOKENS,
    TOOLS,
    VISUAL_TOKENS,
    Pictures,
    check_length,
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
            "properties": {
                "type": {"enum": ["input_text", "output_text"]},
                "text": {"type": "string"},
            },
            "required": ["type", "text"],
        },
        {
            "type": "object",
            "properties": {
                "type": {"const": "input_image"},
                "image_url": {"type": "string", "description": "A data URL."},
            },
            "required": ["type", "image_url"],
        },
    ]
}
_MESSAGE = {
    "type": "object",
    "properties": {
        "type": {"const": "message"},
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {
            "anyOf": [{"type": "string"}, {"type": "array", "items": _PART, "maxItems": 200}]
        },
    },
    "required": ["role", "content"],
}
_FORMAT = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"type": {"enum": ["text", "json_object"]}},
            "required": ["type"],
        },
        {
            "type": "object",
            "properties": {
                "type": {"const": "json_schema"},
                "name": {"type": "string"},
                "schema": ANY_OBJECT,
            },
            "required": ["type", "schema"],
        },
    ]
}


def responses_schema() -> dict[str, Any]:
    """Return the schema of the body; what it does not name is passed over."""
    return {
        "type": "object",
        "properties": {
            "model": {"type": ["string", "null"]},
            "input": {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    {"type": "array", "items": _MESSAGE, "minItems": 1, "maxItems": 200},
                ]
            },
            "instructions": {"type": ["string", "null"]},
            "max_output_tokens": TOKENS,
            "temperature": TEMPERATURE,
            "visual_tokens": VISUAL_TOKENS,
            "stream": {"type": ["boolean", "null"]},
            "text": {"type": ["object", "null"], "properties": {"format": _FORMAT}},
            "tools": TOOLS,
            "previous_response_id": {
                "type": "null",
                "description": "Answers are not kept; send the whole conversation as input.",
            },
        },
        "required": ["input"],
    }


class ResponseRoutes:
    """The request, for one server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._checker = Checker(responses_schema(), explain_parts("input", _PART))

    async def responses(self, request: Request) -> Response:
        """Answer the last message of the input."""
        body = await read_json(request, self._checker)
        chat = await read_chat(
            self._service, body, _to_messages(body, self._service.limits),
            tokens=body.get("max_output_tokens"),
            shape=await _to_shape(body.get("text")),
            sampling=body,
            streams=body.get("stream"),
        )  # fmt: skip
        head = _head(body, chat)
        form = Form(
            to_whole=lambda ended: _to_response(ended, head, new_id("msg_")),
            to_parts=lambda events: _to_events(events, head),
            to_failure=lambda error: to_event({"type": "error", **error}, "error"),
            media_type=EVENT_STREAM,
        )
        return await reply_to_chat(request, self._service, chat, form)


def _to_messages(body: Mapping[str, Any], limits: Limits) -> tuple[Message, ...]:
    given, pictures, read = body["input"], Pictures(limits), []
    if body.get("instructions"):
        read.append(Message("system", check_length(body["instructions"], limits)))
    if isinstance(given, str):
        return (*read, Message("user", check_length(given, limits)))
    for each in given:
        role, content = each["role"], each["content"]
        read.append(content_to_message(role, content, _picture_in, pictures, limits))
    return tuple(read)


def _picture_in(part: Mapping[str, Any]) -> str | None:
    return part["image_url"] if part["type"] == "input_image" else None


async def _to_shape(text: Mapping[str, Any] | None) -> Shape | None:
    given = (text or {}).get("format") or {"type": "text"}
    if given["type"] == "text":
        return None
    return await to_shape(given.get("schema"), "text.format.schema")


def _head(body: Mapping[str, Any], chat: Chat) -> dict[str, Any]:
    """Return what every state of a response says of it."""
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "model": str(chat.model),
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "temperature": chat.temperature,
        "top_p": 1.0,
        "text": body.get("text") or {"format": {"type": "text"}},
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
        "previous_response_id": None,
        "store": False,
        "metadata": {},
        "error": None,
        "incomplete_details": None,
    }


def _to_item(text: str, item_id: str, status: str) -> dict[str, Any]:
    return {
        "type": "message",
        "id": item_id,
        "role": "assistant",
        "status": status,
        "content": [_to_part(text)],
    }


def _to_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _to_response(ended: Ended, head: Mapping[str, Any], item_id: str) -> dict[str, Any]:
    cut = ended.finish_reason == "length"
    status = "incomplete" if cut else "completed"
    usage = {
        "input_tokens": ended.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": ended.new_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": ended.prompt_tokens + ended.new_tokens,
    }
    return {
        **head,
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [_to_item(ended.text, item_id, status)],
        "usage": usage,
        "edgeprism": ended.to_extension(),
    }


async def _to_events(
    events: AsyncGenerator[ChatEvent], head: Mapping[str, Any]
) -> AsyncGenerator[bytes]:
    numbers, item_id = itertools.count(), new_id("msg_")
    running = {**head, "status": "in_progress", "output": [], "usage": None}
    place = {"item_id": item_id, "output_index": 0, "content_index": 0}
    item = {**_to_item("", item_id, "in_progress"), "content": []}

    def told(kind: str, **data: Any) -> bytes:
        return to_event({"type": kind, "sequence_number": next(numbers), **data}, kind)

    opening: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": running}),
        ("response.in_progress", {"response": running}),
        ("response.output_item.added", {"output_index": 0, "item": item}),
        ("response.content_part.added", {**place, "part": _to_part("")}),
    ]
    async with aclosing(events):
        async for event in events:
            while opening:  # only now: a chat that fails before its first word gets a status
                kind, data = opening.pop(0)
                yield told(kind, **data)
            if isinstance(event, Delta):
                yield told("response.output_text.delta", **place, delta=event.text, logprobs=[])
                continue
            if isinstance(event, Seen):
                continue
            response = _to_response(event, head, item_id)
            done = response["output"][0]
            yield told("response.output_text.done", **place, text=event.text, logprobs=[])
            yield told("response.content_part.done", **place, part=_to_part(event.text))
            yield told("response.output_item.done", output_index=0, item=done)
            yield told(f"response.{response['status']}", response=response)
