"""The work that captioning a folder would be, and the time that it would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeprism.folder.batch import Batch
from edgeprism.folder.rate import ENOUGH, Rate, known_rate, measure_rate
from edgeprism.folder.run import FolderOptions, Pictures, search_pictures
from edgeprism.folder.shard import Shard, of_shard
from edgeprism.folder.sharing import StoreOpener
from edgeprism.folder.tuning import batch_shape
from edgeprism.folder.videos import Videos
from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.options import Plan
from edgeprism.picture.find import PictureFile
from edgeprism.picture.kinds import lacks_plugin


@dataclass(frozen=True)
class FolderEstimate:
    """The work that a run would have."""

    total: int
    known: int  # captions that the store has already
    unreadable: int  # HEIC pictures without a caption, if the plug-in that reads them is missing
    rate: Rate | None  # None if the model has captioned nothing here and nothing was measured
    measured: bool = False  # whether the rate was measured now, not in an earlier run

    @property
    def left(self) -> int:
        """Pictures that are still to be captioned."""
        return self.total - self.known - self.unreadable

    @property
    def seconds_per_picture(self) -> float | None:
        """The time that each picture adds to a run; None if it is not known."""
        return None if self.rate is None else self.rate.seconds_per_picture

    @property
    def seconds(self) -> float | None:
        """The time of all that is left; None if it is not known."""
        return None if self.rate is None else self.left * self.rate.seconds_per_picture


def estimate_folder(
    pictures: Pictures,
    captioner: Captioner,
    *,
    plan: Plan | None = None,
    use_store: bool = True,
    parallel: int | None = None,
    exclude: Sequence[str] = (),
    shard: Shard | None = None,
    measure: bool = False,
) -> FolderEstimate:
    """Estimate the work of `caption_folder` and its time.

    The time comes from earlier runs. With `measure`, if these made fewer than ENOUGH captions, it
    comes from some of the pictures, which are captioned and whose captions are thrown away.
    Without it nothing is captioned.

    Raises UsageError and StoreError as `caption_folder` does.
    """
    options = FolderOptions(use_store=use_store, exclude=exclude)
    files = list(of_shard(search_pictures(pictures, options), shard, None))
    plan = plan or captioner.plan()
    todo = _without_caption(files, captioner, plan) if use_store else files
    readable = [file for file in todo if not lacks_plugin(file.path.name)]
    videos = Videos(captioner, plan)
    has_video = any(videos.has(file) for file in readable)  # which takes another time
    rate, measured = None if has_video else known_rate(captioner, plan), None
    if measure and readable and (rate is None or rate.captions < ENOUGH):
        measured = measure_rate(captioner, plan, readable, batch_shape(captioner, parallel))
    return FolderEstimate(
        total=len(files),
        known=len(files) - len(todo),
        unreadable=len(todo) - len(readable),
        rate=measured or rate,
        measured=measured is not None,
    )


def _without_caption(
    files: Sequence[PictureFile], captioner: Captioner, plan: Plan
) -> list[PictureFile]:
    batch = Batch(captioner, plan)
    # a dry run writes nothing, so a store that may only be read is enough
    with StoreOpener(lambda _: None).open() as store:
        return [file for file in files if not batch.is_known(file, store)]
