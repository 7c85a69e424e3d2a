"""JSON → dataclasses, strictly: one error lists every fault with its field's path. And back."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from edgeprism.errors import ManifestError
from edgeprism.files.safe_text import short_line

_NAME_CHARS = 80  # of a name or number that an error repeats
_MAX_NAMES = 10  # fields given twice that an error names
Record = typing.TypeVar("Record")


def record_from_json(kind: type[Record], text: str | bytes, where: str) -> Record:
    """Parse `text` into the dataclass `kind`; raises ManifestError, which lists every fault."""
    return record_from_data(kind, json_without_duplicates(text, where), where)


def json_without_duplicates(text: str | bytes, where: str) -> Any:
    """Parse JSON in UTF-8.

    Raises ManifestError if `text` is not JSON, names a field twice, or holds a number that is not
    finite: Python alone would accept NaN, Infinity and 1e400.
    """
    try:
        return json.loads(
            text if isinstance(text, str) else text.decode("utf-8-sig"),
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise ManifestError(where, [f"not JSON: {error}"]) from error


def record_from_data(kind: type[Record], data: Any, where: str) -> Record:
    """Turn parsed JSON into the dataclass `kind`; a field with a default may be left out.

    Raises ManifestError that lists every unknown field, missing field and wrong type.
    """
    faults: list[str] = []
    record = _read(kind, data, "", faults)
    if faults:
        raise ManifestError(where, faults)
    return typing.cast(Record, record)


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        twice = sorted(short_line(name, _NAME_CHARS) for name, count in counts.items() if count > 1)
        rest = f" and {len(twice) - _MAX_NAMES} more" if len(twice) > _MAX_NAMES else ""
        raise ValueError(f"field given twice: {', '.join(twice[:_MAX_NAMES])}{rest}")
    return data


def record_to_data(value: object, omitted: Mapping[str, object]) -> object:
    """Return what JSON holds for a value, where a dataclass becomes an object.

    A field whose metadata are `omitted` is left out where it has its default.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: record_to_data(content, omitted)
            for field in dataclasses.fields(value)
            if (content := getattr(value, field.name)) != _default(field)
            or field.metadata != omitted
        }
    if isinstance(value, list):
        return [record_to_data(item, omitted) for item in value]
    if isinstance(value, dict):
        return {key: record_to_data(item, omitted) for key, item in value.items()}
    return value


def _default(field: dataclasses.Field[Any]) -> object:
    """Return a field's default; MISSING if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        made: object = field.default_factory()
        return made
    default: object = field.default
    return default


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:_NAME_CHARS]} is not a finite number")
    return number


def _read(kind: Any, value: Any, path: str, faults: list[str]) -> Any:
    """Read `value` as `kind` (a dataclass, list[…], dict[str, …] or scalar); append to `faults`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # X | None
        return None if value is None else _read(arguments[0], value, path, faults)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), value, path, faults)
    if origin is list:
        if not isinstance(value, list):
            return faults.append(f"{path}: a list is expected, not {_name_of(value)}")
        return [_read(arguments[0], v, f"{path}[{i}]", faults) for i, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            return faults.append(f"{path}: an object is expected, not {_name_of(value)}")
        return {k: _read(arguments[1], v, f"{path}.{k}", faults) for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            return faults.append(f"{path}: too large a number")
    # in Python a bool is an int; in a manifest true is not a number
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        faults.append(f"{path}: {kind.__name__} is expected, not {_name_of(value)}")
    return value


def _read_dataclass(kind: type, value: Any, path: str, faults: list[str]) -> Any:
    if not isinstance(value, dict):
        return faults.append(f"{path or 'manifest'}: an object is expected, not {_name_of(value)}")
    hints = typing.get_type_hints(kind)
    lead = f"{path}." if path else ""
    faults.extend(f"{lead}{name}: unknown field" for name in value if name not in hints)
    needed = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    faults.extend(f"{lead}{name}: missing" for name in hints if name in needed - set(value))
    fields = {
        name: _read(hint, value[name], f"{lead}{name}", faults)
        for name, hint in hints.items()
        if name in value
    }
    return kind(**fields) if needed <= set(fields) else None


def _name_of(value: Any) -> str:
    return "null" if isinstance(value, types.NoneType) else type(value).__name__
