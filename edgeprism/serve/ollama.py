"""Ollama's requests, as far as programs need them that know no other API.

`/api/chat` and `/api/generate` answer with lines of JSON unless `stream` is false; `/api/tags`,
`/api/show`, `/api/ps` and `/api/version` let a program find the models.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgeprism.reason.shape import Shape
from edgeprism.serve.bodies import Checker, read_json
from edgeprism.serve.chat import ChatEvent, Delta, Ended, Message
from edgeprism.serve.chat_requests import Form, read_chat, reply_to_chat
from edgeprism.serve.dialect import (
    SEED,
    TEMPERATURE,
    TOOLS,
    VISUAL_TOKENS,
    Pictures,
    check_length,
    to_message,
    to_shape,
)
from edgeprism.serve.models import ModelName, Offer
from edgeprism.serve.options import to_seconds
from edgeprism.serve.replies import NDJSON, to_line, while_present
from edgeprism.serve.service import Service

_VERSION = "0.12.0"  # of Ollama's API as it is answered here; clients compare it
_IMAGES = {"type": ["array", "null"], "items": {"type": "string"}}
_COMMON: dict[str, Any] = {
    "model": {"type": "string", "minLength": 1},
    "stream": {"type": ["boolean", "null"]},
    "format": {
        "anyOf": [{"type": "null"}, {"enum": ["", "json"]}, {"type": "object"}],
        "description": '"json", or a JSON schema.',
    },
    "options": {
        "type": ["object", "null"],
        "properties": {
            "num_predict": {"type": ["integer", "null"]},
            "temperature": TEMPERATURE,
            "seed": SEED,
            "visual_tokens": VISUAL_TOKENS,
        },
    },
    "keep_alive": {"type": ["string", "number", "null"]},
}


def chat_schema() -> dict[str, Any]:
    """Return the schema of the body of /api/chat."""
    message = {
        "type": "object",
        "properties": {
            "role": {"enum": ["system", "user", "assistant"]},
            "content": {"type": ["string", "null"]},
            "images": _IMAGES,
        },
        "required": ["role"],
    }
    messages = {"type": ["array", "null"], "items": message, "maxItems": 200}
    return {
        "type": "object",
        "properties": {**_COMMON, "messages": messages, "tools": TOOLS},
        "required": ["model"],
    }


def generate_schema() -> dict[str, Any]:
    """Return the schema of the body of /api/generate."""
    text = {"type": ["string", "null"]}
    own = {"prompt": text, "system": text, "images": _IMAGES}
    return {"type": "object", "properties": {**_COMMON, **own}, "required": ["model"]}


def show_schema() -> dict[str, Any]:
    """Return the schema of the body of /api/show; older clients call the model `name`."""
    name = {"type": "string", "minLength": 1}
    return {
        "type": "object",
        "properties": {"model": name, "name": name},
        "anyOf": [{"required": ["model"]}, {"required": ["name"]}],
    }


class OllamaRoutes:
    """These requests, for one server."""

    def __init__(self, service: Service) -> None:
        self._service, self._limits = service, service.limits
        self._chat, self._generate = Checker(chat_schema()), Checker(generate_schema())
        self._show = Checker(show_schema())

    async def version(self, _request: Request) -> Response:
        """Name the version of Ollama's API."""
        return JSONResponse({"version": _VERSION})

    async def tags(self, _request: Request) -> Response:
        """List the models."""
        offers = await self._service.models.offers()
        return JSONResponse({"models": [_to_tag(offer) for offer in offers]})

    async def running(self, _request: Request) -> Response:
        """List the captioners in memory."""
        names = (key.partition(" ") for key in self._service.models.in_memory())
        loaded = {name for kind, _, name in names if kind == "captioner"}
        offers = [o for o in await self._service.models.offers() if o.name in loaded]
        return JSONResponse({"models": [_to_tag(offer) for offer in offers]})

    async def show(self, request: Request) -> Response:
        """Describe a model."""
        body = await read_json(request, self._show)
        model = await self._service.models.resolve(body.get("model") or body["name"])
        offers = {offer.name: offer for offer in await self._service.models.offers()}
        offer = offers.get(str(model))
        return JSONResponse(
            {
                "license": offer.license if offer else "",
                "modelfile": "",
                "parameters": "",
                "template": "",
                "details": _DETAILS,
                "model_info": {"general.architecture": "edgeprism"},
                "capabilities": ["completion", "vision"],
                "modified_at": _EPOCH,
            }
        )

    async def chat(self, request: Request) -> Response:
        """Answer the last message of a chat."""
        body = await read_json(request, self._chat)
        pictures = Pictures(self._limits)
        messages = tuple(
            to_message(
                message["role"],
                message.get("content") or "",
                message.get("images") or (),
                pictures,
                self._limits,
            )
            for message in body.get("messages") or ()
        )
        return await self._reply(request, body, messages, _to_chat_text)

    async def generate(self, request: Request) -> Response:
        """Answer one prompt."""
        body = await read_json(request, self._generate)
        pictures = Pictures(self._limits)
        prompt = Message(
            "user",
            check_length(body.get("prompt") or "", self._limits),
            tuple(map(pictures.take, body.get("images") or ())),
        )
        system = Message("system", check_length(body.get("system") or "", self._limits))
        messages = (system, prompt) if prompt.text or prompt.pictures else ()
        return await self._reply(request, body, messages, _to_generate_text)

    async def _reply(
        self, request: Request, body: Mapping[str, Any], messages: tuple[Message, ...],
        to_text: Callable[[str], dict[str, Any]],
    ) -> Response:  # fmt: skip
        started, name = time.perf_counter(), body["model"]
        if not messages:
            model = await self._service.models.resolve(name)
            return await self._load_or_free(request, model, body, to_text)
        keep, options = body.get("keep_alive"), body.get("options") or {}
        tokens = options.get("num_predict")
        chat = await read_chat(
            self._service, body, messages,
            tokens=tokens if tokens is not None and tokens > 0 else None,
            shape=await _to_shape(body.get("format")),
            sampling=options,
            streams=body.get("stream") is not False,
            keep_alive_s=None if keep is None else _to_seconds(keep),
        )  # fmt: skip

        def line(text: str, **more: Any) -> dict[str, Any]:
            return {"model": name, "created_at": _now(), **to_text(text), "done": False, **more}

        form = Form(
            to_whole=lambda ended: line(ended.text, **_to_end(ended, started)),
            to_parts=lambda events: _to_lines(events, line, started),
            to_failure=lambda error: to_line({"error": error["message"]}),
            media_type=NDJSON,
        )
        return await reply_to_chat(request, self._service, chat, form)

    async def _load_or_free(
        self, request: Request, model: ModelName, body: Mapping[str, Any],
        to_text: Callable[[str], dict[str, Any]],
    ) -> Response:  # fmt: skip
        """Load a model that is asked nothing; with `keep_alive` 0, let it go."""
        keep = body.get("keep_alive")
        if keep is None or _to_seconds(keep) > 0:
            await while_present(request, self._limits, self._load(model))
        self._keep(model, keep)
        reason = "unload" if keep is not None and _to_seconds(keep) == 0 else "load"
        return JSONResponse(
            {"model": body["model"], "created_at": _now(), **to_text(""), "done": True,
             "done_reason": reason}
        )  # fmt: skip

    async def _load(self, model: ModelName) -> None:
        async with self._service.models.captioner(model.captioner):
            pass

    def _keep(self, model: ModelName, keep_alive: str | float | None) -> None:
        if keep_alive is not None:
            self._service.models.keep(model, _to_seconds(keep_alive))


_DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "edgeprism",
    "families": ["edgeprism"],
    "parameter_size": "",
    "quantization_level": "",
}
_EPOCH = "1970-01-01T00:00:00Z"  # when a model was changed is not told


def _to_tag(offer: Offer) -> dict[str, Any]:
    return {
        "name": offer.name,
        "model": offer.name,
        "modified_at": _EPOCH,
        "size": offer.size,
        "digest": offer.digest,
        "details": _DETAILS,
    }


def _to_chat_text(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _to_generate_text(text: str) -> dict[str, Any]:
    return {"response": text}


async def _to_shape(given: Any) -> Shape | None:
    if given is None or given == "":
        return None
    return await to_shape(None if given == "json" else given, "format")


def _to_seconds(keep_alive: str | float) -> float:
    return to_seconds(str(keep_alive))


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _to_end(ended: Ended, started: float) -> dict[str, Any]:
    """Return the last line's fields; Ollama counts nanoseconds."""
    times = {stage: int(ms * 1e6) for stage, ms in ended.timings_ms.items()}
    return {
        "done": True,
        "done_reason": ended.finish_reason,
        "total_duration": int((time.perf_counter() - started) * 1e9),
        "load_duration": times["load"],
        "prompt_eval_count": ended.prompt_tokens,
        "prompt_eval_duration": times["encode"] + times["prefill"],
        "eval_count": ended.new_tokens,
        "eval_duration": times["decode"],
        "edgeprism": ended.to_extension(),
    }


async def _to_lines(
    events: AsyncGenerator[ChatEvent], line: Callable[..., dict[str, Any]], started: float
) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Delta):
                yield to_line(line(event.text))
            elif isinstance(event, Ended):
                yield to_line(line("", **_to_end(event, started)))
