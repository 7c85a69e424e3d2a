"""What the requests of OpenAI's and Ollama's APIs share: parts of schemas, pictures, numbers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edgeprism.choices import ALL, AUTO
from edgeprism.files.safe_text import short_line
from edgeprism.reason.json_schema import schema_to_shape
from edgeprism.reason.shape import Shape, object_shape
from edgeprism.serve.chat import Message
from edgeprism.serve.options import Limits
from edgeprism.serve.refusals import Refusal
from edgeprism.serve.uploads import Upload, text_to_bytes, to_upload

ANY_OBJECT = {"type": "object"}  # the schema of any JSON object
TEMPERATURE = {"type": ["number", "null"], "minimum": 0, "maximum": 2}
SEED = {"type": ["integer", "null"], "minimum": -(2**63), "maximum": 2**63 - 1}
TOKENS = {"type": ["integer", "null"], "minimum": 1}
VISUAL_TOKENS = {
    "type": ["integer", "string", "null"],
    "minimum": 1,
    "pattern": f"^({AUTO}|{ALL})$",
    "description": f'The most visual tokens of a picture: a number, "{AUTO}" or "{ALL}". Default: '
    "the server's.",
}
TOOLS = {
    "type": ["array", "null"],
    "maxItems": 0,
    "description": "The models here call no tools; leave them out.",
}
_SEEDS = 2**32


def content_to_message(
    role: str,
    content: str | list[Mapping[str, Any]] | None,
    picture_in: Callable[[Mapping[str, Any]], str | None],
    pictures: Pictures,
    limits: Limits,
) -> Message:
    """Return one message of OpenAI's APIs, whose content is a text or a list of parts.

    `picture_in` returns the picture that a part holds; None for a part of text. Raises Refusal.
    """
    if not isinstance(content, list):
        return to_message(role, content or "", (), pictures, limits)
    texts = [part["text"] for part in content if picture_in(part) is None]
    images = [picture for part in content if (picture := picture_in(part)) is not None]
    return to_message(role, "\n".join(texts), images, pictures, limits)


def explain_parts(name: str, part: Mapping[str, Any]) -> Callable[[Any], Refusal | None]:
    """Return a function that says which part of a body's messages is of a kind not read here.

    `name` is the field of the messages, `part` the schema of those parts that are read.
    """
    known: list[str] = []
    for form in part["anyOf"]:
        rule = form["properties"]["type"]
        known += rule.get("enum") or [rule["const"]]

    def explain(body: Any) -> Refusal | None:
        messages = body.get(name) if isinstance(body, dict) else None
        for index, message in enumerate(messages if isinstance(messages, list) else ()):
            content = message.get("content") if isinstance(message, dict) else None
            for number, each in enumerate(content if isinstance(content, list) else ()):
                kind = each.get("type") if isinstance(each, dict) else None
                if isinstance(kind, str) and kind not in known:
                    return _unread(f"{name}[{index}].content[{number}]", kind, known)
        return None

    return explain


def _unread(where: str, kind: str, known: Iterable[str]) -> Refusal:
    what = next((word for word in ("audio", "video", "file") if word in kind), "it")
    return Refusal(
        400, "part_not_understood",
        f"{where} is of type {short_line(kind, 40)!r}: {what} is not understood here.",
        f"Send texts and pictures alone ({', '.join(known)}).",
    )  # fmt: skip


def to_message(
    role: str, text: str, images: Iterable[str], pictures: Pictures, limits: Limits
) -> Message:
    """Return one message of a chat with its pictures. Raises Refusal."""
    role = "system" if role == "developer" else role
    uploads = tuple(map(pictures.take, images))
    if uploads and role != "user":
        raise Refusal(
            400, "misplaced_picture", f"A message of the {role} holds a picture; pictures are "
            "read in user messages only.", "Move it to a user message.",
        )  # fmt: skip
    return Message(role, check_length(text, limits), uploads)


class Pictures:
    """Gathers the pictures of one request, within its limit, and numbers them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._count = 0

    def take(self, text: str) -> Upload:
        """Return the next picture, from a data URL or base64. Raises Refusal."""
        self._count += 1
        if self._count > self._limits.pictures:
            raise Refusal(
                400, "too_many_pictures", f"More than {self._limits.pictures} pictures.",
                "Send fewer at a time.",
            )  # fmt: skip
        name = f"picture {self._count}"
        return to_upload(name, text_to_bytes(name, text), self._limits)


def to_seed(seed: int | None) -> int:
    """Return a seed as llama.cpp takes it."""
    return (seed or 0) % _SEEDS


async def to_shape(schema: Any, where: str) -> Shape:
    """Return the shape of answers that match a JSON schema; None and {} stand for any object.

    It is compiled in a thread, so that other clients do not wait for it. Raises UsageError.
    """
    if schema in (None, {}):
        return object_shape()
    return await asyncio.to_thread(schema_to_shape, schema, where)


def check_length(text: str, limits: Limits) -> str:
    """Return a text of a request; raises Refusal for one that is too long."""
    if len(text) > limits.text_chars:
        raise Refusal(
            400, "text_too_long", f"A text of {len(text):,} characters; at most "
            f"{limits.text_chars:,} are read.", "Shorten it.",
        )  # fmt: skip
    return text


def new_id(kind: str) -> str:
    """Return an identifier for an answer: "chatcmpl-…"."""
    return f"{kind}{secrets.token_hex(12)}"
