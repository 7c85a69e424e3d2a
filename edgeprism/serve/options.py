"""What `edgeprism serve` is told at its start: where it listens, whom it answers, its limits."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgeprism.errors import UsageError
from edgeprism.files.regular import read_limited
from edgeprism.machine.device import EngineOptions
from edgeprism.vision.token_reduction import TokenLimit

MIB = 1 << 20
_UNITS = {"s": 1, "m": 60, "h": 3600}
_MAX_KEY_BYTES = 4096
_SHORTEST_KEY = 16  # characters; a shorter one could be guessed


@dataclass(frozen=True)
class Limits:
    """How much one client, and all of them together, may ask for."""

    body_bytes: int = 32 * MIB
    bodies_bytes: int = 256 * MIB  # of all requests that are being received or answered
    pictures: int = 16  # in one request
    pixels: int = 100_000_000  # of one picture
    text_chars: int = 20_000  # instruction, question, hint
    tokens: int = 1024  # of one caption or answer; a larger wish is cut to it
    waiting: int = 128  # captions and answers that wait or are being made
    connections: int = 1000
    head_seconds: float = 10  # until a request's head has arrived
    body_seconds: float = 60  # until its body has
    write_seconds: float = 30  # that a client may read nothing
    answer_seconds: float = 600


@dataclass(frozen=True)
class ServeOptions:
    """Everything that a server is started with."""

    host: str = "127.0.0.1"
    port: int = 11435
    fd: int | None = None  # a socket that is open already, from systemd
    api_key: str | None = None
    allow_hosts: tuple[str, ...] = ()  # further names by which clients may call this server
    allow_origins: tuple[str, ...] = ()  # web pages of other origins that may use it
    model: str = "nano"
    reasoner: str = "smollm2-135m"  # or the URL of another server, which then gets captions
    served_model: str | None = None  # of that server; None: the first that it lists
    allow_network: bool = False  # that server may be on another machine
    keep_alive_s: float = 300  # infinity: models stay
    idle_look_s: float = 1.0  # between two looks for models that nobody has used for so long
    stop_seconds: float = 20  # that running requests may take once the server is told to stop
    log_content: bool = False
    engines: EngineOptions = field(default_factory=lambda: EngineOptions())
    visual_tokens: TokenLimit | None = None  # of a picture, where a request says nothing of it
    limits: Limits = field(default_factory=Limits)
    on_log: Callable[[str], object] = lambda _: None

    def __post_init__(self) -> None:
        if self.api_key is not None and not is_key(self.api_key):
            raise UsageError(
                f"The API key must be at least {_SHORTEST_KEY} printable ASCII characters without "
                "blanks.",
                "Make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
            )
        for origin in self.allow_origins:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest:
                raise UsageError(
                    f"{origin!r} is no origin of a web page.", "For example: https://photos.lan"
                )


def check_address(host: str, api_key: str | None) -> None:
    """Refuse to listen where other machines reach the server, unless it has a key."""
    if api_key is None and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, so the server needs a key.",
            "Write one to a file and name it: `api_key_file`. Without `host` the server answers "
            "this machine alone.",
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_key(key: str) -> bool:
    """Return whether a text can be an API key: printable ASCII without blanks, long enough."""
    return len(key) >= _SHORTEST_KEY and key.isascii() and key.isprintable() and " " not in key


def read_key(path: str) -> str:
    """Return the key in a file, without the blanks around it. Raises UsageError."""
    try:
        key = read_limited(Path(path), _MAX_KEY_BYTES, pipe=True).decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: holds characters that are not ASCII.",
            "Write a key of ASCII characters to it.",
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path}: cannot be read: {reason}.", "Name the key's file.") from error
    if not key:
        raise UsageError(f"{path}: holds no API key.", "Write one line of ASCII to it.")
    return key


def is_open_to_others(path: str) -> bool:
    """Return whether other users of this machine can read a file; False where that is not known."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return os.name == "posix" and stat.S_ISREG(mode) and bool(mode & (stat.S_IRGRP | stat.S_IROTH))


def to_seconds(text: str) -> float:
    """Return a duration such as "90", "5m", "1h30m" or "-1" (for ever) in seconds.

    Raises UsageError for anything else.
    """
    number = re.fullmatch(r"-?\d+(?:\.\d+)?", text.strip())
    if number:
        return math.inf if number[0].startswith("-") else float(number[0])
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    if not parts or "".join(map("".join, parts)) != text.strip():
        raise UsageError(f"{text!r} is no duration.", "For example: 90s, 5m, 1h30m, 0, -1.")
    return sum(float(digits) * _UNITS[unit] for digits, unit in parts)
