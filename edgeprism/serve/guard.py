"""Who may speak to the server, and how much they may send: before any route is looked at.

A web page that a person visits can send requests to this machine. Three checks keep it out:

- `Host` must be an IP address, "localhost" or a name that the server was told. A page whose own
  name was made to lead here (DNS rebinding) sends that name.
- `Origin`, which browsers add to requests of pages, must be this server's own, or one that was
  allowed at the start. `Sec-Fetch-Site` says the same for requests without an origin.
- No header for cross-origin reading is ever sent, unless origins were allowed at the start.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from edgeprism.errors import Interrupted
from edgeprism.files.safe_text import short_line
from edgeprism.serve.exchange import Bodies, Exchange, too_large
from edgeprism.serve.refusals import ClientLeft, Refusal, to_refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from edgeprism.serve.service import Service

_OPEN_PATHS = {"/healthz"}  # and the page, which asks a person for the key
API_FOLDERS = ("/v1/", "/api/")
_ONE_MODEL = "/v1/models/"
EXPOSED_HEADERS = ("Retry-After",)  # that pages of allowed origins may read


class Guard:
    """The outermost layer of the app: it refuses, limits, counts and logs."""

    def __init__(self, app: ASGIApp, service: Service, api_paths: Iterable[str]) -> None:
        """`api_paths` need the key, if there is one; all other paths are the page's files.

        What lies below /v1/ and /api/ counts among them.
        """
        self._app, self._service = app, service
        options = service.options
        self._origins = {origin.lower() for origin in options.allow_origins}
        self._names = {"localhost", *(name.lower() for name in options.allow_hosts)}
        if not _is_ip(options.host):
            self._names.add(options.host.lower())
        self._api_paths = set(api_paths) - _OPEN_PATHS
        self._bodies = Bodies(service.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; pass lifespan events on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(self._bodies, scope, receive, send)
        started = time.monotonic()
        try:
            if scope["type"] != "http":
                raise Refusal(400, "no_websocket", "This server speaks HTTP alone.")
            headers = dict(scope["headers"])
            exchange.refusal_headers = self._reading_headers(headers)
            self._check(headers, scope)
            scope["app"] = self._app  # so that the router raises, and does not answer by itself
            await self._app(scope, exchange.receive, exchange.send)
        except ClientLeft:
            exchange.status = exchange.status or 499
        except asyncio.CancelledError:  # the server ends, and gives up what still runs
            if exchange.status:  # the client has the head: the connection breaks off
                exchange.code = "stopped"
            else:
                await exchange.refuse(to_refusal(Interrupted("The server is stopping.")))
        except HTTPException as error:  # of the router: an unknown path or method
            await exchange.refuse(_of_router(error))
        except Exception as error:
            self._service.log_failure(error)
            if not exchange.status:  # else the connection breaks off: the client has the head
                await exchange.refuse(to_refusal(error))
        finally:
            self._bodies.release(exchange)
            self._note(scope, exchange, time.monotonic() - started)

    def _reading_headers(self, headers: dict[bytes, bytes]) -> dict[str, str]:
        """Return the headers that let a page of an allowed origin read why it was refused."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin.lower() not in self._origins:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": ", ".join(EXPOSED_HEADERS),
            "Vary": "Origin",
        }

    # ---- checks

    def _check(self, headers: dict[bytes, bytes], scope: Scope) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._is_own(host):
            raise Refusal(
                403, "host_refused", f"This server is not {short_line(host, 80)!r}.",
                "Call it by its address, or start `edgeprism serve --allow-host NAME`.",
            )  # fmt: skip
        self._check_origin(headers, host, scope)
        key = self._service.options.api_key
        if scope["method"] == "OPTIONS":  # a browser asks, without the key, whether it may ask
            return
        if key is not None and self._needs_key(scope["path"]):
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(
                given.strip(), key.encode("ascii")
            ):
                raise Refusal(
                    401, "no_key", "This server needs its API key.",
                    "Send the header Authorization: Bearer KEY.",
                    headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._service.limits.body_bytes:
            raise too_large(self._service.limits)

    def _is_own(self, host: str) -> bool:
        name = _without_port(host).lower()
        return _is_ip(name) or name.rstrip(".") in self._names

    def _check_origin(self, headers: dict[bytes, bytes], host: str, scope: Scope) -> None:
        origin = headers.get(b"origin")
        if origin is not None:
            own = f"{scope['scheme']}://{host}".lower()
            text = origin.decode("latin-1").lower()
            if text == own or text in self._origins:
                return
            site = short_line(text, 80)
        else:
            site = headers.get(b"sec-fetch-site", b"none").decode("latin-1")
            navigates = headers.get(b"sec-fetch-mode") == b"navigate" and scope["method"] == "GET"
            opens_page = navigates and not self._needs_key(scope["path"])
            if site in ("none", "same-origin") or opens_page:
                return
        raise Refusal(
            403, "origin_refused", f"A web page of another origin ({site}) may not ask.",
            "Start `edgeprism serve --allow-origin ORIGIN` for a page that you trust.",
        )  # fmt: skip

    def _needs_key(self, path: str) -> bool:
        return path in self._api_paths or path.startswith(API_FOLDERS)

    # ---- notes

    def _note(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        route = self._route(scope["path"], exchange.status)
        method = scope.get("method", "?")
        method = method if method in ("GET", "POST", "HEAD", "OPTIONS") else "other"
        self._service.metrics.observe(method, route, exchange.status, seconds)
        told = f"{exchange.status} {exchange.code}".strip()
        self._service.options.on_log(f"{method} {route} {told} {1000 * seconds:.0f} ms")

    def _route(self, path: str, status: int) -> str:
        """Return what the log and the counters call a path: those that nobody offers have no name.

        A client may ask for any number of them, and put into them what it likes.
        """
        if path in self._api_paths | _OPEN_PATHS:
            return path
        if path.startswith(_ONE_MODEL):
            return f"{_ONE_MODEL}{{name}}"
        return "unknown" if status == 404 or path.startswith(API_FOLDERS) else "page"


def _of_router(error: HTTPException) -> Refusal:
    if error.status_code == 405:
        allowed = dict(error.headers or {}).get("Allow", "")
        return Refusal(
            405, "method_not_allowed", f"This path takes {allowed} alone.", headers=error.headers
        )
    return Refusal(error.status_code, "not_found", "There is nothing at this path.",
                   "GET /openapi.json lists what there is.")  # fmt: skip


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
