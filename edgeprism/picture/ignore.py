r"""Rules for what a search passes over, as in `.gitignore`: `--exclude` and `.edgeprismignore`.

    *.png            every PNG, at any depth
    /drafts          only the entry of the folder that the rule belongs to
    private/         only folders, with all that they hold
    2019/**/scans    any number of folders between
    !keep.png        not this one after all: the last rule that matches decides

A slash at the beginning or in the middle ties a rule to its folder. A backslash takes a special
meaning away, `#` begins a comment, spaces at a line's end do not count. A folder that is passed
over is not opened, so nothing in it can be taken back. Git's documentation of `gitignore` tells
more, and the tests compare this module with git itself.

docs/architecture.md says why the code is our own.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgeprism.errors import UsageError
from edgeprism.picture.gitglob import pattern_to_regex

IGNORE_FILE = ".edgeprismignore"
_MAX_BYTES = 1 << 20
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class _Rule:
    regex: re.Pattern[str]  # of a whole path below the rule's folder
    takes_back: bool
    folders_only: bool


@dataclass(frozen=True, slots=True)
class _RuleSet:
    prefix: str  # the beginning that paths of a search have in common, up to a separator
    rules: tuple[_Rule, ...]
    lead: str = ""  # from the folder that the rules belong to, if that is above the search's

    def verdict(self, path: str, is_folder: bool) -> bool | None:
        """Return whether the last matching rule passes over the path; None if none matches."""
        below = _composed(self.lead + path[len(self.prefix) :].replace(os.sep, "/"))
        for rule in reversed(self.rules):
            if (is_folder or not rule.folders_only) and rule.regex.fullmatch(below):
                return not rule.takes_back
        return None


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules in force in a folder: the command line's, its own ignore file's, its parents'.

    The first of these that has a matching rule decides.
    """

    given: _RuleSet | None = None
    files: tuple[_RuleSet, ...] = ()  # the innermost first

    @classmethod
    def of_search(cls, exclude: Sequence[str], folder: str) -> Rules:
        """Return the rules for the paths below `folder`, where a search begins.

        They are those of `exclude`, and of the ignore files in all folders above it.

        Raises UsageError for a pattern that can match nothing, or an ignore file that cannot be
        read.
        """
        above = []
        absolute = os.path.abspath(folder)
        parent, lead = absolute, ""
        while parent != os.path.dirname(parent):
            lead = f"{os.path.basename(parent)}/{lead}"
            parent = os.path.dirname(parent)
            rules = _parse_all(_lines_above(parent))
            if rules:
                above.append(_RuleSet(_prefix(folder), rules, lead))
        given = _of_command_line(exclude, folder)
        return cls(_RuleSet(_prefix(folder), given) if given else None, tuple(above))

    @classmethod
    def of_named(cls, exclude: Sequence[str]) -> Rules:
        """Return the rules of `exclude` alone, for paths that are named one by one.

        Raises UsageError for a pattern that can match nothing.
        """
        given = _of_command_line(exclude, "")
        return cls(_RuleSet("", given) if given else None)

    def within(self, folder: str, lines: Iterable[str]) -> Rules:
        """Return these rules together with those of an ignore file in `folder`."""
        rules = _RuleSet(_prefix(folder), _parse_all(lines))
        return Rules(self.given, (rules, *self.files))

    def excludes(self, path: str, is_folder: bool) -> bool:
        """Return whether a path is passed over, if the folders above it are not."""
        for rules in (self.given, *self.files):
            verdict = rules.verdict(path, is_folder) if rules is not None else None
            if verdict is not None:
                return verdict
        return False


NO_RULES = Rules()


def read_ignore_file(folder: str) -> list[str]:
    """Return the lines of a folder's ignore file. Raises OSError if it cannot be read."""
    # a pipe of that name must not keep the search waiting
    file = os.open(os.path.join(folder, IGNORE_FILE), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(f"{IGNORE_FILE} is not a regular file")
        data = opened.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise OSError(f"{IGNORE_FILE} is larger than {_MAX_BYTES >> 20} MiB")
    lines = data.removeprefix(_UTF8_MARK).split(b"\n")
    return [os.fsdecode(line.removesuffix(b"\r")) for line in lines]


def _composed(text: str) -> str:
    """Return the text with composed accents: some disks keep names in the other form."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _prefix(folder: str) -> str:
    return os.path.join(folder, "") if folder else ""


def _lines_above(folder: str) -> list[str]:
    try:
        return read_ignore_file(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        path = os.path.join(folder, IGNORE_FILE)
        raise UsageError(
            f"{path}: cannot be read: {error.strerror or error}.", "Repair it, or move it away."
        ) from error


def _of_command_line(exclude: Sequence[str], folder: str) -> tuple[_Rule, ...]:
    """Return the rules of `exclude`.

    Nothing is a comment here, and a name that is written with brackets may be meant as it is. A
    path that exists as it is written and lies in `folder` means just that.
    """
    rules = []
    for line in exclude:
        path = _path_below(folder, line)
        rule = _parse(line if path is None else path, literal=True)
        if rule is None:
            raise UsageError(
                f"The pattern {line!r} can match nothing.",
                "Write `exclude` as a line of .gitignore, e.g. '*.png' or 'private/'.",
            )
        rules.append(rule)
    return tuple(rules)


def _path_below(folder: str, line: str) -> str | None:
    """Return the pattern "/private" for the existing Photos/private, if the folder is Photos."""
    if not folder or "/" not in line.rstrip("/") or line.startswith("!"):
        return None
    path, top = os.path.abspath(line), os.path.join(os.path.abspath(folder), "")
    if not path.startswith(top) or not os.path.lexists(path):
        return None
    return "/" + re.sub(r"([*?\[\\])", r"\\\1", path[len(top) :].replace(os.sep, "/"))


def _parse_all(lines: Iterable[str]) -> tuple[_Rule, ...]:
    return tuple(rule for line in lines if (rule := _parse(line)) is not None)


def _parse(line: str, *, literal: bool = False) -> _Rule | None:
    """Return the rule of a line; None for a blank line, a comment, or one that matches nothing.

    A `literal` line is no comment, and also matches the very name that it spells.
    """
    if line.startswith("#") and not literal:
        return None
    line = re.sub(r"(?<!\\) +$", "", _composed(line))
    takes_back = line.startswith("!")
    pattern = line[takes_back:]
    folders_only = pattern.endswith("/")
    pattern = pattern.removesuffix("/")
    anchored = "/" in pattern
    pattern = pattern.removeprefix("/")
    if not pattern:
        return None
    regex = pattern_to_regex(pattern)
    if literal:
        regex = "|".join(each for each in (regex, re.escape(pattern)) if each is not None)
    if regex is None:
        return None
    start = "" if anchored else "(?:.*/)?"
    return _Rule(re.compile(f"{start}(?:{regex})", re.DOTALL), takes_back, folders_only)
