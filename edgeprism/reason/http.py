"""JSON over HTTP with one server, bounded in time, size and number of tries.

The server must be on this machine unless the caller allows the network. The client connects to
the same address that it checked, uses no proxy and follows no redirect.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from edgeprism.errors import Interrupted, ReplyError, ServerError, UsageError
from edgeprism.files.safe_text import short_line
from edgeprism.machine.cancel import Cancel
from edgeprism.reason.http_address import KEY_VARIABLE, is_loopback, is_own_name, parse_address
from edgeprism.reason.http_body import (
    BrokenBodyError,
    TooLargeError,
    UnknownEncodingError,
    body_words,
    error_in,
    error_status,
    key_pattern,
    read_body,
)
from edgeprism.version import __version__

MAX_REPLY = 8 << 20  # bytes
ATTEMPTS = 3
_CONNECT_S = 5.0
_LONGEST_PAUSE_S = 8.0
_LONGEST_MESSAGE = 300  # characters of a server's own error message
_WHICH_SERVER = "Is it an OpenAI-compatible server?"
_ELSEWHERE = "Text only leaves this machine when you say so: add `allow_network`."


Reply = TypeVar("Reply")


class StatusError(ReplyError):
    """The server answered with an HTTP status that is an error."""

    def __init__(self, status: int, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.status = status


class _Try(Exception):
    """One try failed; the caller raises `error` if it was the last."""

    def __init__(self, error: ServerError | ReplyError, after_s: float = 0.0) -> None:
        self.error, self.after_s = error, after_s


class Server:
    """A base address such as http://127.0.0.1:8080/v1. Not thread-safe, except `cancel`."""

    def __init__(
        self,
        url: str,
        *,
        cancel: Cancel,
        allow_network: bool = False,
        timeout_s: float = 300.0,
        pause_s: float = 0.5,
    ) -> None:
        """One try may take `timeout_s`; the pause before the second is `pause_s` and then doubles.

        Raises UsageError for an invalid address, or for one elsewhere without `allow_network`.
        """
        self.url = url.rstrip("/")
        parts = parse_address(self.url)
        self._tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path
        self._allow_network = allow_network
        self.settings = {  # `allow_network` and the others, to connect to the same server again
            "allow_network": allow_network, "timeout_s": timeout_s, "pause_s": pause_s,
        }  # fmt: skip
        self._cancel, self._timeout_s, self._pause_s = cancel, timeout_s, pause_s
        self._key = _key_from_environment()
        self._key_pattern = key_pattern(self._key) if self._key else None
        if not is_own_name(self._host):
            if not allow_network:
                raise UsageError(f"{self.url} is not on this machine.", _ELSEWHERE)
            if os.environ.get("EDGEPRISM_OFFLINE"):
                raise UsageError(
                    f"EDGEPRISM_OFFLINE is set, so {self.url} cannot be used.",
                    "Unset it, or use a reasoner on this machine.",
                )

    def ask(
        self,
        path: str,
        read: Callable[[Any], Reply],
        body: dict[str, Any] | None = None,
        *,
        patient: bool = True,
    ) -> Reply:
        """Return what `read` makes of the JSON at `path` (POST with a `body`, else GET).

        A failure that may be temporary is tried again; that includes a ReplyError from `read`
        and, if `patient`, a status of 500 or more. Raises ServerError if no usable server is
        there, StatusError or another ReplyError if this request failed.
        """
        number = 0
        while True:
            number += 1
            try:
                return read(self._try(path, body, patient))
            except _Try as failed:
                error, after_s = failed.error, failed.after_s
            except StatusError:
                raise
            except ReplyError as unread:
                error, after_s = unread, 0.0
            if number == ATTEMPTS:
                error.summary += f" ({ATTEMPTS} tries.)"
                raise error
            pause = max(self._pause_s * 2 ** (number - 1), after_s)
            self._wait(min(pause, _LONGEST_PAUSE_S))

    def _wait(self, seconds: float) -> None:
        woken = threading.Event()
        with self._cancel.calling(woken.set):
            woken.wait(seconds)
        self._check_cancelled()

    def _check_cancelled(self) -> None:
        if self._cancel.is_set():
            raise Interrupted

    # ---- one try

    def _try(self, path: str, body: dict[str, Any] | None, patient: bool) -> Any:
        status, headers, data = self._raw(path, None if body is None else json.dumps(body))
        if not 200 <= status < 300:
            raise self._of_status(status, headers, body_words(data), patient)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            words = self.quote(body_words(data))
            message = f"{self.url} answered {path} with something that is not JSON"
            message += f": {words}." if words else ", with nothing."
            raise _Try(ReplyError(message, _WHICH_SERVER)) from error
        if (told := error_in(value)) is not None:
            raise self._of_status(error_status(value), headers, told, patient, told_with=status)
        return value

    def _raw(self, path: str, body: str | None) -> tuple[int, Any, bytes]:
        """(status, headers, body) of one request on a connection of its own."""
        late, begun = threading.Event(), False
        try:
            with self._connected(late) as connection:
                headers = {
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "User-Agent": _agent(),
                }
                if body is not None:
                    headers["Content-Type"] = "application/json"
                if self._key:
                    headers["Authorization"] = f"Bearer {self._key}"
                method = "GET" if body is None else "POST"
                connection.request(method, f"{self._path}{path}", body, headers)
                response = connection.getresponse()
                begun = True
                data = read_body(response, MAX_REPLY)
                if late.is_set():  # the end of the connection was ours, not that of the answer
                    raise TimeoutError
                return response.status, response.headers, data
        except TooLargeError:
            message = f"{self.url} answered with more than {MAX_REPLY >> 20} MiB."
            raise ReplyError(message, _WHICH_SERVER) from None
        except UnknownEncodingError as error:
            raise ServerError(
                f"{self.url} compresses its answers as {self.quote(str(error))!r}, which it was "
                "not asked to do.",
                "Turn compression off there, or in the proxy before it; gzip and deflate are read.",
            ) from None
        # A ValueError comes from a header that makes no sense to Python's client.
        except (OSError, http.client.HTTPException, BrokenBodyError, ValueError) as error:
            self._check_cancelled()
            if late.is_set() or isinstance(error, TimeoutError):
                state = ""
                if isinstance(error, _HeaderCutError):
                    state = ": its header began and did not end"
                elif begun:
                    state = ": its answer began and did not end"
                message = f"{self.url} did not answer within {self._timeout_s:g} s{state}."
            else:
                message = f"{self.url} broke off: {self._reason(error)}."
            raise _Try(ReplyError(message, "See the server's own log.")) from None

    @contextlib.contextmanager
    def _connected(self, late: threading.Event) -> Iterator[http.client.HTTPConnection]:
        """Open a connection; it ends after `timeout_s` (this sets `late`) or when cancelled."""
        opened = self._open()

        def stop() -> None:
            with contextlib.suppress(OSError):  # closed already
                socket.socket.shutdown(opened, socket.SHUT_RDWR)

        def time_out() -> None:
            late.set()
            stop()

        # A time limit on each read would never stop a server that sends a byte now and then.
        timer = threading.Timer(self._timeout_s, time_out)
        timer.daemon = True
        connection = http.client.HTTPConnection(self._host, self._port)
        connection.sock = opened
        connection.response_class = _Response
        try:
            with self._cancel.calling(stop):
                timer.start()
                yield connection
        finally:
            timer.cancel()
            connection.close()
            opened.close()

    def _open(self) -> socket.socket:
        """Open a socket to a checked address, with TLS for an https URL."""
        addresses = self._addresses()
        problem: OSError | None = None
        for address in addresses:
            self._check_cancelled()
            try:
                plain = socket.create_connection((address, self._port), _CONNECT_S)
                return self._with_tls(plain) if self._tls else _without_timeout(plain)
            except OSError as error:
                problem = error
        self._check_cancelled()
        raise _Try(
            ServerError(
                f"No connection to {self.url}: {self._reason(problem)}.",
                "Start the server, or give `reasoner` the address that it prints.",
            )
        ) from problem

    def _addresses(self) -> list[str]:
        """Look up the host's numeric addresses.

        Raises UsageError if one leads elsewhere and the network is not allowed.
        """
        try:
            entries = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _Try(
                ServerError(f"{self._host} has no known address.", "Check the name.")
            ) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        if not self._allow_network:
            for address in addresses:
                if not is_loopback(address):
                    raise UsageError(
                        f"{self._host} leads to {address}, which is not this machine.", _ELSEWHERE
                    )
        return addresses

    def _with_tls(self, plain: socket.socket) -> socket.socket:
        import ssl

        try:
            context = ssl.create_default_context()
            return _without_timeout(context.wrap_socket(plain, server_hostname=self._host))
        except ssl.SSLError as error:
            plain.close()
            raise ServerError(
                f"{self.url}: {self._reason(error)}.", "Is it https, with a valid certificate?"
            ) from error

    # ---- HTTP status → error

    def _of_status(
        self, status: int, headers: Any, words: str, patient: bool, *, told_with: int | None = None
    ) -> Exception:
        """Return the error for a status; `told_with` is the status if only the body names this."""
        if 300 <= status < 400:
            place = self.quote(str(headers.get("Location", "")).partition("?")[0])
            where = f" to {place}" if place else ""
            return ServerError(
                f"{self.url} redirects{where} (status {status}).",
                "Redirects are not followed: give the final address.",
            )
        detail = self.quote(words).rstrip(".")
        answered = "answered with an error" if told_with else f"answered {status}"
        message = f"{self.url} {answered}{f': {detail}' if detail else ''}."
        if status in (401, 403):
            return ServerError(message, f"Put its key into the environment: {KEY_VARIABLE}.")
        if status == 404:
            return ServerError(message, "Check the address (most end in /v1) and `served_model`.")
        if status in (408, 425, 429, 502, 503, 504):
            return _Try(ServerError(message, "It is busy or starting: try later."), _after(headers))
        error = StatusError(status, message, "See the server's own log.")
        return _Try(error) if status >= 500 and patient else error

    # ---- what the server says, as errors quote it

    def quote(self, text: str) -> str:
        """Return a server's words as one short line, without the key."""
        if self._key_pattern is not None:
            text = self._key_pattern.sub("…", text)
        return short_line(text, _LONGEST_MESSAGE)

    def _reason(self, error: BaseException | None) -> str:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return self.quote(text).rstrip(".")


class _HeaderCutError(http.client.HTTPException):
    """The connection ended inside the header."""

    def __init__(self) -> None:
        super().__init__("in the middle of its header")


class _Response(http.client.HTTPResponse):
    """An answer whose header must be whole.

    Python's client takes the end of the connection for the end of the header: a header that was
    cut would pass for a whole one without a body.
    """

    def begin(self) -> None:
        """Read the status line and the header. Raises _HeaderCutError if it has no end."""
        lines = _Lines(self.fp)
        self.fp: Any = lines
        try:
            super().begin()
        finally:
            if self.fp is lines:  # else the answer has no body, and its file is closed already
                self.fp = lines.file
        if lines.last.rstrip(b"\r\n") or not lines.last:
            raise _HeaderCutError


class _Lines:
    """A file that remembers the last line read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.last = file, b""

    def readline(self, limit: int = -1) -> bytes:
        self.last = self.file.readline(limit)
        return self.last

    def close(self) -> None:
        self.file.close()


def _key_from_environment() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(
            f"{KEY_VARIABLE} holds characters that are not printable ASCII.", "Set it again."
        )
    return key


def _agent() -> str:
    return f"edgeprism/{__version__}"


def _without_timeout(opened: socket.socket) -> socket.socket:
    """Remove the connection's timeout: the timer of `_connected` limits the whole exchange."""
    opened.settimeout(None)
    return opened


def _after(headers: Any) -> float:
    """Return the seconds to wait by the Retry-After header; 0.0 without one."""
    text = str(headers.get("Retry-After", "")).strip()
    return float(text) if text.isdecimal() and len(text) < 6 else 0.0
