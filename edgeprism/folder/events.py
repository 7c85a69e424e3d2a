"""What a batch makes of each picture, and what its threads report to the caller's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from edgeprism.errors import EdgePrismError
    from edgeprism.language.generator import Finished
    from edgeprism.picture.find import PictureFile
    from edgeprism.records import EncodedImage


@dataclass(frozen=True)
class Outcome:
    """What became of one picture.

    `record` is its caption as `edgeprism caption --json` prints it, or None where `error` says
    why there is none. Both are there when the caption was made and its sidecar could not be
    written. `cached` says that the caption came from the caption store, or from the same picture
    under another name.
    """

    picture: PictureFile
    record: dict[str, Any] | None = None
    error: EdgePrismError | None = None
    cached: bool = False


@dataclass
class Job:
    """One picture under way."""

    index: int
    picture: PictureFile
    status: os.stat_result | None = None  # as it was before the picture was read
    key: str = ""
    encoded: EncodedImage | None = None


@dataclass(frozen=True)
class Settled:
    """The outcome of a picture for which no words need be generated."""

    index: int
    outcome: Outcome


@dataclass(frozen=True)
class Twin:
    """A picture with the same content as one begun before, whose words it will share."""

    job: Job


@dataclass(frozen=True)
class Generated:
    """A lane finished the words of `job`."""

    job: Job
    finished: Finished


@dataclass(frozen=True)
class Failed:
    """A thread ended with an error that ends the whole run."""

    error: BaseException


@dataclass(frozen=True)
class LaneEnded:
    """A lane will report nothing more."""


Event = Settled | Twin | Generated | Failed | LaneEnded
