"""`POST /v1/captions` and `POST /v1/ask`: EdgePrism's own requests, whole or as streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgeprism.choices import INSTRUCTION_MODES
from edgeprism.perceive.options import CaptionOptions
from edgeprism.reason.shape import Shape, choices_to_shape
from edgeprism.serve.bodies import Checker, is_form, read_form, read_json
from edgeprism.serve.dialect import VISUAL_TOKENS, to_shape
from edgeprism.serve.events import Answered, Described, Event, Failed, Focused, Piece, Written
from edgeprism.serve.options import Limits
from edgeprism.serve.refusals import Refusal, to_error, to_refusal
from edgeprism.serve.replies import EVENT_STREAM, stream_reply, to_event, while_present
from edgeprism.serve.service import Description, Query, Service
from edgeprism.serve.uploads import Upload, text_to_bytes, to_name, to_upload

# type in JSON → how a form's text is read as it
_READERS: dict[str, Callable[[str], object]] = {
    "integer": int,
    "number": float,
    "boolean": {"true": True, "false": False}.__getitem__,
}
_IMAGE = {
    "description": "A picture's file in base64, or as a data URL; or an object with its name.",
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "object",
            "properties": {"data": {"type": "string", "minLength": 1}, "name": {"type": "string"}},
            "required": ["data"],
            "additionalProperties": False,
        },
    ],
}


def _shared(limits: Limits) -> dict[str, Any]:
    text = {"type": "string", "maxLength": limits.text_chars}
    return {
        "model": {"type": "string", "description": "Default: the server's."},
        "images": {"type": "array", "items": _IMAGE, "minItems": 1, "maxItems": limits.pictures},
        "instruction": {**text, "description": "Replaces the model's own instruction."},
        "focus": {**text, "description": "What to observe."},
        "caption_tokens": {"type": "integer", "minimum": 1},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
        "visual_tokens": VISUAL_TOKENS,
        "stream": {"type": "boolean", "description": "Answer with server-sent events."},
    }


def captions_schema(limits: Limits) -> dict[str, Any]:
    """Return the schema of the JSON body of /v1/captions."""
    return {
        "type": "object",
        "properties": _shared(limits),
        "required": ["images"],
        "additionalProperties": False,
    }


def ask_schema(limits: Limits) -> dict[str, Any]:
    """Return the schema of the JSON body of /v1/ask."""
    text = {"type": "string", "maxLength": limits.text_chars}
    own = {
        "question": {**text, "minLength": 1, "pattern": r"\S"},
        "options": {
            "type": "object",
            "description": 'Lettered options: {"A": "red", "B": "blue"}.',
            "additionalProperties": {"type": "string", "minLength": 1, "maxLength": 200},
            "maxProperties": 26,
        },
        "hint": text,
        "instruction_mode": {"enum": list(INSTRUCTION_MODES)},
        "answer_tokens": {"type": "integer", "minimum": 1},
        "choices": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 100},
        "schema": {"type": "object", "description": "A JSON schema that the answer shall match."},
        "evidence": {"type": "boolean", "description": "Name the sentences that support it."},
    }
    return {
        "type": "object",
        "properties": {**_shared(limits), **own},
        "required": ["images", "question"],
        "additionalProperties": False,
    }


def form_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a multipart form with the same fields, and pictures as files."""
    fields = {}
    for name, rule in schema["properties"].items():
        if rule.get("type") == "string":  # a form's field is text, whatever it looks like
            fields[name] = {key: value for key, value in rule.items() if key != "type"}
        elif rule.get("type") in ("integer", "number", "boolean") or "enum" in rule:
            fields[name] = dict(rule)
        elif isinstance(rule.get("type"), list):
            fields[name] = {**rule, "type": [kind for kind in rule["type"] if kind != "null"]}
    files = schema["properties"]["images"]
    fields["images"] = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": files["maxItems"],
    }
    return {"type": "object", "properties": fields, "required": schema["required"]}


class CaptionRoutes:
    """The two requests, for one server."""

    def __init__(self, service: Service) -> None:
        self._service, self._limits = service, service.limits
        self._captions = Checker(captions_schema(service.limits))
        self._asks = Checker(ask_schema(service.limits))

    async def captions(self, request: Request) -> Response:
        """Describe each picture by itself; one that cannot be read fails alone."""
        body, pictures = await self._read(request, self._captions)
        job = await self._to_description(body, pictures)
        name = str(job.model)
        if body.get("stream"):
            parts = _to_parts(self._service.describe(job), job, name)
            return await self._stream(request, parts)
        results = await while_present(request, self._limits, self._collect(job))
        return JSONResponse({"object": "list", "model": name, "captions": results})

    async def ask(self, request: Request) -> Response:
        """Answer a question from the captions of the pictures."""
        body, pictures = await self._read(request, self._asks)
        job = await self._to_description(body, pictures)
        model = await self._service.models.resolve_both(body.get("model"))
        query = Query(
            Description(model, job.pictures, job.options, streams=job.streams),
            body["question"],
            options=body.get("options", {}),
            hint=body.get("hint"),
            instruction_mode=body.get("instruction_mode", "question"),
            answer_tokens=body.get("answer_tokens", 256),
            shape=await _to_shape(body),
            evidence=body.get("evidence", True),
            streams=job.streams,
        )
        if body.get("stream"):
            parts = _to_parts(self._service.ask(query), job, str(model))
            return await self._stream(request, parts)
        answer = await while_present(request, self._limits, self._answer(query))
        return JSONResponse({"object": "answer", "model": str(model), **answer})

    async def _stream(self, request: Request, parts: AsyncGenerator[bytes]) -> Response:
        return await stream_reply(
            request, self._service, parts, media_type=EVENT_STREAM,
            to_failure=lambda error: to_event({"error": error}, "error"),
        )  # fmt: skip

    async def _collect(self, job: Description) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = [{} for _ in job.pictures]
        async with aclosing(self._service.describe(job)) as events:
            async for event in events:
                if isinstance(event, Described):
                    results[event.index] = event.caption.to_dict()
                elif isinstance(event, Failed):
                    name = job.pictures[event.index].name
                    results[event.index] = {"image": name, "error": _told(event)}
        return results

    async def _answer(self, query: Query) -> dict[str, Any]:
        async with aclosing(self._service.ask(query)) as events:
            async for event in events:
                if isinstance(event, Answered):
                    return event.answer.to_dict()
        raise RuntimeError("a question ended without an answer")

    # ---- reading

    async def _read(
        self, request: Request, checker: Checker
    ) -> tuple[dict[str, Any], tuple[Upload, ...]]:
        if not is_form(request):
            body = await read_json(request, checker, "multipart/form-data")
            return body, tuple(
                self._to_upload(number, image) for number, image in enumerate(body["images"], 1)
            )
        fields, files = await read_form(request, self._limits)
        body = _typed(fields, checker.schema)
        checker.check({**body, "images": ["file" for _ in files]})
        return body, tuple(
            to_upload(to_name(name, number), data, self._limits)
            for number, (name, data) in enumerate(files, 1)
        )

    def _to_upload(self, number: int, image: str | dict[str, str]) -> Upload:
        image = {"data": image} if isinstance(image, str) else image
        name = to_name(image.get("name"), number)
        return to_upload(name, text_to_bytes(name, image["data"]), self._limits)

    async def _to_description(
        self, body: Mapping[str, Any], pictures: tuple[Upload, ...]
    ) -> Description:
        model = await self._service.models.resolve(body.get("model"))
        names = CaptionOptions.__annotations__
        options = CaptionOptions(**{n: body[n] for n in names if n in body})  # type: ignore[typeddict-item]
        return Description(model, pictures, options, streams=bool(body.get("stream")))


def _typed(fields: Mapping[str, str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a form as JSON would hold them; raises Refusal for another type."""
    values: dict[str, Any] = {}
    for name, text in fields.items():
        kind = schema["properties"].get(name, {}).get("type")
        if isinstance(kind, list):  # an integer or a word
            kind = "integer" if text.isascii() and text.isdigit() else "string"
        try:
            values[name] = _READERS[kind](text) if kind in _READERS else text
        except (ValueError, KeyError) as error:
            raise Refusal(
                400, "invalid_request", f"The form's field {name} is no {kind}.",
                "GET /openapi.json describes every request.",
            ) from error  # fmt: skip
    return values


async def _to_shape(body: Mapping[str, Any]) -> Shape | None:
    if "choices" in body and "schema" in body:
        raise Refusal(400, "invalid_request", "choices and schema exclude each other.", "Send one.")
    if "choices" in body:
        return choices_to_shape(body["choices"])
    return await to_shape(body["schema"], "the schema") if "schema" in body else None


def _told(event: Failed) -> dict[str, Any]:
    return to_error(to_refusal(event.error))


async def _to_parts(
    events: AsyncGenerator[Event], job: Description, model: str
) -> AsyncGenerator[bytes]:
    """Write events as server-sent events; `docs/reference/server.md` lists them."""
    async with aclosing(events):
        async for event in events:
            match event:
                case Piece(index, text):
                    yield to_event({"index": index, "text": text}, "caption.delta")
                case Described(index, caption):
                    data = {"index": index, "caption": caption.to_dict()}
                    yield to_event(data, "caption.done")
                case Failed(index):
                    data = {"index": index, "image": job.pictures[index].name}
                    yield to_event({**data, "error": _told(event)}, "caption.failed")
                case Focused(focus):
                    yield to_event({"focus": focus}, "focus")
                case Written(text):
                    yield to_event({"text": text}, "answer.delta")
                case Answered(answer):
                    yield to_event({"answer": answer.to_dict()}, "answer.done")
        yield to_event({"model": model}, "done")
