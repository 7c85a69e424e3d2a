"""A server's address: whether it is one, and whether it is this machine's."""

from __future__ import annotations

import ipaddress
import urllib.parse

from edgeprism.errors import UsageError

KEY_VARIABLE = "EDGEPRISM_API_KEY"


def parse_address(url: str) -> urllib.parse.SplitResult:
    """Return the parts of a server's address; raises UsageError for what is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is not a number, or an IPv6 address is incomplete
        fits = False
    if not fits or not url.isascii() or any(c <= " " for c in url):
        raise UsageError(
            f"{url[:200]!r} is not a server's address.", "It looks like http://127.0.0.1:8080/v1"
        )
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "A server's address must not hold a name or password.",
            f"Put the key into {KEY_VARIABLE}.",
        )
    if parts.query or parts.fragment:
        raise UsageError(
            f"{url[:200]}: a server's address must not hold ? or #.",
            "It looks like http://127.0.0.1:8080/v1",
        )
    return parts


def is_own_name(host: str) -> bool:
    """Return whether `host` is this machine by its name alone, without a look-up in the network."""
    return host == "localhost" or host.endswith(".localhost") or is_loopback(host)


def is_loopback(address: str) -> bool:
    """Return whether a numeric address is this machine's own."""
    try:
        ip = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback
