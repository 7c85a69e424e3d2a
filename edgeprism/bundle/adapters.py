"""Adapters as a reasoner's name names them: MODEL+ADAPTER.gguf, MODEL+none, or the model alone.

A reasoner of the catalogue can have an adapter that ships with the package. By the reasoner's name
alone it is used; "NAME+none" leaves it out, and so does the path of the model's file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edgeprism.bundle.open import expand_home, find_model, is_path
from edgeprism.bundle.places import catalogued_adapter, find_catalogued
from edgeprism.errors import ModelError
from edgeprism.files.digests import file_digest

MARK = "+"
NO_ADAPTER = "none"
_REINSTALL = (
    "It came with EdgePrism: install EdgePrism again, or add +none to the reasoner's name to leave "
    "the adapter out."
)


@dataclass(frozen=True)
class AdapterFile:
    """A file that is used as an adapter.

    Parameters:
        name: what records call it.
        sha256: its digest, as the catalogue records it; "" for a file that a person names.
    """

    path: Path
    name: str
    sha256: str = ""

    @property
    def size(self) -> int:
        """The file's bytes."""
        return self.path.stat().st_size

    def digest(self) -> str:
        """Return the file's sha256; raises ModelError if it is not the recorded one."""
        found = file_digest(self.path)
        if self.sha256 not in ("", found):
            raise ModelError(
                f"{self.path}: its content is not what the catalogue says (sha256 {found[:12]}…, "
                f"expected {self.sha256[:12]}…).",
                _REINSTALL,
            )
        return found


def split_name(model: str | os.PathLike[str]) -> tuple[str | os.PathLike[str], str | None]:
    """Return what names a reasoner's model, and what names its adapter; None where nothing does.

    A model whose whole name is `model` is that model, whatever signs the name has. Otherwise the
    last + behind which an adapter can stand divides it. An `os.PathLike` is one file's path.
    """
    if not isinstance(model, str) or MARK not in model or _is_there(model):
        return model, None
    divided = []
    rest = model
    while MARK in rest:
        rest, _, _ = rest.rpartition(MARK)
        divided.append((rest, model[len(rest) + len(MARK) :]))
    for name, adapter in divided:
        if _is_there(name):
            return name, adapter
    name, adapter = divided[0]  # the model is missing: say so of it, where it can be told
    is_adapter = adapter == NO_ADAPTER or adapter.lower().endswith(".gguf")
    return (name, adapter) if is_adapter or find_catalogued(name) else (model, None)


def model_of(name: str) -> str:
    """Return what names the model in a reasoner's name, without its adapter."""
    return os.fspath(split_name(name)[0])


def find_adapter(
    name: str | os.PathLike[str], adapter: str | None, path: Path
) -> AdapterFile | None:
    """Return the adapter of the reasoner `name`, whose file is `path`; None for none.

    Args:
        name: What names the model.
        adapter: What names its adapter; None for the one that ships for this model.
        path: The model's file.

    Raises:
        ModelError: There is no such adapter.
    """
    if adapter == NO_ADAPTER:
        return None
    if adapter is None or not is_path(adapter):
        shipped = shipped_adapter(name, path) if isinstance(name, str) else None
        if adapter is None or (shipped is not None and adapter == shipped.name):
            return shipped
        own = f"or {MARK}{shipped.name}, which ships for it, " if shipped else ""
        raise ModelError(
            f"There is no adapter {adapter!r} for {os.fspath(name)}.",
            f"Write the file's path, {MARK}.{os.sep}{adapter}, {own}or {MARK}{NO_ADAPTER}.",
        )
    file = expand_home(adapter)
    if not file.is_file():
        what = "a folder, not an adapter" if file.is_dir() else "no such adapter"
        raise ModelError(f"{adapter}: {what}.", "Name a LoRA adapter's GGUF file.")
    return AdapterFile(file, file.stem)


def shipped_adapter(name: str, path: Path) -> AdapterFile | None:
    """Return the adapter that ships for the catalogue's reasoner `name`, installed at `path`.

    It is made for the catalogue's file alone: None for a file of another size.
    Raises ModelError if the package lacks it.
    """
    entry = catalogued_adapter(name)
    if entry is None or path.stat().st_size != entry.model_size:
        return None
    if not entry.path.is_file():
        raise ModelError(f"{entry.path}: missing, though the catalogue names it.", _REINSTALL)
    return AdapterFile(entry.path, entry.name, entry.sha256)


def _is_there(name: str) -> bool:
    """Return whether a name, a path or a reference leads to a model."""
    try:
        find_model(name)
    except ModelError:
        return False
    return True
