"""Lines of standard input → messages of JSON-RPC; what is none is answered as JSON-RPC says.

The package `mcp` drops such a line without a word, and a client that sent it would wait for ever.
The error codes are those of https://www.jsonrpc.org/specification, section 5.1.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, Protocol

from mcp import types

from edgeprism.serve.standard_pipes import LONGEST_LINE

_LONGEST_ID = 100  # characters of a request's id that an error repeats


class Output(Protocol):
    """Where answers are written."""

    async def write(self, text: str) -> None:
        """Write a text."""


class Messages:
    """Iterates over the lines that are messages; answers and logs the others."""

    def __init__(
        self, lines: AsyncIterable[str], output: Output, *, on_log: Callable[[str], object]
    ) -> None:
        """`on_log` gets a sentence about each line that is no message, without its content."""
        self._lines, self._output, self._on_log = lines, output, on_log

    async def __aiter__(self) -> AsyncIterator[str]:
        async for line in self._lines:
            if not line.strip():
                continue
            fault = find_fault(line)
            if fault is None:
                yield line
                continue
            self._on_log(f"a line of standard input is no message: {fault['error']['message']}")
            await self._output.write(json.dumps(fault) + "\n")


def find_fault(line: str) -> dict[str, Any] | None:
    """Return the answer to a line that is no message of JSON-RPC; None for a message."""
    try:
        types.jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValueError:  # pydantic's
        pass
    else:
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        what = "It is not JSON."
        if len(line.encode()) >= LONGEST_LINE:
            what += f" Lines have at most {LONGEST_LINE:,} bytes."
        return _error(types.PARSE_ERROR, what, None)
    if isinstance(value, list):
        return _error(types.INVALID_REQUEST, "It is a list; send each message by itself.", None)
    what = "It is JSON, and neither a request nor a notification nor a response of JSON-RPC 2.0."
    return _error(types.INVALID_REQUEST, what, _id_of(value))


def _id_of(value: Any) -> str | int | None:
    """Return the id of what was meant as a request."""
    found = value.get("id") if isinstance(value, dict) and "method" in value else None
    is_id = isinstance(found, (str, int)) and not isinstance(found, bool)
    return found if is_id and len(str(found)) <= _LONGEST_ID else None


def _error(code: int, message: str, number: str | int | None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": message}}
