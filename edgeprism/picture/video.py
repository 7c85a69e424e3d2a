"""A video's file → some of its frames, as upright tiles. No other module imports PyAV (FFmpeg).

FFmpeg reads from a Python file object. It is allowed no protocol and opens no further file, so a
playlist, or a film that refers to other files, reaches neither the disk nor a network. Sound and
subtitles are not decoded.

The packets of the whole file are counted first, without decoding. Then only the chosen frames are
decoded, each from the key frame before it.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from edgeprism.errors import ImageError
from edgeprism.picture import signatures
from edgeprism.picture.sampling import PER_SECOND, FrameChoice, choose_frames
from edgeprism.picture.tile import picture_to_tile
from edgeprism.records import Sampled

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from edgeprism.bundle.manifest import ImagePolicy

MAX_VIDEO_BYTES = 8 << 30
_MAX_PACKETS = 2_000_000  # 18 hours of 30 frames a second
_MAX_PIXELS = 50_000_000  # of one frame; 8K has 33 million
_THREADS = 4
_BUFFER_BYTES = 1 << 20
# FFmpeg's names of the containers that are read. Playlists, devices, and its readers of texts that
# name other files (concat, hls, dash, image2) are not among them.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,flv,asf,ogg,mxf,ivf,dv,rm"
)
_HINT_DAMAGED = "Copy it again from where it came, or write it anew: ffmpeg -i clip.mp4 new.mp4"
_HINT_SMALLER = "Make it smaller: ffmpeg -i clip.mp4 -vf scale=1280:-2 new.mp4"
_HINT_CUT = "Cut out a part: ffmpeg -ss 00:10:00 -t 60 -i clip.mp4 -c copy part.mp4"
_HINT_KIND = "Give a video with a picture, such as an MP4, MOV, WebM, MKV or AVI file."
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
class _Timeline:
    """A video's frames in the order in which they are shown."""

    n_frames: int
    times: tuple[int, ...]  # in the stream's unit; empty if the file does not tell all of them
    keys: tuple[int, ...]  # times of the frames from which decoding can begin
    seconds: tuple[float, ...]  # from the first frame; empty as `times`


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
        timeline = _timeline(file, name)
        rule, places = choose_frames(timeline.n_frames, choice, timeline.seconds)
        tiles, size, preprocess_ms, notes = _tiles(file, name, policy, timeline, places)
    except ImageError:
        raise
    except MemoryError as error:  # the file may be sound
        raise ImageError(
            f"{name}: reading it needs more memory than there is.", _HINT_SMALLER
        ) from error
    except Exception as error:  # FFmpeg's errors have many types
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{name}: damaged video: {reason}.", _HINT_DAMAGED) from error
    elapsed_ms = (time.perf_counter() - start) * 1000
    sampled = Sampled(
        rule=rule,
        frames=tuple(places),
        seconds=tuple(round(timeline.seconds[p], 3) for p in places) if timeline.seconds else (),
        of=timeline.n_frames,
        frames_per_second=choice.frames_per_second,
    )
    shown = f"{len(places)} of {timeline.n_frames} frames"
    if choice.frames_per_second is not None and rule != PER_SECOND:
        why = (
            f"would be more than {choice.frames}" if timeline.seconds else "need times, it has none"
        )
        shown += f", at even distances: {choice.frames_per_second:g} a second {why}"
    return VideoTiles(
        tiles, digest, size, (shown, *notes), sampled, elapsed_ms - preprocess_ms, preprocess_ms
    )


def _digest(file: IO[bytes], name: str) -> str:
    length = file.seek(0, os.SEEK_END)
    if not length:
        raise ImageError(f"{name}: the file is empty.", "Copy it again from where it came.")
    if length > MAX_VIDEO_BYTES:
        raise ImageError(f"{name}: larger than {MAX_VIDEO_BYTES >> 30} GiB.", _HINT_CUT)
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


# ---- opening


def _refuse(url: str, _flags: int, _options: dict[str, str]) -> IO[bytes]:
    """Open nothing: a video must lie in one file."""
    raise PermissionError(f"it refers to another file: {url[:200]!r}")


class _Opened:
    """A video's container and its picture; a context manager that closes the container."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        import av

        file.seek(0)
        limits = {"max_pixels": str(_MAX_PIXELS)}
        try:
            self.container = av.open(
                file,
                mode="r",
                options=limits,
                container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"},
                metadata_errors="replace",
                buffer_size=_BUFFER_BYTES,
                io_open=_refuse,
            )
        except PermissionError as error:
            raise ImageError(f"{name}: cannot be read: {error}.", _HINT_KIND) from error
        except (av.error.FFmpegError, ValueError, EOFError) as error:
            file.seek(0)
            if signatures.is_video(file.read(signatures.HEAD_BYTES)):
                raise ImageError(
                    f"{name}: the video is damaged or cut off.",
                    "Copy it again from where it came: its beginning alone cannot be read.",
                ) from error
            raise ImageError(f"{name}: not a video that can be read.", _HINT_KIND) from error
        try:
            self.stream = _picture_stream(self.container, name)
            context = self.stream.codec_context
            _check_size((context.width, context.height), name)
            context.thread_count = min(_THREADS, os.cpu_count() or 1)
            context.options = limits
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()


def _picture_stream(container: InputContainer, name: str) -> VideoStream:
    """Return the stream of moving pictures; covers of sound files are none."""
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        what = "it holds sound alone" if container.streams.audio else "it holds no stream of one"
        raise ImageError(f"{name}: has no moving picture: {what}.", _HINT_KIND)
    stream = streams[0]
    if stream.codec_context is None:
        raise ImageError(
            f"{name}: its kind of video is not read.", "Convert it: ffmpeg -i clip.mp4 new.mp4"
        )
    return stream


def _check_size(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > _MAX_PIXELS:
        raise ImageError(
            f"{name}: frames of {size[0]} × {size[1]} pixels; at most "
            f"{_MAX_PIXELS // 1_000_000} megapixels are read.",
            _HINT_SMALLER,
        )


# ---- counting


def _timeline(file: IO[bytes], name: str) -> _Timeline:
    """Count a video's frames from its packets, which are not decoded."""
    times: list[int] = []
    keys: list[int] = []
    n_frames = 0
    with _Opened(file, name) as opened:
        for packet in opened.container.demux(opened.stream):
            if not packet.size or packet.is_discard:  # the last one; frames that are not shown
                continue
            n_frames += 1
            if n_frames > _MAX_PACKETS:
                raise ImageError(f"{name}: more than {_MAX_PACKETS:,} frames.", _HINT_CUT)
            if packet.pts is not None:
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
        unit = float(opened.stream.time_base or 0)
    if not n_frames:
        raise ImageError(f"{name}: holds no frame of its picture.", _HINT_DAMAGED)
    times.sort()
    if len(set(times)) < n_frames or not unit:
        return _Timeline(n_frames, (), (), ())
    seconds = tuple((t - times[0]) * unit for t in times)
    return _Timeline(n_frames, tuple(times), tuple(sorted(keys)), seconds)


# ---- decoding


def _tiles(
    file: IO[bytes], name: str, policy: ImagePolicy, timeline: _Timeline, places: Sequence[int]
) -> tuple[np.ndarray, tuple[int, int], float, tuple[str, ...]]:
    """Return tiles, the size of the upright frames, the milliseconds of tiling, and notes."""
    try:
        return _collected(_by_time(file, name, timeline, places), name, policy, len(places))
    except _Unseekable:
        return _collected(_in_order(file, name, places), name, policy, len(places))


def _collected(
    frames: Iterator[VideoFrame], name: str, policy: ImagePolicy, count: int
) -> tuple[np.ndarray, tuple[int, int], float, tuple[str, ...]]:
    tiles: list[np.ndarray] = []
    size, preprocess_ms = (0, 0), 0.0
    notes: dict[str, None] = {}
    for frame in frames:
        _check_size((frame.width, frame.height), name)
        upright, note = _upright(frame)
        size = size if tiles else upright.size
        start = time.perf_counter()
        tiles.append(np.asarray(picture_to_tile(upright, policy, policy.fill), dtype=np.uint8))
        preprocess_ms += (time.perf_counter() - start) * 1000
        if note:
            notes[note] = None
    if not tiles:
        raise ImageError(f"{name}: no frame of it can be decoded.", _HINT_DAMAGED)
    if len(tiles) < count:  # the end is damaged: its last frame stands for those after it
        notes[f"{count - len(tiles)} frames at its end cannot be decoded"] = None
        tiles += [tiles[-1]] * (count - len(tiles))
    return np.stack(tiles), size, preprocess_ms, tuple(notes)


def _by_time(
    file: IO[bytes], name: str, timeline: _Timeline, places: Sequence[int]
) -> Iterator[VideoFrame]:
    """Yield the frames at `places`, each decoded from the key frame before it.

    Raises _Unseekable where that is not possible: nothing of it is kept then.
    """
    import av

    if not timeline.times:
        raise _Unseekable
    with _Opened(file, name) as opened:
        frames = opened.container.decode(opened.stream)
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
                frames = opened.container.decode(opened.stream)
            for count, frame in enumerate(frames):
                if frame.pts is None or (sought and not count and frame.pts > due):
                    raise _Unseekable
                if frame.pts >= due:
                    reached = frame.pts
                    yield frame
                    break
            else:
                if first:
                    raise _Unseekable
                return
            first = False


def _in_order(file: IO[bytes], name: str, places: Sequence[int]) -> Iterator[VideoFrame]:
    """Yield the frames at `places`, counted while every frame before them is decoded."""
    wanted = iter(places)
    place = next(wanted)
    with _Opened(file, name) as opened:
        for count, frame in enumerate(opened.container.decode(opened.stream)):
            if count < place:
                continue
            yield frame
            following = next(wanted, None)
            if following is None:
                return
            place = following


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
