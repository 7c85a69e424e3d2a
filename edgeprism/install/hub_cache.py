"""What the hub's cache on disk holds of a repository: for pulls without a network."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from edgeprism.errors import PullError
from edgeprism.install.hub import Listing, repository_cache, snapshot_path
from edgeprism.install.hub_trust import HubFile

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def cached_listing(repo: str, revision: str, switch: str, cache: Path | None = None) -> Listing:
    """Return what the cache holds of a repository, as if the hub had listed just that.

    Args:
        repo: OWNER/NAME.
        revision: A branch, tag or commit.
        switch: The environment variable that forbids the network, for the error.
        cache: Replaces the cache of HF_HOME.

    Raises:
        PullError: The cache does not know this revision of the repository.
    """
    empty = Listing(repo, "", "", False, {}, cache=cache, offline=True)
    folder = repository_cache(empty)
    commit = revision if _COMMIT.fullmatch(revision) else _read_ref(folder, revision)
    snapshot = folder / "snapshots" / commit
    files = {
        path.relative_to(snapshot).as_posix(): _to_hub_file(path)
        for path in (sorted(snapshot.rglob("*")) if commit else ())
        if path.is_file()
    }
    if not files:
        raise PullError(
            f"{switch} is set, and the hub's cache does not hold {repo} at {revision}.",
            f"Unset {switch} to fetch it. The cache is {folder.parent}.",
        )
    return Listing(repo, commit, "", False, files, cache=cache, offline=True)


def bytes_to_fetch(listing: Listing, names: tuple[str, ...]) -> int:
    """Return how many bytes of the named files the cache does not hold yet."""
    blobs = repository_cache(listing) / "blobs"
    missing = 0
    for name in names:
        file = listing.files[name]
        blob = blobs / (file.sha256 or file.git_id or "-")
        if snapshot_path(listing, name).exists() or blob.exists():
            continue
        arrived = 0
        with contextlib.suppress(OSError):  # no transfer of this file has begun
            arrived = blob.with_name(f"{blob.name}.incomplete").stat().st_size
        missing += max(0, file.size - arrived)
    return missing


def _read_ref(folder: Path, revision: str) -> str:
    """Return the commit of a branch or tag; where none is noted, that of the only snapshot."""
    with contextlib.suppress(OSError, ValueError):
        commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
        return commit if _COMMIT.fullmatch(commit) else ""
    with contextlib.suppress(OSError):
        snapshots = [path.name for path in (folder / "snapshots").iterdir()]
        return snapshots[0] if len(snapshots) == 1 and revision == "main" else ""
    return ""


def _to_hub_file(path: Path) -> HubFile:
    """Describe a cached file; its blob is named by its digest, if the system has links."""
    size, blob = path.stat().st_size, path.resolve().name
    if not path.is_symlink():
        return HubFile(size)
    return HubFile(
        size,
        blob if _SHA256.fullmatch(blob) else "",
        blob if _COMMIT.fullmatch(blob) else "",
    )
