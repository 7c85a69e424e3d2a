"""The body of an HTTP response: read and decoded within a bound, and the error that it tells."""

from __future__ import annotations

import json
import re
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import http.client

_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,12}")
_LONGEST_LINE = 4096  # bytes of a line that announces a chunk
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's names for the three forms, as `wbits`
# Names under which servers put an error's text, from the outer to the inner.
_ERROR_NAMES = ("error", "errors", "message", "detail", "msg")
_MOST_MEMBERS = 100  # of a gzip body; each costs a copy of what follows it
_DEEPEST = 6


class TooLargeError(Exception):
    """A body is larger than its bound."""


class BrokenBodyError(Exception):
    """A body is cut off or malformed."""


class UnknownEncodingError(Exception):
    """A body came in a Content-Encoding that is not decoded here; the text is its name."""


def read_body(response: http.client.HTTPResponse, limit: int) -> bytes:
    """Return the decoded body of a response.

    Raises TooLargeError for a body of more than `limit` bytes, as it comes or decoded,
    UnknownEncodingError for a compression other than gzip and deflate, BrokenBodyError for a body
    that is cut off or malformed, and what the connection raises.
    """
    if response.chunked and response.fp is not None:
        data = _read_chunks(response.fp, limit)
    else:
        data = response.read(limit + 1)
    if len(data) > limit:
        raise TooLargeError
    if response.length:  # bytes of Content-Length that did not arrive
        raise BrokenBodyError(f"{response.length} bytes are missing")
    return _decoded(data, response.headers.get_all("Content-Encoding") or [], limit)


def _read_chunks(file: BinaryIO, limit: int) -> bytes:
    """Read a chunked body, at most `limit` bytes and one.

    Python's own reader takes a negative size for "all there is" (-1), or fails with a ValueError.
    """
    data = bytearray()
    while len(data) <= limit:
        line = file.readline(_LONGEST_LINE)
        size_text = line.partition(b";")[0].strip()
        if not line.endswith(b"\n"):
            raise BrokenBodyError("the end is missing")
        if not _CHUNK_SIZE.fullmatch(size_text):
            raise BrokenBodyError(f"a chunk of size {size_text[:40].decode('latin-1')!r}")
        size = int(size_text, 16)
        if size == 0:
            break  # trailers may follow; the connection is closed without them
        part = file.read(min(size, limit + 1 - len(data)))
        data += part
        if len(data) > limit:
            break
        if len(part) < size:
            raise BrokenBodyError(f"{size - len(part)} bytes are missing")
        if file.readline(_LONGEST_LINE).strip():
            raise BrokenBodyError("a chunk that is longer than its size")
    return bytes(data)


def _decoded(data: bytes, headers: list[str], limit: int) -> bytes:
    """Undo the Content-Encodings, which servers send although none was asked for."""
    names = [name.strip().lower() for name in ",".join(headers).split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if len(names) > 1:  # an archive within an archive is no reply of a chat server
        raise UnknownEncodingError(", ".join(names))
    if not names or not data:
        return data
    if names[0] in ("gzip", "x-gzip"):
        return _inflated(data, _GZIP, limit)
    if names[0] == "deflate":  # by the standard zlib's form; several servers send the raw one
        try:
            return _inflated(data, _ZLIB, limit)
        except BrokenBodyError:
            return _inflated(data, _RAW, limit)
    raise UnknownEncodingError(names[0])


def _inflated(data: bytes, form: int, limit: int) -> bytes:
    out = bytearray()
    for _ in range(_MOST_MEMBERS):
        if not data:
            return bytes(out)
        unpacker = zlib.decompressobj(form)
        try:
            out += unpacker.decompress(data, limit + 1 - len(out))
        except zlib.error as error:
            raise BrokenBodyError(f"damaged compressed data ({error})") from error
        if len(out) > limit:
            raise TooLargeError
        if not unpacker.eof:
            raise BrokenBodyError("compressed data without an end")
        # A gzip body may have several members; whatever follows another form is padding.
        data = unpacker.unused_data if form == _GZIP else b""
    if data:
        raise BrokenBodyError(f"more than {_MOST_MEMBERS} pieces of compressed data")
    return bytes(out)


# ---- what a body says


def error_in(value: Any) -> str | None:
    """Return the error that a reply's JSON tells, in the server's own words; None without one.

    OpenAI, llama.cpp, vLLM: {"error": {"message": …}}; Ollama, LM Studio: {"error": "…"}; older
    vLLM: {"object": "error", "message": …}; FastAPI: {"detail": …}.
    """
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return error_in(value[0]) if set(value[0]) == {"error"} else None
    if not isinstance(value, dict):
        return None
    for name in ("error", "errors"):
        if value.get(name):
            return error_words(value)
    if "choices" in value or "data" in value:
        return None
    told = value.get("object") == "error" or value.get("type") == "error"
    if told or any(isinstance(value.get(name), (str, list)) for name in ("message", "detail")):
        return error_words(value)
    return None


def error_status(value: Any) -> int:
    """Return the HTTP status that an error's JSON names as its code, 500 if it names none."""
    error = value[0] if isinstance(value, list) and value else value
    inner = error.get("error") if isinstance(error, dict) else None
    for place in (inner, error):
        if isinstance(place, dict):
            for name in ("code", "status", "status_code"):
                text = str(place.get(name))
                if text.isdecimal() and len(text) == 3 and 400 <= int(text) < 600:
                    return int(text)
    return 500


def error_words(value: Any) -> str:
    """Return an error's message from its JSON; the JSON itself where no message is found."""
    whole = value
    for _ in range(_DEEPEST):
        if isinstance(value, list) and value:
            value = value[0]
        elif isinstance(value, dict) and (
            name := next((name for name in _ERROR_NAMES if value.get(name)), None)
        ):
            value = value[name]
        else:
            break
    if isinstance(value, str) and value.strip():
        return value
    return json.dumps(whole, ensure_ascii=False)[:2000]


def body_words(data: bytes) -> str:
    """Return what a body says: the error's message, a web page's title, or its beginning."""
    try:
        return error_words(json.loads(data))
    except (ValueError, RecursionError):
        pass
    text = data[:10_000].decode("utf-8", "replace").strip()
    lower = text.lower()
    if lower.startswith(("<!doctype html", "<html")):
        begin, end = lower.find("<title>"), lower.find("</title>")
        title = text[begin + len("<title>") : end].strip() if 0 <= begin < end else ""
        return f"a web page, {title!r}" if title else "a web page"
    return text


def key_pattern(key: str) -> re.Pattern[str]:
    r"""Return a pattern that finds `key`, also where its characters are escaped.

    Escapes are those of JSON and Python (\u002d, \x2d), of URLs (%2d) and of HTML (&#45;, &#x2d;).
    """
    parts = []
    for character in key:
        code = ord(character)
        escaped = rf"\\+u00{code:02x}|\\+x{code:02x}|%{code:02x}|&#0*{code};|&#x0*{code:x};"
        # A character that JSON escapes with a backslash alone: \/ \" \\
        parts.append(rf"(?:\\*{re.escape(character)}|(?i:{escaped}))")
    return re.compile("".join(parts))
