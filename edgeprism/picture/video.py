"""A video's file → some of its frames, as upright tiles. No other module imports PyAV (FFmpeg).

FFmpeg reads from a Python file object. It is allowed no protocol and opens no further file, so a
playlist, or a film that refers to other files, reaches neither the disk nor a network. Sound and
subtitles are not decoded.

The packets of the whole file are counted first, without decoding. Then only the chosen frames are
decoded, each from the key frame before it. What is damaged is passed over: the next frame that can
be decoded stands for a chosen one, the last for those after it, and notes say so.
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
    from av.packet import Packet
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
# A file whose last frame is earlier by this, in seconds and as a share, is said to lack its end.
_END_SECONDS, _END_SHARE = 0.5, 0.05
_DAMAGED = "damaged: some of its frames cannot be decoded"
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
    faults: tuple[str, ...] = ()  # notes: the file lacks its end, or is damaged

    def place_of(self, frame: VideoFrame, otherwise: int) -> int:
        """Return the place of a decoded frame; `otherwise` where its time does not tell it."""
        if not self.times or frame.pts is None:
            return otherwise
        return min(bisect.bisect_left(self.times, frame.pts), self.n_frames - 1)


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
        timeline = _timeline(file, name)
        rule, places = choose_frames(timeline.n_frames, choice, timeline.seconds)
        shown = _show(file, name, policy, timeline, places)
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
    n_packets, n_frames, faults = 0, 0, dict[str, None]()
    with _Opened(file, name) as opened:
        for packet in _packets(opened, faults):
            n_packets += 1
            if n_packets > _MAX_PACKETS:
                raise ImageError(f"{name}: more than {_MAX_PACKETS:,} frames.", _HINT_CUT)
            if packet.is_discard:  # not shown
                continue
            n_frames += 1
            if packet.pts is not None:
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
        unit = float(opened.stream.time_base or 0)
        times.sort()
        last = (times[-1] - times[0]) * unit if times else None
        if n_frames and (fault := _missing_end(opened, n_packets, last)):
            faults[fault] = None
    if not n_frames:
        raise ImageError(f"{name}: holds no frame of its picture.", _HINT_DAMAGED)
    if len(set(times)) < n_frames or not unit:
        return _Timeline(n_frames, (), (), (), tuple(faults))
    seconds = tuple((t - times[0]) * unit for t in times)
    return _Timeline(n_frames, tuple(times), tuple(sorted(keys)), seconds, tuple(faults))


def _packets(opened: _Opened, faults: dict[str, None]) -> Iterator[Packet[VideoStream]]:
    """Yield the packets that hold something, up to where the file can no longer be read."""
    import av

    try:
        for packet in opened.container.demux(opened.stream):
            if packet.size:  # the last one has nothing
                if packet.is_corrupt:
                    faults[_DAMAGED] = None
                yield packet
    except av.error.InvalidDataError:
        faults[_DAMAGED] = None


def _missing_end(opened: _Opened, n_packets: int, last: float | None) -> str:
    """Return a note if the file says that it has more than there is, else ""."""
    told = opened.stream.frames  # 0 if it does not say
    if n_packets < told * (1 - _END_SHARE):
        return f"cut off: of {told} frames the file has {n_packets}"
    length = (opened.container.duration or 0) / 1_000_000
    if last is not None and length - last > max(_END_SECONDS, _END_SHARE * length):
        return f"its last frame is at {last:.2f} s of {length:.2f} s: the end may be missing"
    return ""


# ---- decoding


def _show(
    file: IO[bytes], name: str, policy: ImagePolicy, timeline: _Timeline, places: Sequence[int]
) -> _Shown:
    """Decode the frames at `places` and make their tiles."""
    faults = dict[str, None]()
    try:
        return _collected(_by_time(file, name, timeline, places, faults), name, policy, places,
                          faults)  # fmt: skip
    except _Unseekable:
        return _collected(_in_order(file, name, timeline, places, faults), name, policy, places,
                          faults)  # fmt: skip


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
        _check_size((frame.width, frame.height), name)
        upright, note = _upright(frame)
        size = size if tiles else upright.size
        start = time.perf_counter()
        tiles.append(np.asarray(picture_to_tile(upright, policy, policy.fill), dtype=np.uint8))
        places.append(place)
        preprocess_ms += (time.perf_counter() - start) * 1000
        if note:
            notes[note] = None
        if frame.is_corrupt:
            notes[_DAMAGED] = None
    if not tiles:
        raise ImageError(f"{name}: damaged: no frame of it can be decoded.", _HINT_DAMAGED)
    missing = len(wanted) - len(tiles)
    if missing:
        notes[f"its end cannot be decoded: frame {places[-1]} stands for {missing} more"] = None
        tiles += [tiles[-1]] * missing
        places += [places[-1]] * missing
    return _Shown(np.stack(tiles), tuple(places), size, preprocess_ms, tuple(notes))


def _decoded(opened: _Opened, faults: dict[str, None]) -> Iterator[VideoFrame]:
    """Yield all frames from here on that can be decoded."""
    import av

    for packet in opened.container.demux(opened.stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            faults[_DAMAGED] = None
            continue
        yield from frames


def _by_time(
    file: IO[bytes],
    name: str,
    timeline: _Timeline,
    places: Sequence[int],
    faults: dict[str, None],
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frames at `places`, or the next after one, each from the key frame before it.

    Raises _Unseekable where that is not possible: nothing of it is kept then.
    """
    import av

    if not timeline.times:
        raise _Unseekable
    with _Opened(file, name) as opened:
        frames = _decoded(opened, faults)
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
                frames = _decoded(opened, faults)
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
    file: IO[bytes],
    name: str,
    timeline: _Timeline,
    places: Sequence[int],
    faults: dict[str, None],
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frames at `places`, while every frame before them is decoded."""
    wanted = iter(places)
    due = next(wanted)
    with _Opened(file, name) as opened:
        for count, frame in enumerate(_decoded(opened, faults)):
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
