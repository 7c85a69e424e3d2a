"""Bodies of requests → checked values: JSON against a schema, forms with pictures."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from edgeprism.errors import EdgePrismError
from edgeprism.files.safe_text import short_line
from edgeprism.files.strict_json import json_without_duplicates
from edgeprism.reason.schema_check import Validator
from edgeprism.reason.schema_refs import References
from edgeprism.serve.options import Limits
from edgeprism.serve.refusals import ClientLeft, Refusal, one_line

_LARGE = 1 << 18  # bytes from which parsing goes to a thread
_MOST_FIELDS = 40
_NAME_CHARS = 80  # of a name that a message repeats
Result = TypeVar("Result")


class Checker:
    """Checks values against one JSON schema, which is also in the OpenAPI description."""

    def __init__(
        self, schema: dict[str, Any], explain: Callable[[Any], Refusal | None] = lambda _: None
    ) -> None:
        """`explain` may find a better refusal of a value than the schema's fault."""
        self.schema, self._explain = schema, explain
        self._validator = Validator(schema, References(schema))

    def check(self, value: Any) -> None:
        """Raise Refusal for a value that the schema does not allow."""
        if fault := self._validator.fault(value):
            if refusal := self._explain(value):
                raise refusal
            name = re.split(r"[.:\[]", fault.removeprefix("$."), maxsplit=1)[0]
            about = self.schema["properties"].get(name, {}).get("description", "")
            raise Refusal(
                400, "invalid_request", f"The request is not as it should be: {fault}.",
                f"{about} GET /openapi.json describes every request.".strip(),
            )  # fmt: skip


async def read_json(request: Request, checker: Checker, *others: str) -> dict[str, Any]:
    """Return the JSON object of a request's body; `others` are types that it could have too.

    Raises Refusal.
    """
    kind = _content_type(request)
    if kind != "application/json":
        raise wrong_type(kind, "application/json", *others)
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


class _WholeFormParser(MultiPartParser):
    """Starlette's parser, which by itself takes a form that breaks off for a whole one."""

    has_ended = False  # the last boundary was read

    def on_end(self) -> None:
        self.has_ended = True


async def read_form(
    request: Request, limits: Limits
) -> tuple[dict[str, str], list[tuple[str | None, bytes]]]:
    """Return the fields of a multipart form, and its files as (name, bytes), all in memory.

    Raises Refusal, of a form in another charset than UTF-8 too.
    """
    _check_charset(request)

    async def stream() -> AsyncGenerator[bytes]:
        try:
            async for part in request.stream():
                yield part
        except ClientDisconnect as error:
            raise ClientLeft from error

    parser = _WholeFormParser(
        request.headers, stream(),
        max_files=limits.pictures, max_fields=_MOST_FIELDS, max_part_size=limits.body_bytes,
    )  # fmt: skip
    parser.spool_max_size = limits.body_bytes + 1  # no upload goes to the disk
    fields: dict[str, str] = {}
    files: list[tuple[str | None, bytes]] = []
    try:
        form = await parser.parse()
        if not parser.has_ended:
            raise MultiPartException("it breaks off before its last boundary.")
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.append((value.filename, await value.read()))
            elif not _is_text(name + value):
                raise Refusal(400, "invalid_form", "The form holds half of a character.")
            elif name in fields:
                short = short_line(name, _NAME_CHARS)
                raise Refusal(400, "invalid_form", f"The form's field {short!r} is given twice.")
            else:
                fields[name] = value
    except MultiPartException as error:
        raise Refusal(
            400, "invalid_form", f"The form cannot be read: {error.message}",
            "Send multipart/form-data, each picture as a file.",
        ) from error  # fmt: skip
    return fields, files


def _check_charset(request: Request) -> None:
    """Refuse a form in another charset than UTF-8: Python knows many, some of them for no text."""
    options = parse_options_header(request.headers.get("content-type", ""))[1]
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    with contextlib.suppress(LookupError, ValueError):
        if codecs.lookup(charset).name == "utf-8":
            return
    raise Refusal(
        400, "invalid_form", f"The form's charset is {short_line(charset, _NAME_CHARS)!r}.",
        "Send it in UTF-8, and leave charset out of Content-Type.",
    )  # fmt: skip


def _is_text(text: str) -> bool:
    """Return whether a text can be written in UTF-8: without half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_form(request: Request) -> bool:
    """Return whether a request's body is a multipart form."""
    return _content_type(request) == "multipart/form-data"


def wrong_type(given: str, *expected: str) -> Refusal:
    """Return the refusal of a body of another type."""
    short = short_line(given, _NAME_CHARS) or "not given"
    return Refusal(
        415, "wrong_content_type", f"The body's type is {short}.",
        f"Send {' or '.join(expected)}, and say so in Content-Type.",
    )  # fmt: skip


def _parse(data: bytes) -> Any:
    try:
        value = json_without_duplicates(data, "the body")
    except EdgePrismError as error:
        detail = one_line(error).removeprefix("the body is refused: ")
        raise Refusal(400, "invalid_json", f"The body is {detail}.") from error
    # a lone surrogate in an escape is no text: it could not be sent back
    if b"\\u" in data and not _is_text(json.dumps(value, ensure_ascii=False)):
        raise Refusal(400, "invalid_json", "The body holds half of a character (\\ud800…\\udfff).")
    return value


async def _aside(size: int, work: Callable[[], Result]) -> Result:
    return await asyncio.to_thread(work) if size > _LARGE else work()
