"""What the requests of OpenAI's and Ollama's APIs share: parts of schemas, pictures, numbers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from typing import Any

from edgeprism.reason.json_schema import schema_to_shape
from edgeprism.reason.shape import Shape
from edgeprism.serve.chat import Message
from edgeprism.serve.options import Limits
from edgeprism.serve.refusals import Refusal
from edgeprism.serve.uploads import Upload, text_to_bytes, to_upload

ANY_OBJECT = {"type": "object"}  # the schema of any JSON object
TEMPERATURE = {"type": ["number", "null"], "minimum": 0, "maximum": 2}
SEED = {"type": ["integer", "null"], "minimum": -(2**63), "maximum": 2**63 - 1}
TOKENS = {"type": ["integer", "null"], "minimum": 1}
TOOLS = {
    "type": ["array", "null"],
    "maxItems": 0,
    "description": "The models here call no tools; leave them out.",
}
_SEEDS = 2**32


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


def to_temperature(temperature: float | None) -> float:
    """Return the temperature to sample at; 0 if none is given, so that answers are the same."""
    return float(temperature or 0.0)


async def to_shape(schema: Any, where: str) -> Shape:
    """Return the shape of answers that match a JSON schema; None stands for any object.

    It is compiled in a thread, so that other clients do not wait for it. Raises UsageError.
    """
    schema = {"type": "object"} if schema is None else schema
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
