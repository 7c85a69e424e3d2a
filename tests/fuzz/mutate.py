"""Seeded mutations of files: of any bytes, and of what a format would otherwise refuse at once."""

from __future__ import annotations

import copy
import json
import random
import struct
import zlib
from collections.abc import Sequence
from typing import Any

NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 1 << 24,
            (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63,
            (1 << 64) - 1)  # fmt: skip
_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 255, 1 << 31, 1 << 63, 10**400, 0.5, 1e308, "", "\0", "..", "/",
    "\ud800", "a" * 5000, "<|im_start|>", "{focus}", [], {}, [[]], [None], {"": 0}, ["x"] * 300,
)  # fmt: skip


def mutate_bytes(rng: random.Random, seeds: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """Return one of `seeds` with one to eight changes; `words` are tokens of its format."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        _change(rng, data, seeds, words)
    return bytes(data)


def _change(
    rng: random.Random, data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes]
) -> None:
    if not data:
        data += rng.choice(seeds)
    at = rng.randrange(len(data)) if rng.random() < 0.7 else rng.randrange(min(len(data), 400))
    length = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(data) - at)
    match rng.randrange(9 if words else 8):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            data[at] = rng.randrange(256)
        case 2:
            del data[at : at + length]
        case 3:
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 64))
        case 4:
            width = rng.choice("BHIQ")
            order = rng.choice("<>")
            number = rng.choice(NUMBERS) & ((1 << (8 * struct.calcsize(order + width))) - 1)
            packed = struct.pack(order + width, number)
            data[at : at + len(packed)] = packed
        case 5:
            other = rng.choice(seeds)
            start = rng.randrange(len(other))
            data[at : at + length] = other[start : start + rng.choice((1, 16, 256, 4096))]
        case 6:
            del data[at:]
        case 7:
            data[at : at + length] = bytes(length)
        case _:
            data[at:at] = rng.choice(words) * rng.choice((1, 1, 1, 2, 500))


def with_png_checksums(data: bytes) -> bytes:
    """Return a PNG with the right checksum in each chunk, so that its content is looked at."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        out += struct.pack(">I", max(len(body) - 4, 0)) + body
        out += struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out)


def mutate_json(rng: random.Random, text: bytes) -> bytes:
    """Return a JSON object with some values changed, moved, repeated or deeply nested."""
    data = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change_json(rng, data)
    written = json.dumps(data, ensure_ascii=rng.random() < 0.9)
    match rng.randrange(12):
        case 0:
            written = written.replace("{", '{"x": 1, "x": 2, ', 1)
        case 1:
            written = written.replace(rng.choice("0123456789"), "1e999", 1)
        case 2:
            written = written.replace(": ", ": " + "[" * 5000 + "]" * 5000 + ", ", 1)
        case 3:
            written = written.replace("true", "NaN", 1).replace("false", "-Infinity", 1)
    return written.encode("utf-8", "surrogatepass")


def _change_json(rng: random.Random, data: Any) -> None:
    """Change one entry of a random object or list inside `data`."""
    holders: list[Any] = []
    queue = [data]
    while queue:
        value = queue.pop()
        if isinstance(value, (dict, list)) and value:
            holders.append(value)
            queue += value.values() if isinstance(value, dict) else value
    if not holders:
        return
    holder = rng.choice(holders)
    key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    match rng.randrange(4):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[f"{key}{rng.choice(('', ' ', '_', chr(0x200B)))}"] = copy.deepcopy(
                rng.choice(_ODD_VALUES)
            )
        case 2 if type(holder[key]) is int:
            holder[key] = rng.choice((holder[key] + 1, -holder[key], holder[key] << 20))
        case _:
            holder[key] = copy.deepcopy(rng.choice(_ODD_VALUES))
