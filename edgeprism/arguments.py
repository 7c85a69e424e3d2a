"""Checks of keyword values that callers of the public functions give.

Each raises UsageError, which names the keyword, at the call that got the value; without the check
the value would fail deep inside an engine, or be taken for another one.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Collection
from typing import SupportsFloat, SupportsIndex

from edgeprism.errors import UsageError


def check_integer(name: str, value: object, *, least: int | None = None, hint: str = "") -> None:
    """Refuse what is no integer (bool is none here), and integers below `least`."""
    if not isinstance(value, SupportsIndex) or isinstance(value, bool):
        raise UsageError(f"{name} must be an integer, got {_shown(value)}.", hint)
    number = operator.index(value)  # numpy's integers too
    if least is not None and number < least:
        raise UsageError(f"{name} must be at least {least}, got {number}.", hint)


def check_number(name: str, value: object, *, least: float) -> None:
    """Refuse what is no finite number of at least `least`."""
    if not isinstance(value, SupportsFloat) or isinstance(value, bool):
        raise UsageError(f"{name} must be a number, got {_shown(value)}.")
    try:
        number = float(value)
    except (TypeError, ValueError):  # an array of several numbers
        raise UsageError(f"{name} must be a number, got {_shown(value)}.") from None
    if not math.isfinite(number) or number < least:
        raise UsageError(f"{name} must be a number of at least {least:g}, got {number:g}.")


def check_text(name: str, value: object) -> None:
    """Refuse what is no str."""
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a str, got {_shown(value)}.")


def check_path(name: str, value: object) -> None:
    """Refuse what is neither a str nor an `os.PathLike`."""
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{name} must be a name or a path, got {_shown(value)}.")


def check_can(name: str, value: object, method: str, example: str) -> None:
    """Refuse what lacks a method, such as a model's name in place of the opened model."""
    if isinstance(value, type) or not callable(getattr(value, method, None)):
        raise UsageError(
            f"{name} must be an opened {name}, got {_shown(value)}.", f"For example: {example}"
        )


def check_keywords(function: str, given: Collection[str], options: type) -> None:
    """Refuse keywords that the options, a TypedDict, do not have, as Python does: by TypeError."""
    known = options.__annotations__
    for name in given:
        if name not in known:
            import difflib  # not above: nearly every call has none to look for

            close = difflib.get_close_matches(name, known)
            meant = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}.{meant} "
                f"Its options are {', '.join(known)}."
            )


def check_choice(name: str, value: object, known: Collection[str]) -> None:
    """Refuse what is not among `known`."""
    if not isinstance(value, str) or value not in known:
        raise UsageError(f"{name} is {_shown(value)}.", f"Known: {', '.join(known)}.")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be True or False, got {_shown(value)}.")


def _shown(value: object) -> str:
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}…"
    return f"{text} ({type(value).__name__})"
