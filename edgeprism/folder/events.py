"""The outcome of one picture, and the events that a batch's threads report to the caller's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from edgeprism.errors import EdgePrismError, RepetitionError

if TYPE_CHECKING:
    from edgeprism.files.stamps import FileStamp
    from edgeprism.language.generator import Finished
    from edgeprism.picture.find import PictureFile
    from edgeprism.records import EncodedImage

ErrorType = TypeVar("ErrorType", bound=EdgePrismError)


@dataclass(frozen=True)
class Outcome:
    """The result of one picture.

    `record` is its caption as `edgeprism caption --json` prints it. It is None if there is no
    caption; `error` then says why. Both are set if the caption was made but its sidecar could not
    be written. Neither is set if the picture was passed over. `cached` is true if the caption came
    from the caption store, or from the same picture under another name; `duplicate` is true if
    this run met that other picture first. `left_alone` is true if a sidecar holds somebody's own
    text and was not changed; `unrecognized` if the caption says that the model knows nothing in
    the picture, so that no sidecar was written.
    """

    picture: PictureFile
    record: dict[str, Any] | None = None
    error: EdgePrismError | None = None
    cached: bool = False
    duplicate: bool = False
    left_alone: bool = False
    unrecognized: bool = False


def without_frames(error: ErrorType) -> ErrorType:
    """Return the error without its traceback and causes, which hold on to ten kilobytes each."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


@dataclass
class Job:
    """One picture in progress."""

    index: int
    picture: PictureFile
    is_video: bool = False
    stamp: FileStamp | None = None  # as it was before the picture was read
    key: str = ""
    tiles_sha256: str = ""
    encoded: EncodedImage | None = None

    def tokens(self) -> EncodedImage:
        """The encoded picture, for a lane; raises ValueError before it is encoded."""
        if self.encoded is None:
            raise ValueError("a lane got a job whose picture is not encoded")
        return self.encoded


@dataclass(frozen=True)
class Settled:
    """The outcome of a picture that no lane has to caption."""

    index: int
    outcome: Outcome


@dataclass(frozen=True)
class Twin:
    """A picture with the same content as an earlier one, whose caption it will share."""

    job: Job


@dataclass(frozen=True)
class Generated:
    """A lane finished the caption of `job`."""

    job: Job
    finished: Finished


@dataclass(frozen=True)
class Failed:
    """A thread ended with an error that ends the whole run."""

    error: BaseException


@dataclass(frozen=True)
class Notice:
    """A sentence that a person should read while the run goes on."""

    text: str


@dataclass(frozen=True)
class LaneEnded:
    """A lane will report nothing more."""


Event = Settled | Twin | Generated | Failed | Notice | LaneEnded


def repetition(job: Job) -> Outcome:
    """Return the outcome of a picture whose text only repeats itself: it is no caption."""
    error = RepetitionError(
        f"{job.picture.path}: the model's text repeats itself, so it is no caption.",
        "Use another model or instruction; `edgeprism caption` of this picture "
        "alone prints the text.",
    )
    return Outcome(job.picture, error=error)
