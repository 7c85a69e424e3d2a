"""What another program keeps on the disk, and how its folders are read: by name, without opening.

Stores are read as they are found: nothing in them is written, opened or hashed to list them, and
a damaged one yields a model with a `problem` instead of an error.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeprism.bundle.choose_gguf import Candidates, is_mmproj, language_models, model_stem
from edgeprism.errors import EdgePrismError, ModelError
from edgeprism.files.file_systems import is_pseudo
from edgeprism.files.regular import open_regular

MAX_ENTRIES = 200_000  # names that are read below one folder; a disk of pictures has more
MAX_DEPTH = 12
_MAX_RECORD = 4 << 20  # bytes of a manifest or a settings file; real ones have a few thousand
# ends of names that programs give to files that they have not finished to fetch
_UNFINISHED = (
    ".part", ".partial", ".incomplete", ".downloadinprogress", ".download", ".crdownload", ".tmp",
    ".aria2",
)  # fmt: skip
UNFINISHED = "a download that did not end"
_TOO_MANY = "not searched to its end: it holds over {:,} names"


@dataclass(frozen=True)
class Kept:
    """A model that another program keeps, as its folders and records tell.

    Parameters:
        name: what stands behind the prefix of a reference; "" where no reference leads to it.
        where: the file or folder that tells of it.
        lm: the language model's file, the first of several parts; None if it cannot be used.
        mmproj: the mmproj file of a captioner.
        problem: why it cannot be used.
        note: what to know of it otherwise.
        digests: the sha256 that the program recorded of these files.
        template: the file of a chat template in the program's own language.
    """

    name: str
    where: Path
    lm: Path | None = None
    mmproj: Path | None = None
    problem: str = ""
    note: str = ""
    digests: Mapping[Path, str] = field(default_factory=dict)
    template: Path | None = None

    @property
    def model(self) -> Path:
        """The language model's file; raises ModelError if there is a problem."""
        if self.lm is None:
            raise ModelError(f"{self.where}: {self.problem}.")
        return self.lm


@dataclass
class Listing:
    """The GGUF files below a folder: sizes by name, with "/" between folders, and what is wrong."""

    folder: Path
    sizes: dict[str, int] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def read_record(path: Path) -> bytes:
    """Return the bytes of a program's small file; raises OSError or ValueError if it is large."""
    with open_regular(path) as file:
        data = file.read(_MAX_RECORD + 1)
    if len(data) > _MAX_RECORD:
        raise ValueError(f"it has more than {_MAX_RECORD // 1_000_000} MB")
    return data


def reason(error: Exception) -> str:
    """Return what an error of reading says, without the path."""
    return getattr(error, "strerror", None) or str(error)


def home() -> Path | None:
    """Return the user's home folder; None if the user has none."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def absolute_path(text: str) -> Path | None:
    """Return a folder that a setting names; None for a relative one, or a text that is no path.

    A relative one would lie in the current folder, which may be a stranger's.
    """
    try:
        os.fsencode(text)  # a lone surrogate of JSON is in no path
        path = Path(text).expanduser()
    except (RuntimeError, ValueError):  # no such user, or a user's name with a null character
        return None
    if "\0" in text:
        return None
    return path if path.is_absolute() else None


def environment_path(name: str) -> Path | None:
    """Return the folder that a variable of the environment names, as `absolute_path`."""
    text = os.environ.get(name)
    return absolute_path(text) if text else None


class Reader:
    """Reads the folders of one store, and ends after MAX_ENTRIES names in all.

    Links are followed, so a few of them that lead back could make a store of endless folders.
    """

    def __init__(self) -> None:
        self._left = MAX_ENTRIES
        self._pseudo: dict[int, bool] = {}  # by device
        self.ended_early = False

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """Return what is in a folder, in order of the names; raises OSError."""
        with os.scandir(folder) as scanned:
            found = list(itertools.islice(scanned, self._left + 1))
        if len(found) > self._left:
            self.ended_early = True
            del found[self._left :]
        self._left -= len(found)
        return sorted(found, key=lambda entry: entry.name)

    def subfolders(self, folder: Path) -> list[Path]:
        """Return the folders in a folder in order of their names.

        Links to folders count too, but for those that lead back to where they are in.
        """
        try:
            inner = [entry for entry in self.entries(folder) if _is_folder(entry)]
            if any(entry.is_symlink() for entry in inner):
                above = {_identity(os.stat(place)) for place in (folder, *folder.parents)}
                inner = [entry for entry in inner if _identity(entry.stat()) not in above]
        except OSError:
            return []
        return [Path(entry.path) for entry in inner]

    def walk(
        self, folder: Path, depth: int, problems: dict[str, str]
    ) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
        """Yield (name below `folder`, entries) of it and the folders in it; none is read twice.

        What cannot be read is put into `problems` by its name, with the reason.
        """
        seen: set[tuple[int, int]] = set()
        waiting = [("", 0)]
        while waiting and not self.ended_early:
            name, level = waiting.pop()
            try:
                status = os.stat(folder / name)
                if _identity(status) in seen:
                    continue  # a link that leads back
                seen.add(_identity(status))
                if status.st_dev not in self._pseudo:
                    self._pseudo[status.st_dev] = is_pseudo(folder / name)
                if self._pseudo[status.st_dev]:
                    problems[name] = "not searched: the system's own files, which no disk holds"
                    continue
                entries = self.entries(folder / name)
            except OSError as error:
                problems[name] = f"cannot be read: {reason(error)}"
                continue
            if level < depth:
                inner = [entry.name for entry in entries if _is_folder(entry)]
                waiting += [(f"{name}/{each}" if name else each, level + 1)
                            for each in reversed(inner)]  # fmt: skip
            yield name, entries

    def early_end(self, place: Path) -> Iterator[Kept]:
        """Yield the store's folder itself if it was not read to its end."""
        if self.ended_early:
            yield Kept("", place, problem=_TOO_MANY.format(MAX_ENTRIES))


def unreadable(place: Path) -> Iterator[Kept]:
    """Yield a folder itself where it is there and cannot be listed, with the reason."""
    try:
        os.scandir(place).close()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield Kept("", place, problem=f"cannot be read: {reason(error)}")


def list_gguf(folder: Path, depth: int = MAX_DEPTH, reader: Reader | None = None) -> Listing:
    """List the GGUF files below `folder`; links are followed, but no folder is read twice.

    A `reader` is the store's, of which this folder is a part: the store says if it ends early.
    """
    listing = Listing(folder)
    own = reader or Reader()
    for name, entries in own.walk(folder, depth, listing.problems):
        for entry in entries:
            if not _is_folder(entry):
                _add(listing, f"{name}/{entry.name}" if name else entry.name, entry)
    if own.ended_early and reader is None:
        listing.problems[""] = _TOO_MANY.format(MAX_ENTRIES)
    return listing


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _add(listing: Listing, name: str, entry: os.DirEntry[str]) -> None:
    lower = entry.name.lower()
    if "gguf" not in lower:
        return
    if lower.endswith(_UNFINISHED) or lower.startswith(("incomplete-", "downloading_")):
        listing.problems[name] = UNFINISHED
    elif lower.endswith(".gguf"):
        try:
            status = entry.stat()
        except OSError as error:
            broken = entry.is_symlink() and isinstance(error, FileNotFoundError)
            what = "its link leads to no file" if broken else f"cannot be read: {reason(error)}"
            listing.problems[name] = what
            return
        if stat.S_ISREG(status.st_mode):
            listing.sizes[name] = status.st_size
        else:
            listing.problems[name] = "not a regular file"


def models_of_repository(listing: Listing) -> Iterator[tuple[str, Kept]]:
    """Yield (file name, model) of a folder that holds one model in one or more quantizations.

    First comes the model that is taken when no file is named, with the file name "".
    """
    sizes = listing.sizes
    used: set[str] = set()
    candidates = Candidates(sizes)
    models = candidates.models
    parts_of = {model.name: model.parts for model in models}
    for file in ["", *parts_of]:
        try:
            choice = candidates.choose(file)
            mmproj = listing.folder / choice.mmproj if choice.mmproj else None
            lm, parts, note = choice.lm[0], choice.lm, ""
        except EdgePrismError:
            if not file:
                continue  # several models that differ in more than quantization
            parts = parts_of[file]
            lm, mmproj = file, None
            note = "several mmproj files fit: name the right one with --lm and --mmproj"
        used |= {*parts}
        yield file, Kept("", listing.folder / lm, listing.folder / lm, mmproj, note=note)
    for name in sorted(sizes.keys() - used):
        path = listing.folder / name
        if not is_mmproj(name):
            yield name, Kept("", path, path)  # its header says what it is
        elif not models:
            yield name, Kept("", path, problem="an mmproj file without its language model")
    for name, problem in sorted(listing.problems.items()):
        yield name, Kept("", listing.folder / name, problem=problem)


def models_of_folder(listing: Listing) -> Iterator[tuple[str, Kept]]:
    """Yield (file name, model) of a folder that may hold many models side by side.

    An mmproj belongs to a language model that is named like it, or to the only one in its folder.
    """
    folders: dict[str, Listing] = {}
    for kind in ("sizes", "problems"):
        for name, value in getattr(listing, kind).items():
            parent, _, base = name.rpartition("/")
            inner = folders.setdefault(parent, Listing(listing.folder / parent))
            getattr(inner, kind)[base] = value
    for parent in sorted(folders):
        for file, kept in _by_stem(folders[parent]):
            if file or not kept.lm:
                yield (f"{parent}/{file}" if parent else file), kept


def _by_stem(listing: Listing) -> Iterator[tuple[str, Kept]]:
    models = language_models(listing.sizes)
    stems = sorted({model.stem for model in models})
    if len(stems) < 2:
        yield from models_of_repository(listing)
        return
    rest = dict(listing.sizes)
    names: dict[str, list[str]] = {stem: [] for stem in stems}
    for model in models:
        names[model.stem] += model.parts
    for name in filter(is_mmproj, listing.sizes):
        if (stem := model_stem(name)) in names and name not in names[stem]:
            names[stem].append(name)
    for stem in stems:
        part = Listing(listing.folder, {name: rest.pop(name) for name in names[stem]})
        yield from models_of_repository(part)
    others = {name: size for name, size in rest.items() if not is_mmproj(name)}
    yield from models_of_repository(Listing(listing.folder, others, listing.problems))


def mmproj_beside(lm: Path) -> Path | None:
    """Return the mmproj file that lies beside a language model and belongs to it."""
    models = models_of_folder(list_gguf(lm.parent, 0))
    return next((kept.mmproj for _, kept in models if kept.lm == lm), None)
