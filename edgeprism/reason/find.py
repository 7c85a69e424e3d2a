"""A reasoner's name → its files: the model's, and an adapter's."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgeprism.bundle.adapters import MARK, AdapterFile, find_adapter, split_name
from edgeprism.bundle.kinds import no_reasoner, wrong_kind
from edgeprism.bundle.open import find_dead_link, find_model, known_name, similar_models
from edgeprism.bundle.places import find_catalogued
from edgeprism.choices import is_reference
from edgeprism.errors import ModelError, UsageError

_ADDRESS = re.compile(r"https?://", re.I)
_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]+:[0-9]{1,5}(?:/.*)?|localhost(?:/.*)?")


@dataclass(frozen=True)
class ReasonerFiles:
    """What a reasoner's name means.

    Parameters:
        path: the model's file, the first of several parts.
        name: what records call it.
        adapter: the adapter that it is used with; None for none.
        chat_format: llama.cpp's name of its chat format, where only the program knows it that
            keeps the model.
    """

    path: Path
    name: str
    adapter: AdapterFile | None
    chat_format: str | None = None


def find_reasoner(model: str | os.PathLike[str]) -> ReasonerFiles:
    """Find the files of a reasoner, named as `Reasoner.load` takes it; nothing is loaded.

    Raises ModelError if one is not there, or is no reasoner; UsageError for a server's address.
    """
    if _ADDRESS.match(os.fspath(model)):
        raise UsageError(
            f"{os.fspath(model)}: a server's address, not a file.",
            f"For example: RemoteReasoner.load({os.fspath(model)!r})",
        )
    model, adapter_name = split_name(model)
    path, name, chat_format = _find_model(model)
    adapter = find_adapter(model, adapter_name, path)
    if adapter is not None:
        name += f"{MARK}{adapter.name}"
    return ReasonerFiles(path, name, adapter, chat_format)


def _find_model(model: str | os.PathLike[str]) -> tuple[Path, str, str | None]:
    """Return the model's file, its name, and its chat format if the program that keeps it knows."""
    name = os.fspath(model)
    if is_reference(model):
        from edgeprism.bundle.elsewhere.references import canonical_reference, open_kept

        found = open_kept(name, with_mmproj=False)
        return found.lm, canonical_reference(name), found.chat_format
    try:
        path = find_model(model)
    except ModelError as error:
        raise _missing(name, error) from error
    if path.is_dir():
        raise no_reasoner(path)
    return path, known_name(path) or path.stem, None


def _missing(name: str, error: ModelError) -> ModelError:
    """Return the error for a reasoner that `find_model` did not find."""
    if _HOST_AND_PORT.fullmatch(name):
        server = name if "/" in name else f"{name}/v1"
        return ModelError(
            f"{name}: no such reasoner.", f"For a server, write its whole address: http://{server}"
        )
    if name.startswith("hf:") or find_dead_link(name) is not None:
        return error  # it says how to get it
    catalogued = find_catalogued(name)
    if catalogued is not None and catalogued.kind == "captioner":
        return wrong_kind(name, "captioner")
    if os.path.basename(name) != name:
        return ModelError(f"{name}: no such reasoner.", "Name a chat model's GGUF file.")
    if os.path.lexists(name):
        return error  # it says how to name a file of the current folder
    if catalogued is not None:
        return ModelError(
            f"Reasoner {name!r} is not installed.",
            f"Get it with `edgeprism pull {name}`, or name a GGUF file as `reasoner`. "
            "`edgeprism models list` shows what there is.",
        )
    close = similar_models(name, "reasoner")
    meant = f"Did you mean {' or '.join(close)}? " if close else ""
    return ModelError(
        f"There is no reasoner {name!r}.",
        f"{meant}`edgeprism models list` shows the reasoners that are here and those that "
        "`edgeprism pull` can add; a GGUF file is named by its path.",
    )
