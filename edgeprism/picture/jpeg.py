"""JPEG files that end too early, but show all of their picture.

Source: ITU-T T.81, annexes B (markers) and G (progressive mode).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

END = b"\xff\xd9"
_MOST_SCANS = 10_000
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # neither a stuffed byte nor a restart
_PROGRESSIVE = 0xC2
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


@dataclass(frozen=True)
class _Scan:
    components: frozenset[int]
    first: int  # coefficient of the band: 0 is the mean of a block
    stop: int  # place of the marker behind it; -1 if the file ends within it


@dataclass(frozen=True)
class _Frame:
    kind: int  # marker
    components: tuple[int, ...]


def complete_scans(data: bytes) -> tuple[bytes, str] | None:
    """Return a progressive file without its last, cut scan, and a note.

    None if it is no progressive file that was cut, or if the scans before the cut do not show the
    whole picture: the means of all blocks in every component, and detail in the first.
    """
    frame, scans = None, []
    for part in _parts(data):
        if isinstance(part, _Frame):
            frame = frame or part
        else:
            scans.append(part)
    if frame is None or frame.kind != _PROGRESSIVE or not frame.components:
        return None
    whole = [scan for scan in scans if scan.stop >= 0]
    means = {component for scan in whole if scan.first == 0 for component in scan.components}
    detailed = any(frame.components[0] in scan.components for scan in whole if scan.first > 0)
    if len(whole) == len(scans) or not means >= set(frame.components) or not detailed:
        return None
    note = f"cut short: read from its {len(whole)} complete scans, without the finest detail"
    return data[: whole[-1].stop] + END, note


def ends_to_try(data: bytes) -> tuple[bytes, bytes]:
    """Return a cut file with an end, and with other bytes before that end.

    If both decode into the same picture, all of it stood in the file: the bytes were not needed.
    """
    data = data.rstrip(b"\xff")
    return data + END, data + bytes([0x55, 0x2A]) * 32 + END


def _parts(data: bytes) -> Iterator[_Frame | _Scan]:
    """Yield the frame header and the scans of a file, up to its end or the first fault."""
    position = 2
    for _ in range(_MOST_SCANS):
        while position + 4 <= len(data) and data[position] == 0xFF:
            marker = data[position + 1]
            if marker == 0xFF:
                position += 1
                continue
            if marker == 0xD9:
                return
            (length,) = struct.unpack_from(">H", data, position + 2)
            body = data[position + 4 : position + 2 + length]
            position += 2 + length
            if marker in _FRAMES and len(body) >= 6:
                yield _Frame(marker, tuple(body[6 : 6 + 3 * body[5] : 3]))
            if marker == 0xDA:
                break
        else:
            return
        if len(body) < 4 or len(body) < 4 + 2 * body[0]:
            return
        following = _MARKER.search(data, position)
        stop = following.start() if following else -1
        n = body[0]
        yield _Scan(frozenset(body[1 : 1 + 2 * n : 2]), body[1 + 2 * n], stop)
        if stop < 0:
            return
        position = stop
