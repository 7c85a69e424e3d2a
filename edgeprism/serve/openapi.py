"""The OpenAPI description of the server's requests: the very schemas that they are checked by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from edgeprism.serve.captions import ask_schema, captions_schema, form_schema
from edgeprism.serve.completions import completions_schema
from edgeprism.serve.ollama import chat_schema, generate_schema, show_schema
from edgeprism.serve.options import ServeOptions
from edgeprism.serve.replies import EVENT_STREAM, NDJSON
from edgeprism.serve.responses import responses_schema
from edgeprism.version import __version__

_JSON = "application/json"
# status → what it means here
_REFUSALS = {
    400: "The request, or a picture in it, cannot be read",
    401: "The API key is missing or wrong",
    403: "The host or the origin is not allowed",
    404: "There is no such model",
    405: "The path takes other methods",
    408: "The request took too long to arrive",
    413: "The request or a picture is too large",
    415: "The body has another type",
    429: "The queue is full; Retry-After says when to come back",
    500: "The server failed",
    502: "The reasoner failed",
    503: "A model cannot be used now",
    504: "There was no answer within the time limit",
}


@dataclass(frozen=True)
class _Operation:
    """One request: `fields` are those that its answer always has."""

    method: str
    path: str
    summary: str
    fields: tuple[str, ...] = ()
    body: dict[str, Any] | None = None
    form: dict[str, Any] | None = None
    streams: str | None = None  # the media type
    media_type: str = _JSON
    parameters: list[dict[str, Any]] = field(default_factory=list)


def describe_api(options: ServeOptions) -> dict[str, Any]:
    """Return the description of a server with these options."""
    paths: dict[str, Any] = {}
    for operation in _operations(options):
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation)
    description: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "EdgePrism",
            "version": __version__,
            "description": "Captions of pictures, and answers from them, on one's own machine.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": {"Error": _error(), "OllamaError": _ollama_error()}},
    }
    if options.api_key is not None:
        schemes = {"key": {"type": "http", "scheme": "bearer"}}
        description["components"]["securitySchemes"] = schemes
        description["security"] = [{"key": []}]
    return description


def _operations(options: ServeOptions) -> Iterable[_Operation]:
    limits = options.limits
    captions, ask = captions_schema(limits), ask_schema(limits)
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    text = "text/plain"
    return (
        _Operation("get", "/healthz", "Whether the server answers", ("status", "version")),
        _Operation("get", "/metrics", "Counters for Prometheus", media_type=text),
        _Operation("get", "/openapi.json", "This description", ("openapi", "paths")),
        _Operation("get", "/v1/models", "The models that are here", ("object", "data", "defaults")),
        _Operation("get", "/v1/models/{name}", "One model", ("id", "object"), parameters=[name]),
        _Operation("post", "/v1/captions", "Describe pictures", ("model", "captions"), captions,
                   form_schema(captions), EVENT_STREAM),
        _Operation("post", "/v1/ask", "Answer a question about pictures", ("model", "answer"), ask,
                   form_schema(ask), EVENT_STREAM),
        _Operation("post", "/v1/chat/completions", "A chat, as OpenAI's API has it",
                   ("id", "choices", "usage"), completions_schema(), None, EVENT_STREAM),
        _Operation("post", "/v1/responses", "A response, as OpenAI's API has it",
                   ("id", "output", "status"), responses_schema(), None, EVENT_STREAM),
        _Operation("post", "/api/chat", "A chat, as Ollama has it", ("model", "done"),
                   chat_schema(), None, NDJSON),
        _Operation("post", "/api/generate", "A prompt, as Ollama has it", ("model", "done"),
                   generate_schema(), None, NDJSON),
        _Operation("post", "/api/show", "One model, as Ollama has it", ("details",),
                   show_schema()),
        _Operation("get", "/api/tags", "The models, as Ollama lists them", ("models",)),
        _Operation("get", "/api/ps", "The models in memory, as Ollama lists them", ("models",)),
        _Operation("get", "/api/version", "The version of Ollama's API", ("version",)),
    )  # fmt: skip


def _describe(operation: _Operation) -> dict[str, Any]:
    kind = "OllamaError" if operation.path.startswith("/api/") else "Error"
    error = {_JSON: {"schema": {"$ref": f"#/components/schemas/{kind}"}}}
    answer = {"schema": {"type": "object", "required": list(operation.fields)}}
    content = {operation.media_type: answer if operation.media_type == _JSON else {}}
    if operation.streams:
        content[operation.streams] = {}
    responses: dict[str, Any] = {"200": {"description": "Done", "content": content}}
    for status, meaning in _REFUSALS.items():
        responses[str(status)] = {"description": meaning, "content": error}
    described: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if operation.parameters:
        described["parameters"] = operation.parameters
    if operation.path == "/healthz":
        described["security"] = []
    if operation.body is not None:
        bodies = {_JSON: {"schema": operation.body}}
        if operation.form is not None:
            bodies["multipart/form-data"] = {"schema": operation.form}
        described["requestBody"] = {"required": True, "content": bodies}
    return described


def _error() -> dict[str, Any]:
    words = {"message": {"type": "string"}, "type": {"type": "string"}}
    more = {"code": {"type": "string"}, "hint": {"type": "string"}, "param": {"type": "null"}}
    inner = {"type": "object", "properties": {**words, **more}, "required": ["message", "code"]}
    return {"type": "object", "properties": {"error": inner}, "required": ["error"]}


def _ollama_error() -> dict[str, Any]:
    properties = {"error": {"type": "string"}}
    return {"type": "object", "properties": properties, "required": ["error"]}
