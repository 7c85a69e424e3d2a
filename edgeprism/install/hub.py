"""Fetches the needed files of a model hub's repositories. Only this module uses huggingface_hub.

Files go to that library's cache. So HF_HOME, HF_TOKEN and HF_ENDPOINT have their usual meaning,
files that another program fetched are used, and an interrupted transfer continues where it
stopped.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from edgeprism.errors import OutputError, PullError, UsageError
from edgeprism.files.atomic import write_atomically
from edgeprism.install.cache_folder import cache_folder, repository_folder
from edgeprism.install.extras import install_extra
from edgeprism.install.hub_bounds import ask_within, bounded_refusals
from edgeprism.install.hub_errors import asked_to_wait, explained, is_final
from edgeprism.install.hub_trust import (
    HubFile,
    checked_commit,
    checked_files,
    checked_transfer,
    require_inside,
)
from edgeprism.models.catalogue import Repository
from edgeprism.progress import Progress

_CHUNK = 1 << 20
_MAIN_HUB = "https://huggingface.co"
_WATCH_EVERY_S = 0.25
_BRANCHES_S = 10.0  # the names of branches only complete an error's hint
_PAUSES_S = (0.5, 1, 2, 4, 8)  # before each new try of a broken transfer
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class FetchedFile:
    """One fetched file."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Fetched:
    """One repository on disk, at one revision."""

    role: str
    repo: str
    revision: str  # the commit to which the hub resolved the catalogue's revision
    folder: Path
    files: tuple[FetchedFile, ...]


@dataclass(frozen=True)
class Listing:
    """A repository at one commit, as the hub or its cache on disk describes it."""

    repo: str
    revision: str  # the commit
    license: str  # as the model card, or the catalogue, says; "" if neither does
    gated: bool
    files: Mapping[str, HubFile]
    endpoint: str | None = None  # replaces HF_ENDPOINT
    cache: Path | None = None  # replaces the cache of HF_HOME
    branch: str = ""  # or tag, which the hub resolved to `revision`; "" for a commit
    renamed: str = ""  # the repository's present name, if it is another
    offline: bool = False  # the cache alone is used

    @property
    def sizes(self) -> dict[str, int]:
        """Each file's size in bytes."""
        return {name: file.size for name, file in self.files.items()}


def needed_files(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the matching names, without pickled weights in folders that have safetensors."""
    matching = [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    safe = {PurePosixPath(n).parent for n in matching if n.endswith(".safetensors")}
    return [
        name
        for name in sorted(matching)
        if not (name.endswith((".bin", ".bin.index.json")) and PurePosixPath(name).parent in safe)
    ]


def list_needed(
    source: Repository,
    progress: Progress,
    *,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> tuple[Listing, list[str]]:
    """Ask the hub for a repository of checkpoints; return it and the names of its needed files.

    `endpoint` and `cache` replace HF_ENDPOINT and the cache of HF_HOME. Raises PullError as
    `list_repository`, and where the repository does not hold what the catalogue names.
    """
    listing = list_repository(
        source.repo, source.revision, progress, extra="convert", endpoint=endpoint, cache=cache
    )
    names = needed_files(list(listing.files), source.files)
    absent = [name for name in source.sha256 if name not in names]
    if absent or not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise PullError(
            f"{source.repo} at {source.revision} does not hold "
            f"{', '.join(absent) or 'any weights'}.",
            f"Its layout has changed; known good: {', '.join(source.files)}.",
        )
    return listing, names


def list_repository(
    repo: str,
    revision: str,
    progress: Progress,
    *,
    extra: str,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Listing:
    """Ask the hub for a repository's files and licence; nothing of them is fetched.

    Args:
        repo: OWNER/NAME.
        revision: A branch, tag or commit.
        progress: Is told what is asked for.
        extra: The extra of EdgePrism that brings huggingface_hub, for the error without it.
        endpoint: Replaces HF_ENDPOINT.
        cache: Replaces the cache of HF_HOME.

    Raises:
        PullError: The hub refuses, knows no such repository, or cannot be reached.
        UsageError: huggingface_hub is not installed.
    """
    hub = import_hub(extra)
    endpoint = endpoint or os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    progress.stage(f"Asking for {repo}")
    api = hub.HfApi(endpoint=endpoint)
    with explained(hub, repo, revision, branches=lambda: _branches(hub, api, repo)):
        info = _patiently(
            hub,
            lambda: ask_within(
                hub, repo, lambda: api.model_info(repo, revision=revision, files_metadata=True)
            ),
            repo, progress, _PAUSES_S[:2],
        )  # fmt: skip
        commit = checked_commit(repo, info.sha)
        files = checked_files(repo, info.siblings or [])
        return Listing(
            repo, commit, _license(info), bool(getattr(info, "gated", False)), files,
            endpoint, cache, branch=revision if revision != commit else "",
            renamed=info.id if info.id.lower() != repo.lower() else "",
        )  # fmt: skip


def _branches(hub: Any, api: Any, repo: str) -> list[str]:
    refs = ask_within(hub, repo, lambda: api.list_repo_refs(repo), _BRANCHES_S)
    return [ref.name for ref in refs.branches]


def _license(info: Any) -> str:
    card = getattr(info, "card_data", None)
    name = str(getattr(card, "license", None) or "")
    if name == "other":
        name = str(getattr(card, "license_name", None) or name)
    tags = [str(tag) for tag in getattr(info, "tags", None) or []]
    tagged = [tag.removeprefix("license:") for tag in tags if tag.startswith("license:")]
    return (name or ", ".join(tagged))[:200]


def fetch_files(
    listing: Listing,
    names: Sequence[str],
    progress: Progress,
    *,
    role: str = "",
    recorded: Mapping[str, str] | None = None,
    extra: str = "convert",
) -> Fetched:
    """Fetch files of a listed repository into the hub's cache, and check each one's digest.

    What is in the cache already is used; where it is damaged it is fetched again. A listing that
    was made offline is only checked. `recorded` has further sha256 digests by name. Raises
    PullError, which names the repository and the file.
    """
    hub = None if listing.offline else import_hub(extra)
    folder = Path()
    files = []
    for name in names:
        path, file = _fetch_sound(hub, listing, name, progress)
        expected = (recorded or {}).get(name)
        if expected and expected != file.sha256:
            raise PullError(
                f"{listing.repo}: {name} is not the recorded file (sha256 "
                f"{file.sha256[:12]}…, expected {expected[:12]}…).",
                "The repository was changed since, or HF_ENDPOINT serves something else.",
            )
        files.append(file)
        folder = Path(str(path).removesuffix(str(Path(name))))
    _note_branch(listing)
    return Fetched(role, listing.repo, listing.revision, folder, tuple(files))


def _note_branch(listing: Listing) -> None:
    """Note in the cache which commit a branch is at, as the library does for a whole download.

    Then offline pulls, and other programs that ask for the branch, find the files.
    """
    if listing.offline or not listing.branch:
        return
    ref = repository_cache(listing) / "refs" / listing.branch
    # the files are there all the same
    with contextlib.suppress(OSError, OutputError, PullError):
        require_inside(listing.repo, repository_cache(listing) / "refs", ref)
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(ref, listing.revision.encode(), durable=False)


def _fetch_sound(
    hub: Any, listing: Listing, name: str, progress: Progress
) -> tuple[Path, FetchedFile]:
    """Return a file's path in the cache and its digest; fetch it if needed, at most twice."""
    for last in (False, True):
        was_there = snapshot_path(listing, name).exists()
        path = (
            snapshot_path(listing, name)
            if listing.offline
            else _fetch_file(hub, listing, name, progress)
        )
        require_inside(listing.repo, repository_cache(listing), path)
        file, fault = _check(listing, path, name, progress)
        if not fault:
            return path, file
        if listing.offline:
            raise PullError(
                f"{listing.repo}: {name} is damaged in the hub's cache ({fault}).",
                "Pull it again with the network.",
            )
        path.resolve().unlink()  # the blob, which every later try would use otherwise
        path.unlink(missing_ok=True)
        if last or not was_there:
            break
        progress.say(f"{listing.repo}: {name} was damaged in the cache; fetching it again.")
    raise PullError(
        f"{listing.repo}: {name} arrived damaged ({fault}).",
        "It was removed; run the same command again.",
    )


def snapshot_path(listing: Listing, name: str) -> Path:
    """Return where the cache has a file of a listed repository, if it has it."""
    return repository_cache(listing) / "snapshots" / listing.revision / name


def repository_cache(listing: Listing) -> Path:
    """Return the repository's folder in the hub's cache."""
    return repository_folder(listing.repo, listing.cache)


def import_hub(extra: str) -> Any:
    """Import huggingface_hub without its telemetry; UsageError names `extra` if it is missing.

    A mirror answers for every byte: large files then come from it by HTTP, not from the main
    hub's storage service, which HF_ENDPOINT does not move.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when the library loads
    try:
        import huggingface_hub.errors
        import huggingface_hub.file_download
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise UsageError(
            f"Fetching from a model hub needs huggingface_hub, which is missing: {error}.",
            install_extra(extra),
        ) from error
    disable_progress_bars()  # EdgePrism shows its own
    if os.environ.get("HF_ENDPOINT", "").rstrip("/") not in ("", _MAIN_HUB):
        huggingface_hub.constants.HF_HUB_DISABLE_XET = True
    return huggingface_hub


def _fetch_file(hub: Any, listing: Listing, name: str, progress: Progress) -> Path:
    blobs = repository_cache(listing) / "blobs"
    what, size = f"{listing.repo}: {name}", listing.files[name].size
    progress.stage(f"Fetching {what}", size)
    with (
        explained(hub, listing.repo, listing.revision, name),
        _watching(blobs, progress),
        checked_transfer(hub, what, listing.revision, size),
        bounded_refusals(hub, what),
    ):
        path = _patiently(
            hub,
            lambda: hub.hf_hub_download(
                listing.repo, name, revision=listing.revision, endpoint=listing.endpoint,
                cache_dir=listing.cache or cache_folder(),
            ),
            what, progress, _PAUSES_S,
        )  # fmt: skip
    return Path(path)


def _patiently(
    hub: Any,
    request: Callable[[], _Result],
    what: str,
    progress: Progress,
    pauses: Sequence[float],
) -> _Result:
    """Return the answer to a request; try again after broken transfers, and when asked to wait.

    A full disk, and a refusal that waiting does not change, are final.
    """
    for pause_s in pauses:
        try:
            return request()
        except (OSError, RuntimeError, getattr(hub.errors, "XetError", OSError)) as error:
            wait_s = asked_to_wait(error)
            if is_final(hub, error):
                raise
            broken = "the transfer broke off; trying again."
            text = broken if wait_s is None else f"the hub asks to wait {wait_s:.0f} s."
            progress.say(f"{what}: {text}")
            time.sleep(max(pause_s, wait_s or 0))
    return request()


@contextlib.contextmanager
def _watching(blobs: Path, progress: Progress) -> Iterator[None]:
    """Report the growth of the file in transfer, for which the library has no callback."""
    stop = threading.Event()

    def watch() -> None:
        reported = 0
        while not stop.wait(_WATCH_EVERY_S):
            sizes = []
            for path in blobs.glob("*.incomplete"):
                with contextlib.suppress(OSError):  # the file may just have been renamed
                    sizes.append(path.stat().st_size)
            if sizes and max(sizes) > reported:
                progress.advance(max(sizes) - reported)
                reported = max(sizes)

    thread = threading.Thread(target=watch, name="download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _check(listing: Listing, path: Path, name: str, progress: Progress) -> tuple[FetchedFile, str]:
    """Hash a file of the cache; return its digest, and in what it differs from the hub's record."""
    size = path.stat().st_size
    progress.stage(f"Checking {listing.repo}: {name}", size)
    sha256, git_id = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            git_id.update(chunk)
            progress.advance(len(chunk))
    expected = listing.files[name]
    announced, actual = expected.sha256, sha256.hexdigest()
    if not announced:
        announced, actual = expected.git_id, git_id.hexdigest()
    fault = ""
    if announced and announced != actual:
        fault = f"digest {actual[:12]}…, the hub announced {announced[:12]}…"
    elif size != expected.size:
        fault = f"{size} bytes, the hub announced {expected.size}"
    return FetchedFile(name, sha256.hexdigest(), size), fault
