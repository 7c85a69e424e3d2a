"""How the gate's references read published files; shares no code with the converter's reader."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch


class RawTensors:
    """The tensors of weight files by name, each read on access.

    Nested tables of tensors (`{"model": {"projector": {…}}}`, as training scripts write them)
    are flattened; dots join their keys.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        from safetensors import safe_open

        self._sources: dict[str, Any] = {}
        for path in files:
            if path.suffix == ".safetensors":
                opened = safe_open(str(path), framework="pt")
                self._sources |= dict.fromkeys(opened.keys(), opened.get_tensor)
            else:
                zipped = zipfile.is_zipfile(path)  # files of torch's older format cannot be mapped
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
                flat = dict(_flattened(loaded, ""))
                self._sources |= dict.fromkeys(flat, flat.__getitem__)

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._sources[name](name)
        return tensor

    def names(self) -> Iterable[str]:
        """Return the names of all tensors in the files."""
        return self._sources.keys()

    def lead_of(self, ending: str) -> str:
        """Return the prefix before `ending` of the only tensor name that ends with it."""
        (name,) = (name for name in self._sources if name.endswith(ending))
        return name.removesuffix(ending)


def _flattened(table: dict[str, Any], lead: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in table.items():
        if torch.is_tensor(value):
            yield lead + name, value
        elif isinstance(value, dict):
            yield from _flattened(value, f"{lead}{name}.")


def processor_settings(folder: Path) -> dict[str, Any]:
    """Return an image processor's settings, from whichever file holds them; {} if none does."""
    merged: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        merged |= content.get("image_processor", {}) if name.startswith("processor") else content
    return merged


def weight_files(folder: Path) -> list[Path]:
    """Return a folder's safetensors files, or its .bin files if it has none."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
