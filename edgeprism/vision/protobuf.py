"""Read the fields of a protobuf message, as little as the checks of ONNX graphs need.

A message is a row of fields: a tag with the field's number and wire type, then the value. Source:
protobuf's encoding guide (public).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

_T = TypeVar("_T")
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10

Value = int | memoryview  # a varint's number; the bytes of every other kind


class Message:
    """The fields of one message by number, each with all its values in order."""

    def __init__(self, data: memoryview) -> None:
        """Read all fields of `data`; nested messages stay bytes. Raises ValueError."""
        self._fields: dict[int, list[Value]] = {}
        for number, value in _fields(data):
            self._fields.setdefault(number, []).append(value)

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def messages(self, number: int) -> Iterator[Message]:
        """Yield the nested messages of a field."""
        for data in self.bytes_of(number):
            yield Message(data)

    def message(self, number: int) -> Message:
        """Return the one nested message of a field; empty if there is none."""
        return Message(self._single(self.bytes_of(number), number, memoryview(b"")))

    def bytes_of(self, number: int) -> list[memoryview]:
        """Return the values of a field that holds bytes."""
        values = [value for value in self._fields.get(number, []) if isinstance(value, memoryview)]
        if len(values) != len(self._fields.get(number, [])):
            raise ValueError(f"field {number} holds numbers instead of bytes")
        return values

    def texts(self, number: int) -> list[str]:
        """Return the values of a field that holds text. Raises ValueError if it is not UTF-8."""
        return [str(value, "utf-8") for value in self.bytes_of(number)]

    def text(self, number: int) -> str:
        """Return the text of a field, or ""."""
        return self._single(self.texts(number), number, "")

    def number(self, number: int, default: int = 0) -> int:
        """Return the signed whole number of a field, or `default`."""
        return self._single(self.numbers(number), number, default)

    def numbers(self, number: int) -> list[int]:
        """Return the signed whole numbers of a field, each by itself or packed."""
        numbers: list[int] = []
        for value in self._fields.get(number, []):
            if isinstance(value, int):
                numbers.append(_signed(value))
                continue
            at = 0
            while at < len(value):
                unsigned, at = _varint(value, at)
                numbers.append(_signed(unsigned))
        return numbers

    @staticmethod
    def _single(values: list[_T], number: int, default: _T) -> _T:
        # a parser merges several values of such a field, so what is checked might not be what runs
        if len(values) > 1:
            raise ValueError(f"field {number} stands more than once")
        return values[0] if values else default


def _fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise ValueError("a field has no number")
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"field {number} is of an unknown kind")
        if length > len(data) - at:
            raise ValueError("it is cut short")
        yield number, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number at `at`, unsigned, and the position after it."""
    number = 0
    for i in range(_MAX_VARINT_BYTES):
        if at + i >= len(data):
            raise ValueError("it is cut short")
        byte = data[at + i]
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return number & ((1 << 64) - 1), at + i + 1
    raise ValueError("a number is too long")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
