"""Captions a folder from Python, with resume, sidecars and counts.

`caption_folder` does it in one call. `FolderRun` yields each picture's outcome and can be stopped.
Neither prints anything nor touches signal handlers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from edgeprism.errors import EdgePrismError, OutputError, UsageError
from edgeprism.folder.batch import Batch
from edgeprism.folder.events import Outcome, without_frames
from edgeprism.folder.rate import RateMeter, remember_rate
from edgeprism.output.sidecar import Sidecar, TxtSidecar, XmpSidecar
from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.options import Plan
from edgeprism.picture.find import PictureFile, PictureSearch, Unreadable, find_pictures
from edgeprism.picture.passed import PassedOver
from edgeprism.store.caption_store import CaptionStore, default_path

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

    `total` is the sum of `captioned`, `known` and failures once the run has ended.
    """

    total: int  # pictures that the run was given; with a limit, those that it came to
    captioned: int = 0
    known: int = 0  # captions from the caption store, or from a picture with the same content
    duplicates: int = 0  # those of `known` whose content this run met under another name
    failures: list[Failure] = field(default_factory=list)
    stopped: bool = False  # `FolderRun.stop` ended it before its pictures did
    seconds: float = 0.0
    passed: PassedOver = field(default_factory=PassedOver)  # files that are no pictures, by kind
    repeated: int = 0  # pictures named more than once
    unreadable: list[Unreadable] = field(default_factory=list)  # folders that cannot be listed

    @property
    def done(self) -> int:
        """Pictures that have their outcome, failures included."""
        return self.captioned + self.known + len(self.failures)

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
        self._captioner, self._plan = captioner, plan or captioner.plan()
        self._options = options or FolderOptions()
        self._search = search_pictures(pictures, self._options)
        # with a limit, the search goes no further than the run needs
        limit = self._options.limit
        self.pictures: Sequence[PictureFile] | None = None if limit else list(self._search)
        self._began = time.monotonic()
        self.result = FolderResult(
            limit or len(self.pictures or ()),
            passed=self._search.passed,
            unreadable=self._search.unreadable,
        )
        self._count_repeated()
        self._store = open_store() if self._options.use_store else None
        self._batch: Batch | None = None
        self._stop_requested = self._iterated = False

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
        batch, sidecars = self._prepare(), _open_sidecars(self._options, self._store)
        meter = RateMeter(batch.parallel * batch.lanes)
        try:
            for outcome in batch.run(self._search if self.pictures is None else self.pictures):
                error = self._write_sidecars(outcome, sidecars)
                if error is not None and _is_disk_full(error):
                    yield outcome  # it has its caption; all further sidecars would fail
                    raise error
                if error is not None:
                    outcome = replace(outcome, error=error)
                self._count(outcome)
                meter.add(made=outcome.record is not None and not outcome.cached)
                if outcome.error is not None and self._options.on_error == "stop":
                    batch.stop()
                yield outcome
            self.result.stopped = self._stop_requested and batch.stopped
            if self.pictures is None and not self.result.stopped:
                self.result.total = self.result.done
            remember_rate(self._captioner, self._plan, meter.rate())
        finally:
            self._count_repeated()
            self.result.seconds = time.monotonic() - self._began

    def _prepare(self) -> Batch:
        if self._batch is None:
            from edgeprism.folder.tuning import batch_shape

            shape = batch_shape(self._captioner, self._options.parallel)
            self._batch = Batch(
                self._captioner,
                self._plan,
                open_store=open_store if self._options.use_store else None,
                parallel=shape.width,
                lanes=shape.lanes,
                limit=self._options.limit,
            )
            if self._stop_requested:
                self._batch.stop()
        return self._batch

    def _write_sidecars(self, outcome: Outcome, sidecars: list[Sidecar]) -> OutputError | None:
        if outcome.record is None:
            return None
        try:
            for sidecar in sidecars:
                written = sidecar.write(outcome.record, outcome.picture)
                # Also if the file was there before: the run that wrote it may have been killed
                # before it could remember the output.
                store = self._store
                if store is not None and store.written_before(written.path) != written.sha256:
                    store.remember_output(written.path, written.sha256)
        except OutputError as error:
            return error
        return None

    def _count_repeated(self) -> None:
        self.result.repeated = self._search.repeated

    def _count(self, outcome: Outcome) -> None:
        result = self.result
        result.seconds = time.monotonic() - self._began
        if outcome.error is not None:
            error = without_frames(outcome.error)
            result.failures.append(Failure(outcome.picture.path, error))
        elif outcome.cached:
            result.known += 1
            result.duplicates += outcome.duplicate
        else:
            result.captioned += 1


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
    on_outcome: Callable[[Outcome], object] | None = None,
) -> FolderResult:
    """Caption every picture of a folder, and continue where an earlier call was interrupted.

    Every finished caption goes into the caption store at once. A second call finds it there, by
    the picture's content, and makes only the missing ones. A failing picture does not end the call.

    Args:
        pictures: A folder with all below it, a file, ``"photos/**/*.jpg"``, or several of these.
        captioner: The captioner to use. It stays open.
        plan: Instruction and sampling, from ``captioner.plan(...)``; by default the model's own.
        sidecars: Files to write next to each picture: ``"txt"`` for ``photo.txt``, ``"xmp"`` for
            ``photo.xmp`` (Adobe's ``dc:description``).
        out_dir: Put sidecars into a mirror of the folders under this folder instead.
        overwrite: Also replace texts and descriptions that other programs wrote.
        use_store: Use and fill the caption store in ``EDGEPRISM_HOME``.
        parallel: Captions to decode at a time; by default measured on this machine.
        on_error: ``"skip"``, or ``"stop"`` to begin no more pictures after one that fails.
        limit: End after this many captions, known ones included; failures do not count.
        exclude: Patterns of files and folders to pass over, each as a line of ``.gitignore``.
        on_outcome: Called in this thread with each picture's ``Outcome``, in the pictures' order.
            An exception that it raises ends the call.

    Returns:
        Counts, ``failures`` with path and error each, and ``passed``: other files, by kind.

    Raises:
        UsageError: A pattern has no match, or an option is invalid.
        ModelError, DeviceError: The captioner's engines cannot run.
        StoreError: The caption store cannot be used; ``use_store=False`` works without it.
        OutputError: The disk is full. Other sidecars that cannot be written are failures.
        KeyboardInterrupt: Ctrl-C drops what is in flight; ``FolderRun.stop()`` finishes it.

    Examples:
        >>> from edgeprism import Captioner, caption_folder
        >>> result = caption_folder("photos", Captioner.load("nano"), sidecars=("txt",))
        >>> print(result.captioned, result.known, len(result.failures))
    """
    options = FolderOptions(
        sidecars, out_dir, overwrite, use_store, parallel, on_error, limit, exclude
    )
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


def open_store() -> CaptionStore:
    """Open the caption store of this user."""
    return CaptionStore(default_path())


def _open_sidecars(options: FolderOptions, store: CaptionStore | None) -> list[Sidecar]:
    out_dir, overwrite, reserved = options.out_dir, options.overwrite, options.reserved
    before = store.written_before if store is not None else None
    sidecars: list[Sidecar] = []
    if "txt" in options.sidecars:
        sidecars.append(
            TxtSidecar(
                out_dir=out_dir, overwrite=overwrite, reserved=reserved, written_before=before
            )
        )
    if "xmp" in options.sidecars:
        sidecars.append(XmpSidecar(out_dir=out_dir, overwrite=overwrite, reserved=reserved))
    return sidecars


def _is_disk_full(error: OutputError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
