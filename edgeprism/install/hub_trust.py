"""Checks of what a model hub says, before any of it becomes the name of a file or fills the disk.

huggingface_hub takes a file's ETag and commit from the hub's answer and joins them to the paths of
its cache unchecked (`_hf_hub_download_to_cache_dir` of its file_download.py). A hub or mirror
that lies could so have files outside the cache written or deleted.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from types import ModuleType
from typing import Any

from edgeprism.errors import PullError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"[0-9A-Fa-f]{8,128}")
_LARGEST = 1 << 50  # bytes, more than any disk holds
_LONGEST_NAME, _LONGEST_PART = 1000, 200  # bytes; file systems take 255 for one part
_LIES = "Nothing was taken over. Check HF_ENDPOINT: what answers there is no sound model hub."
_installing = threading.Lock()
_current = threading.local()  # `expected` is set while this thread fetches a file


@dataclass(frozen=True)
class HubFile:
    """What the hub's records say of one file: of large ones the sha256, of small ones git's id."""

    size: int
    sha256: str = ""
    git_id: str = ""


@dataclass(frozen=True)
class _Expected:
    what: str  # the repository and the file, for errors
    commit: str
    size: int


def checked_commit(repo: str, commit: object) -> str:
    """Return the commit of a listing; PullError if it is not 40 hexadecimal digits."""
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise PullError(f"{repo}: the hub names no commit, but {_shown(commit)}.", _LIES)
    return commit


def checked_files(repo: str, siblings: list[Any]) -> dict[str, HubFile]:
    """Return the files of a listing by name.

    Raises PullError for names that lead out of a folder or that no file can have, for digests of
    another form, and for sizes that are none.
    """
    return {_checked_name(repo, s.rfilename): _checked_file(repo, s) for s in siblings}


def _checked_name(repo: str, name: object) -> str:
    sound = False
    if isinstance(name, str) and name.isprintable() and "\\" not in name:
        parts = name.split("/")
        sound = (
            not any(part in ("", ".", "..") or len(part.encode()) > _LONGEST_PART for part in parts)
            and len(name.encode()) <= _LONGEST_NAME
            and not PureWindowsPath(name).drive
        )
    if not sound:
        raise PullError(f"{repo}: the hub lists a file with the name {_shown(name)}.", _LIES)
    return str(name)


def _checked_file(repo: str, sibling: Any) -> HubFile:
    size = 0 if sibling.size is None else sibling.size
    sha256 = "" if sibling.lfs is None else sibling.lfs.sha256
    git_id = sibling.blob_id or ""
    what = f"{repo}: of {_shown(sibling.rfilename)} the hub says"
    if type(size) is not int or not 0 <= size <= _LARGEST:
        raise PullError(f"{what} that its size is {_shown(size)}.", _LIES)
    for digest, form in ((sha256, _SHA256), (git_id, _COMMIT)):
        if digest != "" and not (isinstance(digest, str) and form.fullmatch(digest)):
            raise PullError(f"{what} that its digest is {_shown(digest)}.", _LIES)
    return HubFile(size, sha256, git_id)


def require_inside(repo: str, repository: Path, path: Path) -> None:
    """Raise PullError if a path of the cache, links followed, is not in its repository's folder."""
    if not path.resolve().is_relative_to(repository.resolve()):
        raise PullError(
            f"{repo}: {path} leads to {path.resolve()}, out of the repository's folder.",
            "Delete that link from the hub's cache, then pull again.",
        )


@contextlib.contextmanager
def checked_transfer(hub: ModuleType, what: str, commit: str, size: int) -> Iterator[None]:
    """Have huggingface_hub refuse what does not fit while this thread fetches a file with it.

    Args:
        hub: The library.
        what: The repository and the file, for errors.
        commit: The commit that the file is fetched at.
        size: Its size in bytes as listed; more is neither announced nor written.

    Raises:
        PullError: From inside the library; or it is one that cannot be checked.
    """
    _install_checks(hub)
    _current.expected = _Expected(what, commit, size)
    try:
        yield
    finally:
        _current.expected = None


def _install_checks(hub: Any) -> None:
    """Wrap the two functions through which the library takes what a hub says, once.

    In threads that fetch nothing for EdgePrism they stay as they are.
    """
    with _installing:
        for name, check in (("get_hf_file_metadata", _metadata), ("http_get", _get)):
            function = getattr(hub.file_download, name, None)
            if function is None:
                raise PullError(
                    f"This huggingface_hub ({hub.__version__}) is not known: it has no {name}, so "
                    "what a hub says cannot be checked.",
                    "Install one that is: pip install 'huggingface_hub==0.36.*'",
                )
            if getattr(function, "func", None) is not check:
                setattr(hub.file_download, name, functools.partial(check, function))


def _metadata(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return what the hub's headers say of a file, if all that becomes part of a path is sound."""
    expected: _Expected | None = getattr(_current, "expected", None)
    if expected is None:
        return original(*args, **options)
    try:
        metadata = original(*args, **options)
    except Exception as error:  # the library notes under that commit which files there are not
        headers = getattr(getattr(error, "response", None), "headers", None) or {}
        _require_commit(expected, headers.get("X-Repo-Commit"))
        raise
    _require_commit(expected, metadata.commit_hash)
    etag, size = metadata.etag, metadata.size
    if etag is not None and not _ETAG.fullmatch(etag):
        raise PullError(f"{expected.what}: the hub's ETag is no digest, but {_shown(etag)}.", _LIES)
    if size is not None and size > expected.size:
        raise _too_large(expected, f"announces {size}")
    return metadata


def _require_commit(expected: _Expected, commit: str | None) -> None:
    if commit is not None and commit != expected.commit:
        raise PullError(
            f"{expected.what}: the hub answers for another commit than {expected.commit[:12]}: "
            f"{_shown(commit)}.",
            _LIES,
        )


def _get(original: Callable[..., Any], url: str, temp_file: Any, *args: Any, **options: Any) -> Any:
    """Download to a file, into which no more bytes go than the listing says."""
    expected: _Expected | None = getattr(_current, "expected", None)
    if expected is not None and not isinstance(temp_file, _BoundedFile):
        temp_file = _BoundedFile(temp_file, expected)
    return original(url, temp_file, *args, **options)


class _BoundedFile:
    """A file that ends the transfer instead of growing beyond the listed size."""

    def __init__(self, file: Any, expected: _Expected) -> None:
        self._file = file
        self._expected = expected

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > self._expected.size:
            self._file.truncate(0)  # none of it is worth going on with
            raise _too_large(self._expected, "sends more")
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _too_large(expected: _Expected, does: str) -> PullError:
    return PullError(f"{expected.what}: listed with {expected.size} bytes, the hub {does}.", _LIES)


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
