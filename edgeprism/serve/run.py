"""Runs the server: opens its socket, answers until it is told to stop, finishes what runs."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator

import uvicorn

from edgeprism.errors import EdgePrismError, UsageError
from edgeprism.serve.app import make_app
from edgeprism.serve.connections import Crowd, GuardedConnection
from edgeprism.serve.options import Limits, ServeOptions, check_address

_BACKLOG = 1024  # connections that wait in the system until they are accepted
# Accepted at once. asyncio would accept as many as may wait, and run out of open files, before
# `GuardedConnection` gets to end one of those that do nothing.
_ACCEPTED = 64
_FILES = 600  # that are open besides connections, those that are just ending among them
_IDLE_S = 15  # that a connection stays open between two requests


class Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to the command."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: `machine.cancel` watches them."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)  # asyncio has set it to the number that it accepts at once

    def stop(self) -> None:
        """Take no more requests, and finish those in progress. Safe from any thread."""
        self.should_exit = True


def open_socket(options: ServeOptions) -> socket.socket:
    """Return a listening socket. Raises UsageError, and EdgePrismError if the port is taken."""
    if options.fd is not None:
        try:
            listener = socket.socket(fileno=options.fd)
            address = listener.getsockname()
        except OSError as error:
            raise _no_listener(options.fd, f"is no socket: {error.strerror}") from error
        if not _listens(listener):
            listener.detach()  # it belongs to whoever handed it over
            raise _no_listener(options.fd, "is a socket that does not listen")
        if listener.family != getattr(socket, "AF_UNIX", None):
            check_address(address[0], options.api_key)
            _send_at_once(listener)
        return listener
    check_address(options.host, options.api_key)
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
        family, _, _, _, place = found[0]
        listener = socket.create_server(
            place[:2], family=socket.AddressFamily(family), backlog=_BACKLOG
        )
    except socket.gaierror as error:
        raise UsageError(
            f"{options.host}: there is no such address on this machine.",
            "Give its IP address or a name that leads to it as `host`; without it the server "
            "answers this machine alone.",
        ) from error
    except OSError as error:
        raise EdgePrismError(
            f"{options.host}:{options.port}: cannot listen there: {error.strerror or error}.",
            "Give another `port`; 0 takes a free one.",
        ) from error
    _send_at_once(listener)
    return listener


def _send_at_once(listener: socket.socket) -> None:
    """Let the end of an answer not wait until the client has acknowledged its beginning.

    The client's system may take 40 ms for that. asyncio sets this option only on sockets whose
    protocol number was given, which is not so for sockets of `create_server` or systemd.
    Connections inherit it.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _listens(listener: socket.socket) -> bool:
    if listener.type != socket.SOCK_STREAM:
        return False
    accepts = getattr(socket, "SO_ACCEPTCONN", None)  # not told on every system
    return accepts is None or bool(listener.getsockopt(socket.SOL_SOCKET, accepts))


def _no_listener(fd: int, what: str) -> UsageError:
    return UsageError(
        f"File descriptor {fd} {what}.",
        "systemd's first one is 3; without `fd` the server opens one itself.",
    )


def address_of(listener: socket.socket) -> str:
    """Return where a browser on this machine finds the server: "http://127.0.0.1:11435"."""
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


def make_server(options: ServeOptions) -> Server:
    """Return a server that has not begun."""
    _silence(options.on_log)
    config = uvicorn.Config(
        make_app(options),
        http=_connection_with(options.limits),
        loop="asyncio",
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nobody may claim another address
        server_header=False,
        backlog=_ACCEPTED,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=int(options.stop_seconds),
    )
    return Server(config)


def allow_open_files(options: ServeOptions) -> None:
    """Let this process open a file for each connection, where the system lets it (POSIX)."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = options.limits.connections + _FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def run_server(server: Server, listener: socket.socket) -> None:
    """Answer requests until `server.stop`; must run in the main thread of its loop."""
    server.run([listener])


def _connection_with(limits: Limits) -> type[GuardedConnection]:
    return type("Connection", (GuardedConnection,), {"crowd": Crowd(limits)})


def _silence(on_log: Callable[[str], object]) -> None:
    """Let uvicorn and asyncio tell only of errors, in one line each.

    Their warnings come from hostile clients.
    """

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            on_log(f"{record.name}: {record.getMessage().strip().splitlines()[0]}")

    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [Handler(logging.ERROR)]
        logger.setLevel(logging.ERROR)
        logger.propagate = False
