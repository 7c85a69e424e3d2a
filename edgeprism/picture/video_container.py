"""A video's container: opened without any other file, its frames counted from its packets.

FFmpeg reads from a Python file object. It is allowed no protocol and opens no further file, so a
playlist, or a film that refers to other files, reaches neither the disk nor a network. Sound and
subtitles are not decoded.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from edgeprism.errors import ImageError
from edgeprism.picture import signatures

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

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
DAMAGED = "damaged: some of its frames cannot be decoded"  # a note
HINT_DAMAGED = "Copy it again from where it came, or write it anew: ffmpeg -i clip.mp4 new.mp4"
HINT_SMALLER = "Make it smaller: ffmpeg -i clip.mp4 -vf scale=1280:-2 new.mp4"
HINT_CUT = "Cut out a part: ffmpeg -ss 00:10:00 -t 60 -i clip.mp4 -c copy part.mp4"
_HINT_KIND = "Give a video with a picture, such as an MP4, MOV, WebM, MKV or AVI file."


@dataclass(frozen=True)
class Timeline:
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


# ---- opening


def _refuse(url: str, _flags: int, _options: dict[str, str]) -> IO[bytes]:
    """Open nothing: a video must lie in one file."""
    raise PermissionError(f"it refers to another file: {url[:200]!r}")


class Opened:
    """A video's container and its picture; a context manager that closes the container.

    Raises ImageError, which names the video, if it cannot be opened or has no picture.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        import av

        self.faults: dict[str, None] = {}  # notes on what is damaged, in the order of finding
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
            check_size((context.width, context.height), name)
            context.thread_count = min(_THREADS, os.cpu_count() or 1)
            context.options = limits
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def packets(self) -> Iterator[Packet[VideoStream]]:
        """Yield the picture's packets from here on, up to where the file can no longer be read.

        The last one has nothing: decoding it yields the frames that a decoder holds back.
        """
        import av

        try:
            for packet in self.container.demux(self.stream):
                if packet.is_corrupt:
                    self.faults[DAMAGED] = None
                yield packet
        except av.error.InvalidDataError:
            self.faults[DAMAGED] = None


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


def check_size(size: tuple[int, int], name: str) -> None:
    """Raise ImageError, which names the video, for frames of too many pixels."""
    if size[0] * size[1] > _MAX_PIXELS:
        raise ImageError(
            f"{name}: frames of {size[0]} × {size[1]} pixels; at most "
            f"{_MAX_PIXELS // 1_000_000} megapixels are read.",
            HINT_SMALLER,
        )


# ---- counting


def read_timeline(file: IO[bytes], name: str) -> Timeline:
    """Count a video's frames from its packets, which are not decoded.

    Raises ImageError, which names the video, for too many frames and for none.
    """
    times: list[int] = []
    keys: list[int] = []
    n_packets, n_frames = 0, 0
    with Opened(file, name) as opened:
        for packet in opened.packets():
            if not packet.size:
                continue
            n_packets += 1
            if n_packets > _MAX_PACKETS:
                raise ImageError(f"{name}: more than {_MAX_PACKETS:,} frames.", HINT_CUT)
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
            opened.faults[fault] = None
        faults = tuple(opened.faults)
    if not n_frames:
        raise ImageError(f"{name}: holds no frame of its picture.", HINT_DAMAGED)
    if len(set(times)) < n_frames or not unit:
        return Timeline(n_frames, (), (), (), faults)
    seconds = tuple((t - times[0]) * unit for t in times)
    return Timeline(n_frames, tuple(times), tuple(sorted(keys)), seconds, faults)


def _missing_end(opened: Opened, n_packets: int, last: float | None) -> str:
    """Return a note if the file says that it has more than there is, else ""."""
    told = opened.stream.frames  # 0 if it does not say
    if n_packets < told * (1 - _END_SHARE):
        return f"cut off: of {told} frames the file has {n_packets}"
    length = (opened.container.duration or 0) / 1_000_000
    if last is not None and length - last > max(_END_SECONDS, _END_SHARE * length):
        return f"its last frame is at {last:.2f} s of {length:.2f} s: the end may be missing"
    return ""
