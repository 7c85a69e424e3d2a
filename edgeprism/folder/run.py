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
from edgeprism.folder.events import Outcome
from edgeprism.output.sidecar import Sidecar, TxtSidecar, XmpSidecar
from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.options import Plan
from edgeprism.picture.find import PictureSearch, Unreadable, find_pictures
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


@dataclass(frozen=True)
class Failure:
    """A picture without a caption, or one whose sidecar could not be written."""

    path: Path
    error: EdgePrismError


@dataclass
class FolderResult:
    """The counts of a run; they grow while it goes on."""

    total: int  # pictures that the run was given
    captioned: int = 0
    known: int = 0  # captions from the caption store, or from a picture with the same content
    failures: list[Failure] = field(default_factory=list)
    stopped: bool = False  # `FolderRun.stop` ended it before its pictures did
    seconds: float = 0.0
    skipped: int = 0  # files passed over because they have no picture's suffix
    repeated: int = 0  # pictures named more than once
    unreadable: list[Unreadable] = field(default_factory=list)  # folders that cannot be listed

    @property
    def done(self) -> int:
        """Pictures that have their outcome, failures included."""
        return self.captioned + self.known + len(self.failures)


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
        search = _search(pictures)
        self._pictures = list(search)
        self._began = time.monotonic()
        self.result = FolderResult(
            len(self._pictures),
            skipped=search.skipped,
            repeated=search.repeated,
            unreadable=search.unreadable,
        )
        self._store = _open_store() if self._options.use_store else None
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
        try:
            for outcome in batch.run(self._pictures):
                error = self._write_sidecars(outcome, sidecars)
                if error is not None and _is_disk_full(error):
                    yield outcome  # it has its caption; all further sidecars would fail
                    raise error
                if error is not None:
                    outcome = replace(outcome, error=error)
                self._count(outcome)
                if outcome.error is not None and self._options.on_error == "stop":
                    batch.stop()
                yield outcome
            self.result.stopped = self._stop_requested and batch.stopped
        finally:
            self.result.seconds = time.monotonic() - self._began

    def _prepare(self) -> Batch:
        if self._batch is None:
            from edgeprism.folder.tuning import batch_shape

            shape = batch_shape(self._captioner, self._options.parallel)
            self._batch = Batch(
                self._captioner,
                self._plan,
                open_store=_open_store if self._options.use_store else None,
                parallel=shape.width,
                lanes=shape.lanes,
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

    def _count(self, outcome: Outcome) -> None:
        result = self.result
        result.seconds = time.monotonic() - self._began
        if outcome.error is not None:
            result.failures.append(Failure(outcome.picture.path, outcome.error))
        elif outcome.cached:
            result.known += 1
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
    on_outcome: Callable[[Outcome], object] | None = None,
) -> FolderResult:
    """Caption every picture of a folder, and continue where an earlier call was interrupted.

    Every finished caption goes into the caption store at once. A second call finds it there, by
    the picture's content, and makes only the missing ones. A failing picture does not end the call.

    Args:
        pictures: A folder (with all folders below it), a file, a pattern such as
            ``"photos/**/*.jpg"``, or several of these.
        captioner: The captioner to use. It stays open.
        plan: Instruction and sampling, from ``captioner.plan(...)``; by default the model's own.
        sidecars: Files to write next to each picture: ``"txt"`` for ``photo.txt``, ``"xmp"`` for
            ``photo.xmp`` (Adobe's ``dc:description``).
        out_dir: Put sidecars into a mirror of the folders under this folder instead.
        overwrite: Also replace texts and descriptions that other programs wrote.
        use_store: Use and fill the caption store in ``EDGEPRISM_HOME``.
        parallel: Captions to decode at a time; by default measured on this machine.
        on_error: ``"skip"``, or ``"stop"`` to begin no more pictures after one that fails.
        on_outcome: Called in this thread with each picture's ``Outcome``, in the pictures' order.
            An exception that it raises ends the call.

    Returns:
        The counts ``total``, ``captioned`` and ``known``, and ``failures``, each with its path
        and its error.

    Raises:
        UsageError: A pattern has no match, or an option is invalid.
        ModelError, DeviceError: The captioner's engines cannot run.
        StoreError: The caption store cannot be used; ``use_store=False`` works without it.
        OutputError: The disk is full. Other sidecars that cannot be written are failures.
        KeyboardInterrupt: Ctrl-C ends the call when the engines' current step does. Captions in
            flight are dropped. ``FolderRun`` and its ``stop()`` finish them first.

    Examples:
        >>> from edgeprism import Captioner, caption_folder
        >>> with Captioner.load("nano") as captioner:
        ...     result = caption_folder("photos", captioner, sidecars=("txt",))
        >>> print(result.captioned, result.known, len(result.failures))
    """
    options = FolderOptions(sidecars, out_dir, overwrite, use_store, parallel, on_error)
    with FolderRun(pictures, captioner, plan, options) as run:
        with contextlib.closing(iter(run)) as outcomes:
            for outcome in outcomes:
                if on_outcome is not None:
                    on_outcome(outcome)
        return run.result


@dataclass(frozen=True)
class FolderEstimate:
    """The work that a run would have."""

    total: int
    known: int  # captions that the store has already
    seconds_per_picture: float | None  # mean of this model's last captions; None if it never ran

    @property
    def left(self) -> int:
        """Pictures that are still to be captioned."""
        return self.total - self.known


def estimate_folder(
    pictures: Pictures, captioner: Captioner, *, plan: Plan | None = None, use_store: bool = True
) -> FolderEstimate:
    """Estimate the work of `caption_folder` and its time, without captioning anything.

    Raises UsageError and StoreError as `caption_folder` does.
    """
    paths = list(_search(pictures))
    if not use_store:
        return FolderEstimate(len(paths), 0, None)
    batch = Batch(captioner, plan or captioner.plan())
    with _open_store() as store:
        known = sum(batch.is_known(path, store) for path in paths)
        return FolderEstimate(len(paths), known, store.seconds_per_picture(captioner.bundle.digest))


def _search(pictures: Pictures) -> PictureSearch:
    if isinstance(pictures, PictureSearch):
        return pictures
    if isinstance(pictures, (str, os.PathLike)):
        return find_pictures([pictures])
    return find_pictures(pictures)


def _open_store() -> CaptionStore:
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
