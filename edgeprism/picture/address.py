"""An address in place of a picture is told as what it is: no picture is fetched from a network."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from edgeprism.errors import ImageError

# Path("https://example.org") loses one of the slashes, so one is enough.
_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]{1,19}):/{1,3}(?P<rest>[^/\s].*)", re.I | re.S)


def address_error(name: str) -> ImageError | None:
    """Return the error for a name that is an address (https://…, file://…); None for any other."""
    if name[:5].lower() == "data:":
        return ImageError(
            f"{name[:40]}…: a picture inside a text, not a file.",
            "Save its bytes to a file, or pass them to `edgeprism caption -`.",
        )
    match = _ADDRESS.fullmatch(name)
    if match is None:
        return None
    scheme = match["scheme"].lower()
    if scheme == "file":
        path = unquote(urlsplit(f"file:///{match['rest']}").path)
        return ImageError(f"{name}: an address of a file, not its path.", f"Give the path: {path}")
    address = f"{scheme}://{match['rest']}"
    return ImageError(
        f"{address}: an address, not a file. EdgePrism fetches no pictures from a network.",
        f"Save it first, or read it from a pipe: curl -sL '{address}' | edgeprism caption -",
    )
