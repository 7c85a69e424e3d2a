"""Which frames of a video a model is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeprism.arguments import check_integer, check_number
from edgeprism.choices import LEAST_RATE, MAX_FRAMES, MOST_RATE
from edgeprism.errors import UsageError

UNIFORM, PER_SECOND = "uniform", "per-second"


@dataclass(frozen=True)
class FrameChoice:
    """How many frames of a video are taken, and at which distance.

    Parameters:
        frames: the most that are taken.
        frames_per_second: as many are taken of each second, if those are no more than `frames`.
            None: `frames` at even distances.
    """

    frames: int
    frames_per_second: float | None = None


def choose_frames(
    n_frames: int, choice: FrameChoice, seconds: Sequence[float] = ()
) -> tuple[str, list[int]]:
    """Return the rule that was followed and the places of the chosen frames, from 0, ascending.

    "uniform" takes `choice.frames` at even distances, with the first and the last one, places
    rounded down. "per-second" takes the first frame, and after each interval the next one. Where
    that gives more than `choice.frames`, "uniform" is followed instead. These are the rules of
    LLaVA-NeXT-Video's demo. Without `seconds`, the frames' times, "uniform" is all that is left.
    """
    count = min(choice.frames, n_frames)
    if choice.frames_per_second is not None and len(seconds) == n_frames:
        places = _per_second(seconds, 1 / choice.frames_per_second, choice.frames)
        if len(places) <= choice.frames:
            return PER_SECOND, places
    if count == 1:
        return UNIFORM, [0]
    return UNIFORM, [i * (n_frames - 1) // (count - 1) for i in range(count)]


def _per_second(seconds: Sequence[float], interval: float, most: int) -> list[int]:
    """Return a frame for each interval that holds one; it ends after more than `most`."""
    places: list[int] = []
    due = 0.0
    for place, second in enumerate(seconds):
        passed = second - seconds[0]
        if passed + 1e-9 < due:
            continue
        places.append(place)
        if len(places) > most:
            break
        due = (int((passed + 1e-9) / interval) + 1) * interval
    return places


def check_frame_wishes(frames: int | None, frames_per_second: float | None) -> None:
    """Refuse a number or a rate of frames of another type or out of range; raises UsageError."""
    if frames is not None:
        hint = "Leave it out for the model's own number."
        check_integer("frames", frames, least=1, hint=hint)
        if frames > MAX_FRAMES:
            raise UsageError(f"frames must be at most {MAX_FRAMES}, got {frames}.", hint)
    if frames_per_second is not None:
        check_number("frames_per_second", frames_per_second, least=LEAST_RATE)
        if frames_per_second > MOST_RATE:
            raise UsageError(
                f"frames_per_second must be at most {MOST_RATE:g}, got {frames_per_second:g}.",
                "Leave it out for frames at even distances.",
            )
