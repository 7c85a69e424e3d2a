"""What a picture is called: in rows by its absolute path or its address, in errors by neither."""

from __future__ import annotations

import os
from urllib.parse import unquote

_LOCAL = ("", "localhost")  # hosts of a URI that mean this machine


def picture_name(path: str) -> str:
    """Return what a row calls a picture, however a library spells its path.

    Spark writes `file:/tmp/a b.png`, which is not encoded, others a URI, `file:///tmp/a%20b.png`,
    and Ray a path as it was given. All of them become the absolute path. An address
    (`s3://bucket/a.png`) stays, and so does a relative name that no file here has: Ray gives
    pictures of a bucket without its scheme.
    """
    scheme, _, rest = path.partition(":")
    if scheme.lower() == "file" and rest.startswith("/"):
        if not rest.startswith("//"):
            return rest
        host, slash, below = rest[2:].partition("/")
        return slash + unquote(below) if host in _LOCAL else path
    if not path or "://" in path or os.path.isabs(path):
        return path
    absolute = os.path.abspath(path)
    return absolute if os.path.lexists(absolute) else path


def last_part(name: str) -> str:
    """Return a picture's name without its folder, for messages."""
    return name.rstrip("/").rpartition("/")[2] or "picture"


def without_name(error: str, name: str) -> str:
    """Return an error without the picture's name before it, so that equal ones are equal."""
    for before in (name, last_part(name)):
        if error.startswith(f"{before}: "):
            return error[len(before) + 2 :]
    return error
