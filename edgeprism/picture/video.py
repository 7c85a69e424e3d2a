"""A video's file → some of its frames, as upright tiles.

This module and `video_container` alone import PyAV (FFmpeg). Only the chosen frames are decoded,
each from the key frame before it. What is damaged is passed over: the next frame that can be
decoded stands for a chosen one, the last for those after it, and notes say so.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from edgeprism.errors import ImageError
from edgeprism.picture.sampling import PER_SECOND, FrameChoice, choose_frames
from edgeprism.picture.tile import picture_to_tile
from edgeprism.picture.video_container import (
    DAMAGED,
    HINT_CUT,
    HINT_DAMAGED,
    HINT_SMALLER,
    Opened,
    Timeline,
    check_size,
    read_timeline,
)
from edgeprism.records import Sampled

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from edgeprism.bundle.manifest import ImagePolicy

MAX_VIDEO_BYTES = 8 << 30
# Signs of a display matrix's four numbers → how the stored frame becomes upright
_TURNS = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
_UPRIGHT = (1, 0, 0, 1)
_MATRIX_BYTES = 36  # nine numbers of 32 bits


@dataclass(frozen=True)
class VideoTiles:
    """The chosen frames of a video, each as one tile for the vision engine."""

    tiles: np.ndarray  # [n_frames, size, size, 3] uint8
    sha256: str  # of the file
    size: tuple[int, int]  # (width, height), upright
    notes: tuple[str, ...]
    sampled: Sampled
    decode_ms: float
    preprocess_ms: float


@dataclass(frozen=True)
class _Shown:
    """The frames that are shown: tiles, and the place of each, which may occur again."""

    tiles: np.ndarray
    places: tuple[int, ...]
    size: tuple[int, int]  # of the upright frames
    preprocess_ms: float
    notes: tuple[str, ...]


class _Unseekable(Exception):
    """The file does not lead to a frame before the one that is asked for."""


def check_has_reader(name: str) -> None:
    """Raise ImageError, which names the extra, if PyAV is not installed."""
    if find_spec("av") is None:
        import sys

        raise ImageError(
            f"{name}: a video needs PyAV to be read.",
            f'Install it: {sys.executable} -m pip install "edgeprism[video]"',
        )


def read_video(file: IO[bytes], name: str, policy: ImagePolicy, choice: FrameChoice) -> VideoTiles:
    """Read the chosen frames of a video, turned upright, as tiles.

    Parameters:
        file: the video's file; it must be seekable.
        name: what errors and notes call it.
        policy: how a frame becomes its tile.
        choice: which frames are taken.

    Raises ImageError, which names the video, if it is damaged, over the limits, or has no picture.
    """
    start = time.perf_counter()
    try:
        digest = _digest(file, name)
        timeline = read_timeline(file, name)
        rule, places = choose_frames(timeline.n_frames, choice, timeline.seconds)
        shown = _show(file, name, policy, timeline, places)
    except ImageError:
        raise
    except MemoryError as error:  # the file may be sound
        raise ImageError(
            f"{name}: reading it needs more memory than there is.", HINT_SMALLER
        ) from error
    except Exception as error:  # FFmpeg's errors have many types
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{name}: damaged video: {reason}.", HINT_DAMAGED) from error
    elapsed_ms = (time.perf_counter() - start) * 1000
    sampled = Sampled(
        rule=rule,
        frames=shown.places,
        seconds=tuple(round(timeline.seconds[p], 3) for p in shown.places if timeline.seconds),
        of=timeline.n_frames,
        frames_per_second=choice.frames_per_second,
    )
    taken = f"{len(places)} of {timeline.n_frames} frames"
    if choice.frames_per_second is not None and rule != PER_SECOND:
        why = (
            f"would be more than {choice.frames}" if timeline.seconds else "need times, it has none"
        )
        taken += f", at even distances: {choice.frames_per_second:g} a second {why}"
    notes = tuple(dict.fromkeys((taken, *timeline.faults, *shown.notes)))
    decode_ms = elapsed_ms - shown.preprocess_ms
    return VideoTiles(
        shown.tiles, digest, shown.size, notes, sampled, decode_ms, shown.preprocess_ms
    )


def _digest(file: IO[bytes], name: str) -> str:
    length = file.seek(0, os.SEEK_END)
    if not length:
        raise ImageError(f"{name}: the file is empty.", "Copy it again from where it came.")
    if length > MAX_VIDEO_BYTES:
        raise ImageError(f"{name}: larger than {MAX_VIDEO_BYTES >> 30} GiB.", HINT_CUT)
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


_Decode = Callable[[Opened, Timeline, Sequence[int]], Iterator[tuple[int, "VideoFrame"]]]


def _show(
    file: IO[bytes], name: str, policy: ImagePolicy, timeline: Timeline, places: Sequence[int]
) -> _Shown:
    """Decode the frames at `places` and make their tiles."""

    def collect(decode: _Decode) -> _Shown:
        with Opened(file, name) as opened:
            frames = decode(opened, timeline, places)
            return _collected(frames, name, policy, places, opened.faults)

    if timeline.times:
        with contextlib.suppress(_Unseekable):
            return collect(_by_time)
    return collect(_in_order)


def _collected(
    frames: Iterator[tuple[int, VideoFrame]],
    name: str,
    policy: ImagePolicy,
    wanted: Sequence[int],
    notes: dict[str, None],
) -> _Shown:
    """Make a tile of each frame; the last one stands for those of `wanted` that are not there."""
    tiles: list[np.ndarray] = []
    places: list[int] = []
    size, preprocess_ms = (0, 0), 0.0
    for place, frame in frames:
        check_size((frame.width, frame.height), name)
        upright, note = _upright(frame)
        size = size if tiles else upright.size
        start = time.perf_counter()
        tiles.append(np.asarray(picture_to_tile(upright, policy, policy.fill), dtype=np.uint8))
        places.append(place)
        preprocess_ms += (time.perf_counter() - start) * 1000
        if note:
            notes[note] = None
        if frame.is_corrupt:
            notes[DAMAGED] = None
    if not tiles:
        raise ImageError(f"{name}: damaged: no frame of it can be decoded.", HINT_DAMAGED)
    missing = len(wanted) - len(tiles)
    if missing:
        notes[f"its end cannot be decoded: frame {places[-1]} stands for {missing} more"] = None
        tiles += [tiles[-1]] * missing
        places += [places[-1]] * missing
    return _Shown(np.stack(tiles), tuple(places), size, preprocess_ms, tuple(notes))


def _decoded(opened: Opened) -> Iterator[VideoFrame]:
    """Yield all frames from here on that can be decoded."""
    import av

    for packet in opened.packets():
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            opened.faults[DAMAGED] = None
            continue
        yield from frames


def _by_time(
    opened: Opened, timeline: Timeline, places: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frames at `places`, or the next after one, each from the key frame before it.

    Raises _Unseekable where that is not possible: nothing of it is kept then.
    """
    import av

    frames = _decoded(opened)
    reached = timeline.times[0]
    first = True
    for place in places:
        due = timeline.times[place]
        before = bisect.bisect_right(timeline.keys, due) - 1
        sought = before >= 0 and timeline.keys[before] > reached
        if sought:
            try:
                opened.container.seek(timeline.keys[before], stream=opened.stream)
            except av.error.FFmpegError as error:
                raise _Unseekable from error
            frames = _decoded(opened)
        for count, frame in enumerate(frames):
            if frame.pts is None or (sought and not count and frame.pts > due):
                raise _Unseekable
            if frame.pts >= due:
                reached = frame.pts
                yield timeline.place_of(frame, place), frame
                break
        else:
            if first:
                raise _Unseekable
            return
        first = False


def _in_order(
    opened: Opened, timeline: Timeline, places: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frames at `places`, while every frame before them is decoded."""
    wanted = iter(places)
    due = next(wanted)
    for count, frame in enumerate(_decoded(opened)):
        place = timeline.place_of(frame, count)
        if place < due:
            continue
        yield place, frame
        following = next(wanted, None)
        if following is None:
            return
        due = following


def _upright(frame: VideoFrame) -> tuple[Image.Image, str]:
    """Return a frame as RGB, turned as its display matrix says, and a note or ""."""
    rgb: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]  # PyAV has no types here
    signs = _display_signs(frame)
    if signs == _UPRIGHT:
        return rgb, ""
    if signs not in _TURNS:
        return rgb, "its display matrix is no turn by a right angle: frames are as they are stored"
    return rgb.transpose(_TURNS[signs]), ""


def _display_signs(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Return −1, 0 or 1 for each of a display matrix's numbers a, b, c and d.

    The pixel at (x, y) is shown at (a · x + c · y, b · x + d · y).
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None or len(bytes(matrix)) < _MATRIX_BYTES:
        return _UPRIGHT
    numbers = (
        np.frombuffer(bytes(matrix)[:_MATRIX_BYTES], np.int32).reshape(3, 3)[:2, :2].astype(float)
    )
    scale = float(np.abs(numbers).max()) or 1.0
    a, b, c, d = (int(n) for n in np.rint(numbers / scale).ravel())
    return a, b, c, d
