"""Captions a folder from Python, with resume, sidecars and counts.

`caption_folder` does it in one call. `FolderRun` yields each picture's outcome and can be stopped.
Neither prints anything nor touches signal handlers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from edgeprism.arguments import check_can
from edgeprism.errors import EdgePrismError, OutputError, UsageError
from edgeprism.folder.batch import Batch
from edgeprism.folder.events import Outcome, without_frames
from edgeprism.folder.rate import RateMeter, remember_rate
from edgeprism.folder.shard import Shard, of_shard
from edgeprism.folder.sharing import StoreOpener
from edgeprism.folder.sidecars import RunSidecars, open_sidecars
from edgeprism.output.sidecar_names import SidecarName
from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.options import Plan
from edgeprism.picture.find import PictureFile, PictureSearch, Unreadable, find_pictures
from edgeprism.picture.passed import PassedOver
from edgeprism.store.caption_store import CaptionStore

SidecarKind = Literal["txt", "xmp"]
OnError = Literal["skip", "stop"]
Pictures = str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | PictureSearch


@dataclass(frozen=True)
class FolderOptions:
    """How a run treats its pictures; `caption_folder` explains each field."""

    sidecars: Sequence[SidecarKind] = ()
    out_dir: str | os.PathLike[str] | None = None
    overwrite: bool = False
    use_store: bool = True
    parallel: int | None = None
    on_error: OnError = "skip"
    limit: int | None = None
    exclude: Sequence[str] = ()
    reserved: Sequence[Path] = ()  # files of the caller that no sidecar may replace
    append: bool = False
    sidecar_name: SidecarName = "stem"
    shard: Shard | None = None
    sidecars_only: bool = False  # pass pictures over whose every sidecar holds somebody's own text
    # Called in the caller's thread with sentences about the caption store that a person should
    # read. With it, a store that cannot be written is no error: captions are not kept in it.
    on_notice: Callable[[str], object] | None = None

    def __post_init__(self) -> None:
        kinds = get_args(SidecarKind)
        if isinstance(self.sidecars, str) or not set(self.sidecars) <= set(kinds):
            raise UsageError(
                f"{self.sidecars!r} names no sidecars.", 'Give ("txt",), ("xmp",) or both.'
            )
        if self.on_error not in get_args(OnError):
            raise UsageError(f"on_error is {self.on_error!r}.", 'Give "skip" or "stop".')
        if self.parallel is not None and self.parallel < 1:
            raise UsageError(f"parallel must be at least 1, got {self.parallel}.")
        if self.limit is not None and self.limit < 1:
            raise UsageError(
                f"A limit of {self.limit} leaves no picture.", "Give a `limit` of 1 or more."
            )
        if self.overwrite and self.append:
            raise UsageError(
                "A text of others cannot be both replaced and continued.",
                "Give either `overwrite` or `append`.",
            )
        if self.sidecar_name not in get_args(SidecarName):
            raise UsageError(f"sidecar_name is {self.sidecar_name!r}.", 'Give "stem" or "full".')
        if isinstance(self.exclude, str):
            raise UsageError("exclude is one text.", 'Give several: exclude=("*.png",).')


@dataclass(frozen=True)
class Failure:
    """A picture without a caption, or one whose sidecar could not be written."""

    path: Path
    error: EdgePrismError


@dataclass
class FolderResult:
    """The counts of a run; they grow while it goes on.

    `total` is the sum of `captioned`, `known`, `passed_over` and failures once the run has ended.
    """

    total: int  # pictures that the run was given; with a limit, those that it came to
    captioned: int = 0
    known: int = 0  # captions from the caption store, or from a picture with the same content
    duplicates: int = 0  # those of `known` whose content this run met under another name
    failures: list[Failure] = field(default_factory=list)
    left_alone: int = 0  # pictures with a sidecar that holds somebody's own text
    passed_over: int = 0  # those of `left_alone` that therefore needed no caption
    unrecognized: int = 0  # captions that say that nothing was recognised: in no sidecar
    # (the sidecar in use, another one of the same picture), for the first pictures that have two
    twins: list[tuple[Path, Path]] = field(default_factory=list)
    stopped: bool = False  # `FolderRun.stop` ended it before its pictures did
    seconds: float = 0.0
    passed: PassedOver = field(default_factory=PassedOver)  # files that are no pictures, by kind
    repeated: int = 0  # pictures named more than once
    unreadable: list[Unreadable] = field(default_factory=list)  # folders that cannot be listed

    @property
    def done(self) -> int:
        """Pictures that have their outcome, failures included."""
        return self.captioned + self.known + self.passed_over + len(self.failures)

    @property
    def skipped(self) -> int:
        """Files that were passed over."""
        return self.passed.total


class FolderRun:
    """One run over many pictures; iterating over it, once, yields their outcomes in order.

    Use it as a context manager, in one thread; only `stop` may be called from another. `result`
    holds the counts. Leaving the loop early, or an exception, ends the run: captions in flight are
    lost, and every caption that was yielded is in the caption store.

        with FolderRun("photos", captioner) as run:
            for outcome in run:
                print(outcome.picture.path, outcome.error or outcome.record["caption"])
    """

    def __init__(
        self,
        pictures: Pictures,
        captioner: Captioner,
        plan: Plan | None = None,
        options: FolderOptions | None = None,
    ) -> None:
        """List the pictures and open the caption store; the models load when the run begins.

        Raises UsageError for a pattern without a match or a path without a picture, StoreError if
        the store cannot be used.
        """
        check_can("captioner", captioner, "plan", 'Captioner.load("nano")')
        self._captioner, self._plan = captioner, plan or captioner.plan()
        self._options = options or FolderOptions()
        self._search = search_pictures(pictures, self._options)
        self._began = time.monotonic()
        self._stores = StoreOpener(self._options.on_notice)
        self._store = self._stores.open() if self._options.use_store else None
        # with a limit, the search goes no further than the run needs
        limit = self._options.limit
        mine = of_shard(self._search, self._options.shard, self._store)
        self.pictures: Sequence[PictureFile] | None = None if limit else list(mine)
        self.result = FolderResult(
            limit or len(self.pictures or ()),
            passed=self._search.passed,
            unreadable=self._search.unreadable,
        )
        self._count_repeated()
        self._batch: Batch | None = None
        self._stop_requested = self._iterated = False
        self._todo: list[PictureFile] | None = None  # None: all pictures
        self._order: dict[PictureFile, int] = {}  # of those to caption, among all
        self._settled: deque[tuple[int, Outcome]] = deque()  # (place among all, outcome) of others

    def __enter__(self) -> FolderRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the caption store. The captioner stays open."""
        if self._store is not None:
            self._store.close()

    def start(self) -> None:
        """Choose how many captions to decode at a time; iterating does so too.

        The first run with a model measures it, which takes some seconds.
        """
        if self._todo is None and self._options.sidecars_only and self.pictures is not None:
            self._todo = list(self._without_own_text(self.pictures, self._store))
        if self._todo is None or self._todo:
            self._prepare()

    def stop(self) -> None:
        """Begin no more pictures and finish those in flight; from any thread or signal handler.

        Another run over the same pictures continues there.
        """
        self._stop_requested = True
        if self._batch is not None:
            self._batch.stop()

    def __iter__(self) -> Generator[Outcome]:
        """Yield outcomes in the order of the pictures, after writing each one's sidecars.

        Raises errors that concern every picture: ModelError, DeviceError, StoreError, and
        OutputError if the disk is full. Raises UsageError if the run was iterated over before.
        """
        if self._iterated:
            raise UsageError("A run can be iterated over only once.", "Make another FolderRun.")
        self._iterated = True
        self.start()
        sidecars = self._open_sidecars(self._store)
        try:
            if self._todo is None or self._todo:
                yield from self._caption(self._prepare(), sidecars)
            while self._settled and not self.result.stopped:
                yield (outcome := self._counted(self._settled.popleft()[1]))
                self.result.stopped = outcome.error is not None and self._stops_at_errors
            if self.pictures is None and not self.result.stopped:
                self.result.total = self.result.done
        finally:
            self._count_repeated()
            self.result.twins = sidecars.twins
            self.result.seconds = time.monotonic() - self._began

    def _caption(self, batch: Batch, sidecars: RunSidecars) -> Generator[Outcome]:
        """Yield the outcomes of pictures to caption, and of others that precede them."""
        meter, of_pictures = RateMeter(batch.parallel * batch.lanes), True
        for made in batch.run(self._pictures_to_caption()):
            place = self._order.get(made.picture, 0)
            while self._settled and self._settled[0][0] < place:
                outcome = self._counted(self._settled.popleft()[1])
                if outcome.error is not None and self._stops_at_errors:
                    batch.stop()
                yield outcome
            of_pictures = of_pictures and "video" not in (made.record or {})
            outcome = sidecars.write(made)
            if isinstance(outcome.error, OutputError) and _is_disk_full(outcome.error):
                yield made  # it has its caption; all further sidecars would fail
                raise outcome.error
            meter.add(made=outcome.record is not None and not outcome.cached)
            if outcome.error is not None and self._stops_at_errors:
                batch.stop()
            yield self._counted(outcome)
        self.result.stopped = self._stop_requested and batch.stopped
        if of_pictures:  # a video takes another time
            remember_rate(self._captioner, self._plan, meter.rate())

    @property
    def _stops_at_errors(self) -> bool:
        return self._options.on_error == "stop"

    def _pictures_to_caption(self) -> Iterable[PictureFile]:
        if self._todo is not None:
            return self._todo
        return self._searched() if self.pictures is None else self.pictures

    def _searched(self) -> Generator[PictureFile]:
        """Yield the pictures to caption in the batch's thread, which needs a store of its own."""
        with self._stores.open() if self._options.use_store else contextlib.nullcontext() as store:
            mine = of_shard(self._search, self._options.shard, store)
            yield from self._without_own_text(mine, store) if self._options.sidecars_only else mine

    def _without_own_text(
        self, pictures: Iterable[PictureFile], store: CaptionStore | None
    ) -> Generator[PictureFile]:
        """Yield the pictures to caption; put the outcomes of all others aside."""
        sidecars = self._open_sidecars(store)
        for place, picture in enumerate(pictures):
            outcome = sidecars.settled(picture)
            if outcome is None:
                self._order[picture] = place
                yield picture
            else:
                self._settled.append((place, outcome))

    def _open_sidecars(self, store: CaptionStore | None) -> RunSidecars:
        says_nothing = self._captioner.bundle.manifest.says_nothing
        return open_sidecars(self._options, store, says_nothing)

    def _prepare(self) -> Batch:
        if self._batch is None:
            from edgeprism.folder.tuning import batch_shape

            shape = batch_shape(self._captioner, self._options.parallel)
            self._batch = Batch(
                self._captioner,
                self._plan,
                open_store=self._stores.open if self._options.use_store else None,
                on_notice=self._options.on_notice,
                parallel=shape.width,
                lanes=shape.lanes,
                limit=self._options.limit,
            )
            self._stores.tell_through(self._batch.notify)
            if self._stop_requested:
                self._batch.stop()
        return self._batch

    def _count_repeated(self) -> None:
        self.result.repeated = self._search.repeated

    def _counted(self, outcome: Outcome) -> Outcome:
        result = self.result
        result.seconds = time.monotonic() - self._began
        result.left_alone += outcome.left_alone
        result.unrecognized += outcome.unrecognized
        if outcome.error is not None:
            error = without_frames(outcome.error)
            result.failures.append(Failure(outcome.picture.path, error))
        elif outcome.record is None:
            result.passed_over += 1
        elif outcome.cached:
            result.known += 1
            result.duplicates += outcome.duplicate
        else:
            result.captioned += 1
        return outcome


def caption_folder(
    pictures: Pictures,
    captioner: Captioner,
    *,
    plan: Plan | None = None,
    sidecars: Sequence[SidecarKind] = (),
    out_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    use_store: bool = True,
    parallel: int | None = None,
    on_error: OnError = "skip",
    limit: int | None = None,
    exclude: Sequence[str] = (),
    append: bool = False,
    sidecar_name: SidecarName = "stem",
    shard: Shard | None = None,
    on_outcome: Callable[[Outcome], object] | None = None,
) -> FolderResult:
    """Caption every picture of a folder, and continue where an earlier call was interrupted.

    Args:
        pictures: A folder with all below it, a file, ``"photos/**/*.jpg"``, or several of these.
        captioner: The captioner to use. It stays open.
        plan: Instruction and sampling, from ``captioner.plan(...)``; by default the model's own.
        sidecars: Files next to each picture: ``"txt"``, and ``"xmp"`` with ``dc:description``.
        out_dir: Put sidecars into a mirror of the folders under this folder instead.
        overwrite: Replace texts of others; ``edgeprism sidecars undo`` brings them back.
        use_store: Use and fill the caption store in ``EDGEPRISM_HOME``.
        parallel: Captions to decode at a time; by default measured on this machine.
        on_error: ``"skip"``, or ``"stop"`` to begin no more pictures after one that fails.
        limit: End after this many captions, known ones included; failures do not count.
        exclude: Patterns of files and folders to pass over, each as a line of ``.gitignore``.
        append: Write the caption behind texts of others, which otherwise are left alone.
        sidecar_name: For new ones: ``"stem"`` (``photo.xmp``) or ``"full"`` (``photo.jpg.xmp``).
        shard: ``Shard(3, 16)``: the third of 16 parts, by the pictures' contents.
        on_outcome: Called with each ``Outcome`` in order; an exception that it raises ends the run.

    Returns:
        Counts, ``failures`` with path and error each, and ``passed``: other files, by kind.

    Raises:
        UsageError, ModelError, DeviceError: An option is invalid, or no engine can run.
        StoreError: The caption store cannot be used; ``use_store=False`` works without it.
        OutputError: The disk is full. Other sidecars that cannot be written are failures.
        KeyboardInterrupt: Ctrl-C drops what is in flight; ``FolderRun.stop()`` finishes it.

    Examples:
        >>> from edgeprism import Captioner, caption_folder
        >>> caption_folder("photos", Captioner.load("nano"), sidecars=("txt",)).captioned
    """
    options = FolderOptions(
        sidecars, out_dir, overwrite, use_store, parallel, on_error, limit, exclude, (), append,
        sidecar_name, shard, sidecars_only=bool(sidecars) and on_outcome is None,
    )  # fmt: skip
    run = FolderRun(pictures, captioner, plan, options)
    with run, contextlib.closing(iter(run)) as outcomes:
        for outcome in outcomes:
            if on_outcome is not None:
                on_outcome(outcome)
    return run.result


def search_pictures(pictures: Pictures, options: FolderOptions) -> PictureSearch:
    """Return the search that `pictures` is, or one for the paths and patterns in it."""
    if isinstance(pictures, PictureSearch):
        return pictures
    if isinstance(pictures, (str, os.PathLike)):
        pictures = [pictures]
    return find_pictures(pictures, exclude=options.exclude)


def _is_disk_full(error: OutputError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
