"""Formats of strings in JSON schemas: a pattern that binds them, and a check of the text."""

from __future__ import annotations

import base64
import binascii
import datetime
import ipaddress
import json
import re
import urllib.parse
import uuid
from collections.abc import Callable

_MONTH_AND_DAY = (
    "((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
)
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
_ZONE = r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9][0-9]|[0-9])"
_COUNT = "[1-9][0-9]{0,3}"
_LABEL = "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?"
_HOST = rf"{_LABEL}(\.{_LABEL}){{1,3}}"

# What the grammar writes. Each is narrower than its format, and every text of it passes the check.
PATTERNS = {
    "date": rf"^[12][0-9]{{3}}-{_MONTH_AND_DAY}$",
    "time": rf"^{_CLOCK}{_ZONE}$",
    "date-time": rf"^[12][0-9]{{3}}-{_MONTH_AND_DAY}T{_CLOCK}{_ZONE}$",
    "duration": rf"^P({_COUNT}D|T{_COUNT}[HMS]|{_COUNT}DT{_COUNT}[HMS])$",
    "uuid": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    "ipv4": rf"^{_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}$",
    "ipv6": "^[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}$",
    "hostname": f"^{_HOST}$",
    "email": rf"^[a-z0-9]{{1,20}}([._+-][a-z0-9]{{1,20}}){{0,3}}@{_HOST}$",
    "uri": rf"^https?://{_HOST}(/[A-Za-z0-9._~-]{{1,30}}){{0,4}}/?$",
    "base64": "^([A-Za-z0-9+/]{4}){1,40}$",
    "base64url": "^([A-Za-z0-9_-]{4}){1,40}$",
}  # fmt: skip
_ALIKE = {"idn-email": "email", "idn-hostname": "hostname", "iri": "uri", "uuid4": "uuid",
          "iri-reference": "uri-reference"}  # fmt: skip
# Names that say what a string is for, and demand nothing of its characters.
ANNOTATIONS = frozenset(
    ("password", "binary", "byte", "path", "file-path", "directory-path", "color", "textarea")
)

_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_TIME = re.compile(r"\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_DURATION = re.compile(
    r"P(?:\d+W|(?=.)(?:\d+Y)?(?:\d+M)?(?:\d+D)?(?:T(?=.)(?:\d+H)?(?:\d+M)?(?:\d+(?:\.\d+)?S)?)?)",
    re.ASCII,
)
_HOST_LABELS = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


def format_pattern(name: str) -> str:
    """Return the pattern that the grammar writes for a format; "" if it binds nothing."""
    return PATTERNS.get(_ALIKE.get(name, name), "")


def knows_format(name: object) -> bool:
    """Return whether a format is checked, or demands nothing."""
    return isinstance(name, str) and (_ALIKE.get(name, name) in _CHECKS or name in ANNOTATIONS)


def has_format(text: str, name: str) -> bool:
    """Return whether `text` has the format `name`; true for a format that demands nothing."""
    check = _CHECKS.get(_ALIKE.get(name, name))
    try:
        return check is None or check(text)
    except (ValueError, RecursionError, re.error, binascii.Error):
        return False


def _is_date(text: str) -> bool:
    return len(text) == 10 and bool(datetime.date.fromisoformat(text))


def _is_time(text: str) -> bool:
    return _TIME.fullmatch(text) is not None and _is_moment(f"2000-01-01T{text}")


def _is_moment(text: str) -> bool:
    if _DATE_TIME.fullmatch(text) is None:
        return False
    return bool(datetime.datetime.fromisoformat(text.upper()))


def _is_uuid(text: str) -> bool:
    return len(text) == 36 and str(uuid.UUID(text)) == text.lower()


def _is_hostname(text: str) -> bool:
    return len(text) <= 253 and _HOST_LABELS.fullmatch(text) is not None


def _is_email(text: str) -> bool:
    name, _, host = text.rpartition("@")
    return bool(name) and " " not in text and _is_hostname(host)


def _is_uri(text: str) -> bool:
    return bool(urllib.parse.urlsplit(text).scheme) and _is_reference(text)


def _is_reference(text: str) -> bool:
    urllib.parse.urlsplit(text)  # raises ValueError
    return text.isprintable() and not set(text) & set(' <>"{}|\\^`')


def _is_json(text: str) -> bool:
    json.loads(text)  # raises ValueError
    return True


_CHECKS: dict[str, Callable[[str], bool]] = {
    "date": _is_date,
    "time": _is_time,
    "date-time": _is_moment,
    "duration": lambda text: _DURATION.fullmatch(text) is not None,
    "uuid": _is_uuid,
    "ipv4": lambda text: ipaddress.IPv4Address(text) is not None,
    "ipv6": lambda text: "%" not in text and ipaddress.IPv6Address(text) is not None,
    # Pydantic's names of the other values that the module ipaddress reads.
    "ipvanyaddress": lambda text: ipaddress.ip_address(text) is not None,
    "ipvanynetwork": lambda text: ipaddress.ip_network(text, strict=False) is not None,
    "ipvanyinterface": lambda text: ipaddress.ip_interface(text) is not None,
    "ipv4network": lambda text: ipaddress.IPv4Network(text, strict=False) is not None,
    "ipv6network": lambda text: ipaddress.IPv6Network(text, strict=False) is not None,
    "ipv4interface": lambda text: ipaddress.IPv4Interface(text) is not None,
    "ipv6interface": lambda text: ipaddress.IPv6Interface(text) is not None,
    "hostname": _is_hostname,
    "email": _is_email,
    "name-email": lambda text: _is_email(text.rpartition("<")[2].removesuffix(">")),
    "uri": _is_uri,
    "multi-host-uri": _is_uri,
    "uri-reference": _is_reference,
    "json-pointer": lambda text: re.fullmatch("(/([^~/]|~[01])*)*", text) is not None,
    "base64": lambda text: base64.b64decode(text, validate=True) is not None,
    "base64url": lambda text: re.fullmatch(r"[A-Za-z0-9_-]*={0,2}", text) is not None,
    "regex": lambda text: re.compile(text) is not None,
    "json-string": _is_json,
}
