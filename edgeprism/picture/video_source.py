"""Any source of a video → the tiles of its frames, read in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from edgeprism.errors import ImageError
from edgeprism.machine.shortage import shortage_hint
from edgeprism.picture import signatures
from edgeprism.picture.kinds import VIDEO, kind_of
from edgeprism.picture.source import IN_MEMORY, check_source, source_to_bytes
from edgeprism.records import sampled_from_record

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import ImagePolicy
    from edgeprism.picture.child_decoder import ChildDecoder
    from edgeprism.picture.sampling import FrameChoice
    from edgeprism.picture.source import ImageSource
    from edgeprism.picture.video import VideoTiles

_TIMEOUT_S = 300.0  # for one video: FFmpeg's own formats are many, and its decoders bound nothing
_MEMORY_BYTES = 4 << 30


def is_video(source: object) -> bool:
    """Return whether a source of a picture is a video, by its first bytes or else by its name.

    Never raises: what cannot be opened is no video, and the reader of pictures says why.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return signatures.is_video(bytes(source[: signatures.HEAD_BYTES]))
    head: object
    try:
        if isinstance(source, (str, os.PathLike)):
            name = os.fspath(source)
            if not os.path.isfile(name):  # opening a device may do something
                return False
            with open(name, "rb") as file:
                head = file.read(signatures.HEAD_BYTES)
        elif hasattr(source, "read") and (stream := cast("IO[Any]", source)).seekable():
            name = str(getattr(stream, "name", ""))
            start = stream.tell()
            head = stream.read(signatures.HEAD_BYTES)
            stream.seek(start)
        else:
            return False
    except (OSError, ValueError, AttributeError):
        return False
    if not isinstance(head, bytes):  # opened as text
        return False
    by_name = kind_of(os.path.basename(name))[0] is VIDEO
    return signatures.is_video(head) or (by_name and not signatures.is_picture(head))


def source_name(source: object) -> str:
    """Return what errors and records call a source."""
    if isinstance(source, (str, os.PathLike)):
        return str(os.fspath(source))
    return str(getattr(source, "name", IN_MEMORY))


def read_frames(
    source: ImageSource,
    policy: ImagePolicy,
    choice: FrameChoice,
    *,
    isolate: bool = True,
    on_child: Callable[[ChildDecoder], object] | None = None,
) -> VideoTiles:
    """Read the chosen frames of a video, turned upright, as tiles.

    Parameters:
        source: a path, the file's bytes, or a seekable binary file object.
        policy: how a frame becomes its tile.
        choice: which frames are taken.
        isolate: decode in a process of its own, within limits of time and memory.
        on_child: called with that process, which the caller may end at any time.

    Raises ImageError, which names the video, and the extra to install if PyAV is missing.
    """
    from edgeprism.picture.video import check_has_reader

    name = source_name(source)
    check_has_reader(name)
    if not isolate:
        with opened_video(source) as (name, file):
            return read_here(file, name, policy, choice)
    check_source(source, sys.maxsize)  # the reader of videos has a limit of its own
    request: dict[str, Any] = {"choice": dataclasses.asdict(choice)}
    payload = b""
    if isinstance(source, (str, os.PathLike)):
        request["path"] = name
    else:
        _, payload = source_to_bytes(source)  # type: ignore[arg-type]
        request["name"] = name
    return _read_in_child(request, payload, name, policy, on_child)


def read_here(file: IO[bytes], name: str, policy: ImagePolicy, choice: FrameChoice) -> VideoTiles:
    """Read the chosen frames of an opened video in this process, without limits."""
    from edgeprism.picture.video import read_video

    return read_video(file, name, policy, choice)


@contextlib.contextmanager
def opened_video(source: ImageSource) -> Iterator[tuple[str, IO[bytes]]]:
    """Open a video; give its name and a seekable file. Raises ImageError."""
    if not isinstance(source, (str, os.PathLike)):
        name, data = source_to_bytes(source)  # type: ignore[arg-type]
        yield name, io.BytesIO(data)
        return
    check_source(source, sys.maxsize)  # the reader of videos has a limit of its own
    name = os.fspath(source)
    try:
        file = open(name, "rb")  # noqa: SIM115 - closed below; only errors of opening are told here
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(
            f"{name}: cannot be read: {reason}.", shortage_hint(error) or "Check its permissions."
        ) from error
    with file:
        yield name, file


def _read_in_child(
    request: dict[str, Any],
    payload: bytes,
    name: str,
    policy: ImagePolicy,
    on_child: Callable[[ChildDecoder], object] | None,
) -> VideoTiles:
    from edgeprism.picture.child_decoder import ChildDecoder
    from edgeprism.picture.video import VideoTiles

    settings = {"memory_bytes": _MEMORY_BYTES, "policy": dataclasses.asdict(policy)}
    try:
        decoder = ChildDecoder(settings)
    except OSError as error:
        raise ImageError(
            f"{name}: needs a process of its own to be read, which does not start: {error}.",
            "End other programs. A program may also load its captioner with "
            "isolate_decoding=False.",
        ) from error
    try:
        if on_child is not None:
            on_child(decoder)
        answer, data = decoder.ask(request, payload, name, _TIMEOUT_S)
    finally:
        decoder.end()
    return VideoTiles(
        tiles=np.frombuffer(data, np.uint8).reshape(answer["tiles"]),
        sha256=answer["sha256"],
        size=(answer["size"][0], answer["size"][1]),
        notes=tuple(answer["notes"]),
        sampled=sampled_from_record(answer["sampled"]),
        decode_ms=answer["decode_ms"],
        preprocess_ms=answer["preprocess_ms"],
    )
