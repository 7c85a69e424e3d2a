"""Where the model hub's cache lies, which huggingface_hub and other programs share."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of the hub's cache, as huggingface_hub reads it from the environment."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(os.path.expanduser(named or os.path.join(home, "hub"))))


def repository_folder(repo: str, cache: Path | None = None) -> Path:
    """Return a repository's folder in the hub's cache; `cache` replaces the environment's."""
    return (cache or cache_folder()) / f"models--{repo.replace('/', '--')}"
