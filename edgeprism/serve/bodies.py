"""Bodies of requests → checked values: JSON against a schema, forms with pictures."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from edgeprism.errors import EdgePrismError
from edgeprism.files.strict_json import json_without_duplicates
from edgeprism.reason.schema_check import Validator
from edgeprism.reason.schema_refs import References
from edgeprism.serve.options import Limits
from edgeprism.serve.refusals import ClientLeft, Refusal, one_line

_LARGE = 1 << 18  # bytes from which parsing goes to a thread
_MOST_FIELDS = 40
Result = TypeVar("Result")


class Checker:
    """Checks values against one JSON schema, which is also in the OpenAPI description."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema
        self._validator = Validator(schema, References(schema))

    def check(self, value: Any) -> None:
        """Raise Refusal for a value that the schema does not allow."""
        if fault := self._validator.fault(value):
            raise Refusal(
                400, "invalid_request", f"The request is not as it should be: {fault}.",
                "GET /openapi.json describes every request.",
            )  # fmt: skip


async def read_json(request: Request, checker: Checker) -> dict[str, Any]:
    """Return the JSON object of a request's body. Raises Refusal."""
    kind = _content_type(request)
    if kind != "application/json":
        raise wrong_type(kind, "application/json")
    data = await read_body(request)
    value = await _aside(len(data), lambda: _parse(data))
    checker.check(value)
    return dict(value)


async def read_body(request: Request) -> bytes:
    """Return a request's whole body. Raises ClientLeft, and Refusal for one over the limits."""
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise ClientLeft from error


async def read_form(
    request: Request, limits: Limits
) -> tuple[dict[str, str], list[tuple[str | None, bytes]]]:
    """Return the fields of a multipart form, and its files as (name, bytes), all in memory."""

    async def stream() -> AsyncGenerator[bytes]:
        try:
            async for part in request.stream():
                yield part
        except ClientDisconnect as error:
            raise ClientLeft from error

    parser = MultiPartParser(
        request.headers, stream(),
        max_files=limits.pictures, max_fields=_MOST_FIELDS, max_part_size=limits.body_bytes,
    )  # fmt: skip
    parser.spool_max_size = limits.body_bytes + 1  # no upload goes to the disk
    fields: dict[str, str] = {}
    files: list[tuple[str | None, bytes]] = []
    try:
        form = await parser.parse()
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.append((value.filename, await value.read()))
            elif name in fields:
                raise Refusal(400, "invalid_form", f"The form's field {name!r} is given twice.")
            else:
                fields[name] = value
    except MultiPartException as error:
        raise Refusal(
            400, "invalid_form", f"The form cannot be read: {error.message}",
            "Send multipart/form-data, each picture as a file.",
        ) from error  # fmt: skip
    return fields, files


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_form(request: Request) -> bool:
    """Return whether a request's body is a multipart form."""
    return _content_type(request) == "multipart/form-data"


def wrong_type(given: str, *expected: str) -> Refusal:
    """Return the refusal of a body of another type."""
    return Refusal(
        415, "wrong_content_type", f"The body's type is {given or 'not given'}.",
        f"Send {' or '.join(expected)}, and say so in Content-Type.",
    )  # fmt: skip


def _parse(data: bytes) -> Any:
    try:
        value = json_without_duplicates(data, "the body")
    except EdgePrismError as error:
        detail = one_line(error).removeprefix("the body is refused: ")
        raise Refusal(400, "invalid_json", f"The body is {detail}.") from error
    # a lone surrogate in an escape is no text: it could not be sent back
    if b"\\u" in data:
        with contextlib.suppress(UnicodeEncodeError):
            json.dumps(value, ensure_ascii=False).encode()
            return value
        raise Refusal(400, "invalid_json", "The body holds half of a character (\\ud800…\\udfff).")
    return value


async def _aside(size: int, work: Callable[[], Result]) -> Result:
    return await asyncio.to_thread(work) if size > _LARGE else work()
