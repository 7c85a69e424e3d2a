"""What a run over many pictures says in words: before it starts, and when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgeprism.cli.terminal import say as say_on_stderr
from edgeprism.files.safe_text import counted
from edgeprism.folder.causes import failures_by_cause
from edgeprism.picture.kinds import heic_cure
from edgeprism.picture.passed import PassedOver

if TYPE_CHECKING:
    from edgeprism.folder.estimate import FolderEstimate
    from edgeprism.folder.run import FolderResult
    from edgeprism.picture.find import Unreadable

Say = Callable[[str], None]
_MOST_CAUSES = 12


def tell_what_is_passed_over(passed: PassedOver, say: Say = say_on_stderr) -> None:
    """Print a line for each kind of file that would be captioned in another form."""
    for kind, number, words in passed.by_kind():
        if kind.cure:
            suffixes = ", ".join(
                f"{word} {count:,}" if len(words) > 1 else word for word, count in words.items()
            )
            say(f"passed over: {kind.count(number)} ({suffixes}); {kind.cure}")


def tell_what_lacks_a_plugin(number: int, say: Say = say_on_stderr) -> None:
    """Print a line about HEIC pictures, if the plug-in that reads them is missing."""
    if number:
        need = "it needs" if number == 1 else "they need"
        pictures = counted(number, "HEIC picture")
        say(f"{pictures} cannot be read: {need} a plug-in. {heic_cure()}")


def tell_estimate(estimate: FolderEstimate, say: Say) -> None:
    """Print the work of a run and its time."""
    unreadable = f", {estimate.unreadable:,} cannot be read" if estimate.unreadable else ""
    say(
        f"{counted(estimate.total, 'picture')}, {estimate.known:,} captioned already{unreadable}, "
        f"{estimate.left:,} to caption"
    )
    if not estimate.left:
        return
    if estimate.rate is None or estimate.seconds is None:
        say("no estimate: none of the pictures tried could be read")
        return
    per_picture = estimate.rate.seconds_per_picture
    rate = f"{1 / per_picture:.1f} pictures a second"
    if per_picture > 1:
        rate = f"{per_picture:.1f} s a picture"
    if estimate.measured:
        tried = counted(estimate.rate.captions, "picture")
        basis = f"measured on {tried}, whose captions are not kept"
    else:
        basis = "as in an earlier run"
    say(f"about {duration(estimate.seconds)} at {rate}, {basis}")


def tell_result(result: FolderResult, say: Say = say_on_stderr) -> None:
    """Print the counts of a run: they add up to the pictures and, with the rest, to the files."""
    elapsed = max(result.seconds, 1e-3)
    left = f", {result.total - result.done:,} left" if result.total > result.done else ""
    passed_over = f"{result.passed_over:,} left alone, " if result.passed_over else ""
    say(
        f"{counted(result.total, 'picture')}: {result.captioned:,} captioned, "
        f"{result.known:,} known already, {passed_over}{len(result.failures):,} failed{left}; "
        f"{duration(elapsed)}, {result.done / elapsed:.1f}/s"
    )
    if result.duplicates:
        same = "has" if result.duplicates == 1 else "have"
        say(f"{result.duplicates:,} of the known {same} the content of another picture above")
    _tell_sidecars(result, say)
    _tell_causes(result, say)
    tell_other_files(result.total, result.passed, result.repeated, result.unreadable, say)


def _tell_sidecars(result: FolderResult, say: Say) -> None:
    """Print why sidecars were not written, and which one was if a picture has two."""
    if result.left_alone:
        one = result.left_alone == 1
        have = "has a description of its" if one else "have a description of their"
        say(f"{result.left_alone:,} {have} own, left alone")
    if result.unrecognized:
        say(f"{result.unrecognized:,} not recognised, nothing written")
    if result.twins:
        used, other = result.twins[0]
        pictures = counted(len(result.twins), "picture")
        have = "has" if len(result.twins) == 1 else "have"
        say(f"{pictures} {have} two sidecars; e.g. {used} was used, not {other.name}")


def tell_other_files(
    n_pictures: int,
    passed: PassedOver,
    repeated: int,
    unreadable: Sequence[Unreadable],
    say: Say,
) -> None:
    """Print what else was found, by kind, and what could not be listed."""
    if passed.total or passed.excluded_folders:
        files = counted(n_pictures + passed.total, "file")
        say(f"{files} in all, {passed.total:,} passed over: {passed.describe()}")
    if repeated:
        say(f"{counted(repeated, 'picture')} named more than once")
    for folder in unreadable:
        say(f"{folder.path}: cannot be listed: {folder.reason}")


def _tell_causes(result: FolderResult, say: Say) -> None:
    """Print failures by cause, where one cause has several; each was printed once already."""
    causes = failures_by_cause(result.failures)
    if len(causes) == len(result.failures):
        return
    for cause in causes[:_MOST_CAUSES]:
        names = ", ".join(map(str, cause.first))
        more = cause.count - len(cause.first)
        names += f" and {more:,} more" if more else ""
        say(f"  {cause.count:,} failed: {cause.reason}: {names}")
    rest = causes[_MOST_CAUSES:]
    if rest:
        failures = sum(cause.count for cause in rest)
        say(f"  {failures:,} failed for {counted(len(rest), 'more reason')}; --errors lists all")


def duration(seconds: float) -> str:
    """Return "48 s", "12 min" or "3.5 h"; below ten seconds with a decimal."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
