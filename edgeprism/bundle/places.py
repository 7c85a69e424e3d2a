"""The folders in which models have names, and what the catalogue says of a name."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

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


def find_catalogued(name: str) -> Catalogued | None:
    """Return what `pull` knows by this name; None for a name of none."""
    return catalogued_models().get(name)


def catalogued_models() -> dict[str, Catalogued]:
    """Return what the catalogue says of each of its names.

    The whole catalogue is `edgeprism.models.catalogue`'s, which this room does not import.
    """
    for place in builtin_models_dir():
        with contextlib.suppress(OSError, ValueError):  # a stripped install has no catalogue
            catalogue = json.loads((place / "catalogue.json").read_text(encoding="utf-8"))
            models = {
                name: Catalogued(kind, "")
                for kind in ("captioner", "reasoner")
                for name in catalogue[f"{kind}s"]
            }
            for name, entry in catalogue["gguf"].items():
                models[name] = Catalogued(str(entry["kind"]), str(entry["repo"]))
            return models
    return {}
