"""Published checkpoints that `pull` fetches to convert them: what they take, and their fetching."""

from __future__ import annotations

import os
from pathlib import Path

from edgeprism.files.size_text import size_text
from edgeprism.install.cache_folder import cache_folder
from edgeprism.install.hub import Fetched, fetch_files, list_needed
from edgeprism.install.hub_cache import bytes_to_fetch
from edgeprism.install.work_folder import require_space
from edgeprism.memory.plan import machine_memory
from edgeprism.models.catalogue import HubCaptioner
from edgeprism.progress import Progress


def needs(entry: HubCaptioner) -> list[str]:
    """Return lines on what fetching, converting and running a captioner takes."""
    return [
        f"  to fetch: about {entry.download_gb:g} GB, converted to {entry.disk_gb:g} GB; to run it "
        f"takes about {entry.memory_gb:g} GB of memory",
        f"  to convert it takes the extra `convert` with PyTorch, about "
        f"{entry.convert_memory_gb:g} GB of memory, and free disk for as much again as is fetched",
    ]


def fetch_checkpoints(
    name: str, entry: HubCaptioner, models: Path, progress: Progress
) -> tuple[Fetched, ...]:
    """Fetch the files of all repositories, once there is room for them and for the conversion.

    Parameters:
        name: the model's name, for what is said of it.
        entry: its repositories.
        models: the folder in which the conversion works; it exists.
        progress: is told what is fetched, and of a lack of memory.

    Raises PullError as `hub.list_needed` and `hub.fetch_files`, and where a disk is too full.
    """
    listed = [list_needed(repository, progress) for repository in entry.repositories]
    whole = sum(listing.sizes[file] for listing, names in listed for file in names)
    missing = sum(bytes_to_fetch(listing, tuple(names)) for listing, names in listed)
    cache = cache_folder()
    while not cache.is_dir():  # the disk of a folder that the first pull makes
        cache = cache.parent
    both = os.stat(cache).st_dev == os.stat(models).st_dev
    require_space(cache, missing, "HF_HOME")
    # a graph in float32 and a language model before its quantization stand there for a while
    require_space(models, whole + (missing if both else 0))
    if shortage := machine_memory(None).lacks(int(entry.convert_memory_gb * 1e9)):
        progress.say(f"The conversion of {name} may fail: about {shortage}.")
    progress.say(f"  {size_text(missing) if missing else 'nothing'} to fetch")
    return tuple(
        fetch_files(listing, names, progress, role=source.role, recorded=source.sha256)
        for source, (listing, names) in zip(entry.repositories, listed, strict=True)
    )
