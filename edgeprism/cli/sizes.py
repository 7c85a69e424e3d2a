"""Sizes of memory as a person writes them on the command line."""

from __future__ import annotations

import re

from edgeprism.errors import UsageError

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kKmMgGtT])(i?)[bB]?)?\s*")


def text_to_bytes(option: str, text: str) -> int:
    """Return the bytes that `text` names, such as 8G, 8GB, 8GiB or 900MB; a bare number is in GB.

    Raises UsageError, which names the option, for anything else.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{option} {text} is not a size.", "Give one such as 8GB or 900MB.")
    power = " KMGT".index((match[2] or "G").upper())
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
