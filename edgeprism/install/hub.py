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
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edgeprism.errors import PullError, UsageError
from edgeprism.install.extras import install_extra
from edgeprism.models.catalogue import Repository
from edgeprism.progress import Progress

_CHUNK = 1 << 20
_WATCH_EVERY_S = 0.25
_PAUSES_S = (0.5, 1, 2, 4, 8)  # before each new try of a broken transfer
_AGAIN = "Run the same command again: it continues where this one stopped."
_NETWORK = f"Check the network, the proxy and HF_ENDPOINT. {_AGAIN}"


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


def needed_files(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the matching names, without pickled weights in folders that have safetensors."""
    matching = [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    safe = {PurePosixPath(n).parent for n in matching if n.endswith(".safetensors")}
    return [
        name
        for name in sorted(matching)
        if not (name.endswith((".bin", ".bin.index.json")) and PurePosixPath(name).parent in safe)
    ]


def fetch_repository(
    source: Repository,
    progress: Progress,
    *,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Fetched:
    """Fetch the needed files of one repository and check each one's digest.

    `endpoint` and `cache` replace HF_ENDPOINT and the cache of HF_HOME. Raises PullError, which
    names the repository and, if the fault concerns one file, that file.
    """
    hub = _import_hub()
    progress.stage(f"Asking for {source.repo}")
    with _explained(hub, source.repo, source.revision):
        info = hub.HfApi(endpoint=endpoint).model_info(
            source.repo, revision=source.revision, files_metadata=True
        )
    announced = {sibling.rfilename: sibling for sibling in info.siblings or []}
    names = needed_files(list(announced), source.files)
    absent = [name for name in source.sha256 if name not in names]
    if absent or not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise PullError(
            f"{source.repo} at {source.revision} does not hold "
            f"{', '.join(absent) or 'any weights'}.",
            f"Its layout has changed; known good: {', '.join(source.files)}.",
        )
    folder = Path()
    files = []
    for name in names:
        path = _fetch_file(hub, source.repo, info.sha, announced[name], progress, endpoint, cache)
        files.append(_checked(source, path, announced[name], progress))
        folder = Path(str(path).removesuffix(str(Path(name))))
    return Fetched(source.role, source.repo, str(info.sha), folder, tuple(files))


def _import_hub() -> Any:
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when the library loads
    try:
        import huggingface_hub.errors
        import huggingface_hub.file_download
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise UsageError(
            f"Fetching published checkpoints needs huggingface_hub, which is missing: {error}.",
            install_extra("convert"),
        ) from error
    disable_progress_bars()  # EdgePrism shows its own
    return huggingface_hub


def _fetch_file(
    hub: Any,
    repo: str,
    commit: str,
    sibling: Any,
    progress: Progress,
    endpoint: str | None,
    cache: Path | None,
) -> Path:
    name = sibling.rfilename
    progress.stage(f"Fetching {repo}: {name}", sibling.size or 0)
    store = Path(cache or hub.constants.HF_HUB_CACHE) / hub.file_download.repo_folder_name(
        repo_id=repo, repo_type="model"
    )
    with _explained(hub, repo, commit, name), _watching(store / "blobs", progress):
        for pause_s in (*_PAUSES_S, None):
            try:
                path = hub.hf_hub_download(
                    repo, name, revision=commit, endpoint=endpoint, cache_dir=cache
                )
                break
            except (OSError, RuntimeError, hub.errors.XetError) as error:
                # Only a broken transfer is tried again. A full disk has an errno, and an HTTP
                # error is the hub's final answer.
                refused = isinstance(error, hub.errors.HfHubHTTPError)
                final = refused or getattr(error, "errno", None) is not None
                if pause_s is None or final:
                    raise
                progress.say(f"{repo}: {name}: the transfer broke off; trying again.")
                time.sleep(pause_s)
    return Path(path)


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


def _checked(source: Repository, path: Path, sibling: Any, progress: Progress) -> FetchedFile:
    """Hash a fetched file; if its digest is not the hub's, remove it from the cache."""
    size = path.stat().st_size
    progress.stage(f"Checking {source.repo}: {sibling.rfilename}", size)
    sha256, git_blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            git_blob.update(chunk)
            progress.advance(len(chunk))
    # The hub announces the sha256 of large files, and git's blob id of small ones.
    if sibling.lfs is not None:
        announced, actual = sibling.lfs.sha256, sha256.hexdigest()
    else:
        announced, actual = sibling.blob_id, git_blob.hexdigest()
    recorded = source.sha256.get(sibling.rfilename)
    if announced and announced != actual:
        path.resolve().unlink()  # the blob, which every later try would use otherwise
        path.unlink(missing_ok=True)
        raise PullError(
            f"{source.repo}: {sibling.rfilename} arrived damaged (digest {actual[:12]}…, the hub "
            f"announced {announced[:12]}…).",
            "It was removed; run the same command again.",
        )
    if recorded and recorded != sha256.hexdigest():
        raise PullError(
            f"{source.repo}: {sibling.rfilename} is not the recorded file (sha256 "
            f"{sha256.hexdigest()[:12]}…, expected {recorded[:12]}…).",
            "The repository was changed since, or HF_ENDPOINT serves something else.",
        )
    return FetchedFile(sibling.rfilename, sha256.hexdigest(), size)


@contextlib.contextmanager
def _explained(hub: Any, repo: str, revision: str, file: str = "") -> Iterator[None]:
    """Turn every error of the hub's client into a PullError."""
    what = f"{repo}: {file}" if file else repo
    errors = hub.errors
    try:
        yield
    except errors.GatedRepoError as error:
        raise PullError(
            f"{what}: access to the repository must be granted.",
            "Accept its terms on the model page, then set HF_TOKEN.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise PullError(
            f"{what}: the hub has no such repository, or it is private.",
            "Check HF_ENDPOINT; for a private repository set HF_TOKEN.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise PullError(f"{what}: the repository has no revision {revision}.") from error
    except errors.LocalEntryNotFoundError as error:
        raise PullError(f"{what}: the hub cannot be reached.", _NETWORK) from error
    except errors.EntryNotFoundError as error:
        raise PullError(
            f"{what}: the repository has no such file at {revision} (404).",
            "Its layout may have changed: please report it to the EdgePrism project.",
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "?")
        raise PullError(f"{what}: the hub answered with HTTP {status}.", _AGAIN) from error
    except Exception as error:  # the client's transports raise their own kinds of errors
        first = (str(error).splitlines() or [type(error).__name__])[0]
        unreachable = re.search(r"(Failed to |timed out|Connection refused)[^\"()]*", first)
        if getattr(error, "errno", None) is not None:
            raise PullError(f"{what}: {first}.", "Check the disk and HF_HOME.") from error
        reason = unreachable[0].replace("\\", "").strip() if unreachable else ""
        message = f"the hub cannot be reached ({reason})" if reason else first
        raise PullError(f"{what}: {message}.", _NETWORK) from error
