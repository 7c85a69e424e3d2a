"""Arguments → pictures: files, folders, patterns and lists, in one stable order.

This module opens no picture. It yields every file that is named directly, even one that does not
exist or is no picture, so that its reader reports the fault and no argument is lost.

The order: the arguments as given, then the list's lines. In a folder, files come first and
sub-folders after them, both sorted by case-folded name, then by raw name. Linked folders come
after everything that really lies in their argument, and only if the search has not entered them
yet: it yields each picture once and under its own path, however many links or loops lead to it.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from edgeprism.errors import UsageError
from edgeprism.picture.ignore import NO_RULES, Rules
from edgeprism.picture.kinds import has_picture_suffix
from edgeprism.picture.listing import Listing, RulesBelow, list_folder
from edgeprism.picture.passed import PassedOver
from edgeprism.picture.patterns import expand_pattern, fixed_folder, is_pattern

STDIN = "-"
MAX_LIST_BYTES = 256 << 20  # a million paths of 256 bytes
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture's path and the argument that led to it."""

    path: Path
    root: Path | None  # the folder argument that contains it; None if it was named directly
    argument: str  # as given; "-" for the picture on standard input
    base: Path | None = None  # absolute folder that all arguments share, for mirrored outputs
    # the file's bytes where the caller has them; `path` is then no more than a name
    data: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def is_stdin(self) -> bool:
        """Whether the picture comes from standard input."""
        return self.argument == STDIN

    @property
    def name(self) -> str:
        """The picture's name in records: its path, or "<stdin>"."""
        return "<stdin>" if self.is_stdin else str(self.path)

    @property
    def relative(self) -> Path:
        """The path of its results inside a mirrored output folder.

        It is the path below the folder that all arguments share: for one folder argument the path
        inside it; with several, each folder keeps its name. No two pictures of a search share it.
        """
        if self.base is not None and self.base.is_absolute():
            return Path(_absolute(str(self.path))).relative_to(self.base)
        if self.base is not None:  # the arguments share no folder, as on two drives
            whole = Path(_absolute(str(self.path)))
            drive = "".join(letter for letter in whole.drive if letter.isalnum())
            return Path(drive, *whole.parts[1:])
        return Path(self.path.name) if self.root is None else self.path.relative_to(self.root)


@dataclass(frozen=True)
class Unreadable:
    """A folder that could not be listed, or only in part."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class _Target:
    argument: str
    path: str
    anchor: str | None  # absolute folder, from which the arguments' common folder is computed
    is_folder: bool = False
    rules: Rules = NO_RULES  # of the folder above it, or of the command line
    named: bool = True  # not by a wildcard


class PictureSearch(Iterator[PictureFile]):
    """An iterator over the pictures; its counts are complete when it has ended.

    `named` lists the files that arguments, patterns and lists name, without those in folders.
    """

    def __init__(self, targets: list[_Target], passed: PassedOver, limit: int | None) -> None:
        self.passed = passed  # files that were found and are not yielded
        self.repeated = 0  # paths that had been yielded before and came up again
        self.unreadable: list[Unreadable] = []
        self.named = [Path(t.path) for t in targets if not t.is_folder and t.argument != STDIN]
        self._base = _common_folder(target.anchor for target in targets)
        self._left = limit
        self._yielded: set[str] = set()
        self._entered: set[tuple[int, int] | str] = set()
        self._pictures = self._find(targets)

    @property
    def skipped(self) -> int:
        """The number of files that were passed over."""
        return self.passed.total

    def __iter__(self) -> PictureSearch:
        return self

    def __next__(self) -> PictureFile:
        if self._left == 0:
            raise StopIteration
        picture = next(self._pictures)
        if self._left is not None:
            self._left -= 1
        return picture

    def _find(self, targets: list[_Target]) -> Iterator[PictureFile]:
        for target in targets:
            if target.is_folder:
                yield from self._walk(target)
                continue
            picture = PictureFile(Path(target.path), None, target.argument, self._base)
            if self._is_new(STDIN if picture.is_stdin else _absolute(target.path)):
                yield picture

    def _walk(self, target: _Target) -> Iterator[PictureFile]:
        """Walk a folder depth first; no recursion, because a deep tree would exhaust the stack."""
        root = Path(target.path)
        pending, links = [(target.path, target.rules)], deque[tuple[str, Rules]]()
        named = target.named
        while pending or links:
            folder, rules = pending.pop() if pending else links.popleft()
            if not self._enter(folder):
                continue
            listing = self._list(folder, rules, named)
            named, rules = False, listing.rules
            absolute = _absolute(folder)
            for name in listing.pictures:
                if self._is_new(os.path.join(absolute, name)):
                    path = Path(os.path.join(folder, name))
                    yield PictureFile(path, root, target.argument, self._base)
            below = [(os.path.join(folder, name), rules) for name in listing.folders]
            pending.extend(reversed(below))
            links.extend((os.path.join(folder, name), rules) for name in listing.links)

    def _enter(self, folder: str) -> bool:
        """Return whether the folder is to be walked: it is readable and was not walked before."""
        try:
            status = os.stat(folder)
        except OSError as error:
            self._report(folder, error)
            return False
        # some network file systems have no inode numbers; there the resolved path identifies it
        inode = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
        if inode in self._entered:
            return False
        self._entered.add(inode)
        return True

    def _list(self, folder: str, rules: Rules, named: bool) -> Listing:
        listing = list_folder(folder, rules, self.passed, named=named)
        for error in listing.errors:
            self._report(folder, error)
        return listing

    def _is_new(self, absolute: str) -> bool:
        key = os.path.normcase(absolute)
        if key in self._yielded:
            self.repeated += 1
            return False
        self._yielded.add(key)
        return True

    def _report(self, folder: str, error: OSError) -> None:
        self.unreadable.append(Unreadable(Path(folder), error.strerror or str(error)))


def find_pictures(
    arguments: Iterable[str | os.PathLike[str]],
    *,
    files_from: str | os.PathLike[str] | None = None,
    null: bool = False,
    limit: int | None = None,
    exclude: Sequence[str] = (),
    stdin: IO[bytes] | None = None,
    stdin_picture: str | os.PathLike[str] = STDIN,
) -> PictureSearch:
    """Return an iterator over the pictures that the arguments name, at most `limit` of them.

    Parameters:
        arguments: each is a file (with any suffix); a folder (with all its sub-folders, without
            hidden entries, folders that a system or a NAS keeps for itself, and files that lack a
            picture's suffix); a pattern with * ? [ or **, where a name that exists as it is
            written means just itself; or "-" for one picture on standard input.
        files_from: a file, or "-" for standard input, with one path per line in UTF-8. Blank lines
            are ignored. The lines are files or folders, never patterns.
        stdin_picture: the file in which the caller has saved the picture on standard input, so that
            other processes can read it.
        null: the paths of `files_from` end with NUL instead of a line break.
        exclude: patterns of what to pass over, each as a line of `.gitignore` in the folder that
            an argument names. They hold for files that are named directly, too.

    A folder below an argument is passed over if it contains `.nomedia`; `.edgeprismignore` in any
    folder excludes more, see `edgeprism.picture.ignore`.

    The iterator reads each folder when it gets there. Raises UsageError, before it yields
    anything, for a pattern without a match, an unreadable list, or options that exclude each
    other.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"A limit of {limit} leaves no picture.", "Give a `limit` of 1 or more.")
    if null and files_from is None:
        raise UsageError(
            "NUL ends the paths of a list, but no list is named.", "Give `files_from` too."
        )
    paths = [os.fspath(argument) for argument in arguments]
    lines: list[str] = []
    if files_from is not None:
        if os.fspath(files_from) == STDIN and STDIN in paths:
            raise UsageError(
                "Standard input cannot be both a picture and a list.", 'Leave out one "-".'
            )
        lines = _read_list(os.fspath(files_from), null, stdin)
    targets: list[_Target] = []
    passed = PassedOver()
    for argument in paths:
        if argument == STDIN:
            targets.append(_Target(STDIN, os.fspath(stdin_picture), None))
        elif is_pattern(argument) and not os.path.lexists(argument):
            targets += _pattern_to_targets(argument, exclude, passed)
        else:
            targets += _path_to_targets(argument, exclude, passed)
    for line in lines:
        # a line "-" is a file with that name; "./-" distinguishes it from standard input
        targets += _path_to_targets("./-" if line == STDIN else line, exclude, passed)
    return PictureSearch(targets, passed, limit)


def _path_to_targets(argument: str, exclude: Sequence[str], passed: PassedOver) -> list[_Target]:
    """Return the target of a path, or none if `exclude` passes it over."""
    if not argument:
        raise UsageError("An empty argument names no picture.", 'For this folder give ".".')
    is_folder = os.path.isdir(argument)
    if exclude and _is_excluded(argument, exclude, is_folder):
        passed.exclude(argument, is_folder)
        return []
    absolute = _absolute(argument)
    anchor = absolute if is_folder else os.path.dirname(absolute)
    rules = Rules.of_search(exclude, argument) if is_folder else NO_RULES
    return [_Target(argument, argument, anchor, is_folder, rules)]


def _is_excluded(path: str, exclude: Sequence[str], is_folder: bool) -> bool:
    parts = [part for part in os.path.normpath(path).split(os.sep) if part]
    above = (os.path.join(*parts[:n]) for n in range(1, len(parts)))
    rules = Rules.of_named(exclude)
    return any(rules.excludes(folder, True) for folder in above) or (
        bool(parts) and rules.excludes(os.path.join(*parts), is_folder)
    )


def _pattern_to_targets(pattern: str, exclude: Sequence[str], passed: PassedOver) -> list[_Target]:
    """Return the matches that count, and count the others in `passed`.

    Of a pattern that spells a suffix (`*.dat`) every match counts; of any other (`scans/*`) only
    pictures and folders.
    """
    suffix = os.path.splitext(pattern)[1]
    means_all = bool(suffix) and not is_pattern(suffix)
    start = fixed_folder(pattern)
    anchor = _absolute(start)
    below = RulesBelow(start, Rules.of_search(exclude, start))
    targets: list[_Target] = []
    others: list[str] = []
    n_passed = passed.total + passed.excluded_folders
    matches = expand_pattern(pattern)
    for path in matches:
        is_folder = os.path.isdir(path)
        rules = below.above(path)
        if rules is None or rules.excludes(path, is_folder):
            passed.exclude(path, is_folder)
        elif is_folder:
            targets.append(_Target(pattern, path, anchor, True, rules, path == start))
        elif means_all or has_picture_suffix(path):
            targets.append(_Target(pattern, path, anchor))
        else:
            others.append(os.path.basename(path))
    if not targets and passed.total + passed.excluded_folders == n_passed:
        raise UsageError(f"{pattern}: no picture matches.", "Check the pattern and the folder.")
    passed.add_others(others, map(os.path.basename, matches))
    return targets


def _read_list(source: str, null: bool, stdin: IO[bytes] | None) -> list[str]:
    name = "The list on standard input" if source == STDIN else source
    try:
        # a pipe is welcome, and one without an end, or a device, is noticed
        if source == STDIN:
            data = (stdin or sys.stdin.buffer).read(MAX_LIST_BYTES + 1)
        else:
            with open(source, "rb") as file:
                data = file.read(MAX_LIST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{name}: cannot be read: {reason}.", "Check `files_from`.") from error
    if len(data) > MAX_LIST_BYTES:
        raise UsageError(
            f"{name}: holds more than {MAX_LIST_BYTES >> 20} MiB.", "Give a list of paths."
        )
    if data.startswith(_UTF16_MARKS):
        raise UsageError(f"{name}: is in UTF-16.", "Save it as UTF-8.")
    if null:
        return [_to_path(item) for item in data.split(b"\0") if item]
    if b"\0" in data:
        raise UsageError(f"{name}: holds NUL characters.", "Give `null` if they end the paths.")
    lines = (line.removesuffix(b"\r") for line in data.removeprefix(_UTF8_MARK).split(b"\n"))
    return [_to_path(line) for line in lines if line.strip()]


def _absolute(path: str) -> str:
    """Like os.path.abspath, but `link/..` is the parent of the link's target, as for the system."""
    if ".." not in path:
        return os.path.abspath(path)
    parts = Path(path).parts
    fixed = max((n for n, part in enumerate(parts, 1) if part == ".."), default=0)
    return os.path.join(os.path.realpath(Path(*parts[:fixed])), *parts[fixed:])


def _to_path(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _common_folder(anchors: Iterable[str | None]) -> Path | None:
    """Return the folder that all anchors share; None without anchors, `Path()` on two drives."""
    known = {anchor for anchor in anchors if anchor is not None}
    if not known:
        return None
    try:
        return Path(os.path.commonpath(known))
    except ValueError:
        return Path()
