"""JSON over HTTP with one server, bounded in time, size and tries; what opens a reasoner's socket.

The server is this machine's own unless the caller allows the network. The address that was checked
is the one connected to, no proxy is asked, and no redirect is followed.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from edgeprism.errors import Interrupted, ReplyError, ServerError, UsageError
from edgeprism.files.safe_text import short_line
from edgeprism.machine.cancel import Cancel
from edgeprism.version import __version__

KEY_VARIABLE = "EDGEPRISM_API_KEY"
MAX_REPLY = 8 << 20  # bytes
ATTEMPTS = 3
_CONNECT_S = 5.0
_LONGEST_PAUSE_S = 8.0
_LONGEST_MESSAGE = 300  # characters of what a server says of its error
_ELSEWHERE = "Text only leaves this machine when you say so: add `allow_network`."


Reply = TypeVar("Reply")


class StatusError(ReplyError):
    """An HTTP status that is an error."""

    def __init__(self, status: int, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.status = status


class _Try(Exception):
    """One try that failed; `error` is what to say if it was the last."""

    def __init__(self, error: ServerError | ReplyError, after_s: float = 0.0) -> None:
        self.error, self.after_s = error, after_s


class Server:
    """A base address such as http://127.0.0.1:8080/v1. Not thread-safe, but for `cancel`."""

    def __init__(
        self,
        url: str,
        *,
        cancel: Cancel,
        allow_network: bool = False,
        timeout_s: float = 300.0,
        pause_s: float = 0.5,
    ) -> None:
        """`timeout_s` bounds one try, `pause_s` is waited before the second and doubles then.

        Raises UsageError for an address that is none, or leads elsewhere without `allow_network`.
        """
        self.url = url.rstrip("/")
        parts = _parsed(self.url)
        self._tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path
        self._allow_network = allow_network
        self._cancel, self._timeout_s, self._pause_s = cancel, timeout_s, pause_s
        self._key = _key_from_environment()
        if not _is_own_name(self._host):
            if not allow_network:
                raise UsageError(f"{self.url} is not on this machine.", _ELSEWHERE)
            if os.environ.get("EDGEPRISM_OFFLINE"):
                raise UsageError(
                    f"EDGEPRISM_OFFLINE is set: {self.url} is not asked.",
                    "Unset it, or take a reasoner on this machine.",
                )

    def ask(
        self,
        path: str,
        read: Callable[[Any], Reply],
        body: dict[str, Any] | None = None,
        *,
        patient: bool = True,
    ) -> Reply:
        """What `read` makes of the JSON at `path` (POST with a `body`, else GET).

        What may pass is tried again: a ReplyError of `read` too, a status of 500 if `patient`.
        Raises ServerError where there is no server to work with, StatusError or another
        ReplyError where this request failed.
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
                error.message += f" ({ATTEMPTS} tries.)"
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
        if status != 200:
            raise self._of_status(status, headers, data, patient)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            message = f"{self.url} answered {path} with something that is not JSON."
            raise _Try(ReplyError(message, "Is it an OpenAI-compatible server?")) from error

    def _raw(self, path: str, body: str | None) -> tuple[int, Any, bytes]:
        """(status, headers, body) of one request on a connection of its own."""
        late = threading.Event()
        try:
            with self._connected(late) as connection:
                headers = {"Accept": "application/json", "User-Agent": _agent()}
                if body is not None:
                    headers["Content-Type"] = "application/json"
                if self._key:
                    headers["Authorization"] = f"Bearer {self._key}"
                method = "GET" if body is None else "POST"
                connection.request(method, f"{self._path}{path}", body, headers)
                response = connection.getresponse()
                data = response.read(MAX_REPLY + 1)
                if len(data) > MAX_REPLY:
                    raise ReplyError(
                        f"{self.url} answered with more than {MAX_REPLY >> 20} MiB.",
                        "Is it an OpenAI-compatible server?",
                    )
                if response.length:  # what Content-Length promised and did not come
                    raise http.client.IncompleteRead(data, response.length)
                return response.status, response.headers, data
        except (OSError, http.client.HTTPException) as error:
            self._check_cancelled()
            if late.is_set() or isinstance(error, TimeoutError):
                told = f"{self.url} did not answer within {self._timeout_s:g} s."
            else:
                told = f"{self.url} broke off: {_said(error)}."
            raise _Try(ReplyError(told, "See the server's own log.")) from error

    @contextlib.contextmanager
    def _connected(self, late: threading.Event) -> Iterator[http.client.HTTPConnection]:
        """A connection that ends when `timeout_s` is over (`late`) or the caller cancels."""
        opened = self._open()

        def stop() -> None:
            with contextlib.suppress(OSError):  # closed already
                socket.socket.shutdown(opened, socket.SHUT_RDWR)

        def be_late() -> None:
            late.set()
            stop()

        # a time limit on each read would never end a server that sends a byte now and then
        timer = threading.Timer(self._timeout_s, be_late)
        timer.daemon = True
        connection = http.client.HTTPConnection(self._host, self._port)
        connection.sock = opened
        try:
            with self._cancel.calling(stop):
                timer.start()
                yield connection
        finally:
            timer.cancel()
            connection.close()
            opened.close()

    def _open(self) -> socket.socket:
        """A socket to an address that was checked, with TLS where the URL asks for it."""
        addresses = self._addresses()
        problem: OSError | None = None
        for address in addresses:
            self._check_cancelled()
            try:
                plain = socket.create_connection((address, self._port), _CONNECT_S)
                return self._with_tls(plain) if self._tls else _patient(plain)
            except OSError as error:
                problem = error
        self._check_cancelled()
        raise _Try(
            ServerError(
                f"No connection to {self.url}: {_said(problem)}.",
                "Start the server, or give `reasoner` the address that it prints.",
            )
        ) from problem

    def _addresses(self) -> list[str]:
        """Numeric addresses of the host; all of them this machine's, unless allowed otherwise."""
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _Try(
                ServerError(f"{self._host} has no known address.", "Check the name.")
            ) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not self._allow_network:
            for address in addresses:
                if not _is_loopback(address):
                    raise UsageError(
                        f"{self._host} leads to {address}, which is not this machine.", _ELSEWHERE
                    )
        return addresses

    def _with_tls(self, plain: socket.socket) -> socket.socket:
        import ssl

        try:
            context = ssl.create_default_context()
            return _patient(context.wrap_socket(plain, server_hostname=self._host))
        except ssl.SSLError as error:
            plain.close()
            raise ServerError(
                f"{self.url}: {_said(error)}.", "Is it https, with a valid certificate?"
            ) from error

    # ---- what a status means

    def _of_status(self, status: int, headers: Any, data: bytes, patient: bool) -> Exception:
        said = self._without_key(_message_of(data))
        told = f"{self.url} answered {status}{f': {said}' if said else ''}."
        if 300 <= status < 400:
            hint = "Redirects are not followed: give the final address."
            return ServerError(told, hint)
        if status in (401, 403):
            return ServerError(told, f"Put its key into the environment: {KEY_VARIABLE}.")
        if status == 404:
            return ServerError(told, "Check the address (most end in /v1) and `served_model`.")
        if status in (408, 425, 429, 502, 503, 504):
            return _Try(ServerError(told, "It is busy or starting: try later."), _after(headers))
        error = StatusError(status, told, "See the server's own log.")
        return _Try(error) if status >= 500 and patient else error

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text


def _parsed(url: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        fits = False
    if not fits or not url.isascii() or any(c <= " " for c in url):
        raise UsageError(f"{url[:200]!r} is no server's address.", "http://127.0.0.1:8080/v1")
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "A server's address holds no name or password.", f"Put the key into {KEY_VARIABLE}."
        )
    if parts.query or parts.fragment:
        raise UsageError(f"{url[:200]}: no ? and no # in it.", "http://127.0.0.1:8080/v1")
    return parts


def _is_own_name(host: str) -> bool:
    """Whether `host` means this machine by itself: to look up any other name asks the network."""
    return host == "localhost" or host.endswith(".localhost") or _is_loopback(host)


def _is_loopback(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def _key_from_environment() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"{KEY_VARIABLE} holds characters that no key has.", "Set it again.")
    return key


def _agent() -> str:
    return f"edgeprism/{__version__}"


def _patient(opened: socket.socket) -> socket.socket:
    """Once connected, the whole exchange has one time limit."""
    opened.settimeout(None)
    return opened


def _said(error: BaseException | None) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return short_line(text, _LONGEST_MESSAGE).rstrip(".")


def _message_of(data: bytes) -> str:
    """What an error's body says: OpenAI's form, others' forms, or its beginning."""
    text = data[:10_000].decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return short_line(text, _LONGEST_MESSAGE)
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    return short_line(found if isinstance(found, str) else json.dumps(found), _LONGEST_MESSAGE)


def _after(headers: Any) -> float:
    """Seconds that a Retry-After header asks to wait; 0.0 without one."""
    text = str(headers.get("Retry-After", "")).strip()
    return float(text) if text.isdecimal() and len(text) < 6 else 0.0
