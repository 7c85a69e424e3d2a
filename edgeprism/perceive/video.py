"""A video → the visual tokens of its frames, as one value that is captioned like a picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edgeprism.bundle.manifest import Several
from edgeprism.choices import MAX_FRAMES
from edgeprism.errors import ImageError, PromptTooLongError, UsageError
from edgeprism.perceive.prompt import pictures_to_segments
from edgeprism.picture.sampling import FrameChoice
from edgeprism.picture.source import video_error
from edgeprism.picture.video_source import is_video, read_frames, source_name
from edgeprism.records import EncodedImage, Reduction, Timings
from edgeprism.segments import ImageRows, Segment
from edgeprism.vision.onnx import VisionEncoder
from edgeprism.vision.token_reduction import METHOD, reduce_rows

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import Manifest, Video
    from edgeprism.perceive.engines import Engines
    from edgeprism.perceive.options import Plan
    from edgeprism.picture.child_decoder import ChildDecoder
    from edgeprism.picture.source import ImageSource
    from edgeprism.picture.video import VideoTiles

_TEXT = 64  # tokens that a prompt has at least, beside its rows


def is_video_for(manifest: Manifest, source: object) -> bool:
    """Return whether a model takes a source as a video; one of pictures opens no file for that."""
    return manifest.video is not None and is_video(source)


def encode_video(
    source: ImageSource, engines: Engines, manifest: Manifest, digest: str, plan: Plan
) -> EncodedImage:
    """Encode the frames of a video that the manifest and the plan choose.

    Parameters:
        source: a path, the file's bytes, or a seekable binary file object.
        digest: the model's.

    Raises ImageError for a model without `video` and for a video that cannot be read, and
    PromptTooLongError if the frames alone fill the model's context.
    """
    video = read_for_model(source, manifest, plan, isolate=engines.isolate_decoding)
    return tiles_to_encoded_video(
        video, engines, manifest, plan, name=source_name(source), digest=digest
    )


def read_for_model(
    source: ImageSource,
    manifest: Manifest,
    plan: Plan,
    *,
    isolate: bool,
    on_child: Callable[[ChildDecoder], object] | None = None,
) -> VideoTiles:
    """Read the frames of a video that the manifest and the plan choose, without any engine.

    Parameters:
        isolate, on_child: as of `read_frames`.

    Raises the errors of `encode_video`.
    """
    if manifest.video is None:
        error = video_error(source_name(source))
        raise ImageError(f"{error.message} {manifest.name} describes pictures.", error.hint)
    choice = frame_choice(manifest, manifest.video, plan)
    _check_room(choice.frames, manifest, manifest.video, source_name(source))
    policy = manifest.video.frame_policy(manifest.image.size)
    return read_frames(source, policy, choice, isolate=isolate, on_child=on_child)


def tiles_to_encoded_video(
    video: VideoTiles, engines: Engines, manifest: Manifest, plan: Plan, *, name: str, digest: str
) -> EncodedImage:
    """Encode the frames that `read_for_model` read; `name` and the model's `digest` are kept."""
    if manifest.video is None:
        raise ValueError("the manifest says nothing of videos")
    segments = frames_to_segments(
        manifest.video, len(video.tiles), causal=manifest.lm.image_attention == "causal"
    )
    with engines.encoding:
        vision = engines.vision()
        start = time.perf_counter()
        if not isinstance(vision, VisionEncoder):
            raise TypeError("only a graph takes a video's frames")
        each = vision.encode_frames(video.tiles)
        rows = each.reshape(-1, each.shape[-1])
        reduction, limit = None, plan.visual_tokens
        if limit is not None:
            reduction = Reduction(limit, len(rows), METHOD)
            frame_of_row = np.repeat(np.arange(len(each), dtype=np.int32), each.shape[1])
            rows, segments = reduce_rows(rows, segments, frame_of_row, limit)
        encode_ms = (time.perf_counter() - start) * 1000
    return EncodedImage(
        visual_tokens=rows,
        image=name,
        image_sha256=video.sha256,
        size=video.size,
        notes=video.notes,
        model_digest=digest,
        layout=segments,
        timings=Timings(
            decode_image=video.decode_ms, preprocess=video.preprocess_ms, encode=encode_ms
        ),
        reduction=reduction,
        video=video.sampled,
    )


def frame_choice(manifest: Manifest, video: Video, plan: Plan) -> FrameChoice:
    """Return which frames a plan asks for.

    Without a number: as many as the manifest says, or, of so many a second, as many as there is
    room for beside the text.
    """
    if plan.frames is not None:
        return FrameChoice(plan.frames, plan.frames_per_second)
    if plan.frames_per_second is None:
        return FrameChoice(video.frames)
    room = manifest.lm.context_length - _TEXT - plan.sampling.max_tokens
    most = min(max(room // video.tokens_per_frame, 1), MAX_FRAMES)
    return FrameChoice(most, plan.frames_per_second)


def frames_to_segments(video: Video, n_frames: int, *, causal: bool) -> tuple[Segment, ...]:
    """Return how the rows of frames stand in the prompt: one block, or with text around each."""
    n_rows = video.tokens_per_frame
    if not (video.before or video.between):
        return (ImageRows(0, n_frames * n_rows, causal),)
    frame = [ImageRows(0, n_rows, causal)]
    around = Several(video.before, video.between)
    return tuple(pictures_to_segments(around, [frame] * n_frames))


def _check_room(frames: int, manifest: Manifest, video: Video, name: str) -> None:
    """Refuse frames that fill the context, before any is decoded."""
    room = manifest.lm.context_length - _TEXT
    if frames * video.tokens_per_frame > room:
        raise PromptTooLongError(
            f"{name}: {frames} frames of {video.tokens_per_frame} visual tokens; the context of "
            f"{manifest.name} has {manifest.lm.context_length} tokens.",
            f"Give `frames` of at most {max(1, room // video.tokens_per_frame)}.",
        )


def check_frames_have_effect(plan: Plan, name: str, *, encoded: bool = False) -> None:
    """Raise UsageError if a plan chooses frames of what is no video that is still to be read."""
    if plan.frames is not None or plan.frames_per_second is not None:
        why = "what was encoded keeps its frames" if encoded else "a picture is seen whole"
        raise UsageError(
            f"{name}: not a video whose frames can be chosen.",
            f"Leave out `frames` and `frames_per_second`: {why}.",
        )
