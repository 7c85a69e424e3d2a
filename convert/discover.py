"""Find families by name (the files of `families/`), and those that resemble a folder."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

from edgeprism.convert import families as package
from edgeprism.convert.family import Family
from edgeprism.errors import CheckpointError, UsageError
from edgeprism.files.regular import read_limited

_OTHERS = (
    "`edgeprism convert --list` says what each family is. Many other models run as a pair of GGUF "
    "files: `edgeprism convert mmproj --help`."
)
# Captioners that people may try and that no family reads yet: a field of config.json that only
# theirs has, their name, why, and what to do. docs/reference/families.md says more.
_NOT_YET = (
    (
        "mm_vision_tower_aux_list",
        "Cambrian-1 or a model derived from it",
        "visual tokens attend to the features of its vision models again between layers of the "
        "language model, which llama.cpp has no place for",
        "Mini-Gemini also joins two vision models: `edgeprism convert mini-gemini`.",
    ),
    (
        "cross_compute_hidden_size",
        "CogAgent-18B",
        "every layer of its language model attends to 6,400 features of a second vision model, for "
        "text as for pictures, which llama.cpp has no place for",
        "Its authors maintain cogagent-9b in its place. " + _OTHERS,
    ),
    (
        "qllama_config",
        "InternVL-14B-224px",
        "a second language model, QLLaMA, whose queries attend to the picture in every second "
        "layer, stands between its vision model and its text, which llama.cpp has no place for",
        "InternVL-Chat does without it: `edgeprism convert llava` reads V1.0, "
        "`edgeprism convert internvl` V1.1 and later.",
    ),
)
_N_SHOWN = 12
_MAX_CONFIG_BYTES = 16 << 20


def family_names() -> list[str]:
    """Return the names of all families, sorted, without importing them."""
    return sorted(file.name.replace("_", "-") for file in pkgutil.iter_modules(package.__path__))


def family_named(name: str) -> Family:
    """Return the family `name`; UsageError lists the known names."""
    names = family_names()
    if name not in names:
        raise UsageError(
            f"No family of checkpoints is named {name}.", f"Known: {', '.join(names)}."
        )
    return _load(name)


def families() -> list[Family]:
    """Return all families, sorted by name, for `convert --list` and the documentation."""
    return [_load(name) for name in family_names()]


def _load(name: str) -> Family:
    module = importlib.import_module(f"{package.__name__}.{name.replace('-', '_')}")
    family: Family = module.FAMILY
    return family


def not_yet(folder: Path) -> tuple[str, str] | None:
    """Return why the captioner in `folder` cannot be converted yet, and what to do.

    None for any other folder than that of a captioner that is known to have no family.
    """
    config = _config_of(folder)
    for field, name, why, hint in _NOT_YET:
        if field in config:
            return f"{folder} holds {name}, which cannot be converted yet: {why}.", hint
    return None


def unknown_layout(folder: Path, family: str, expected: str) -> CheckpointError:
    """Return the error that compares `folder` with what `family` expects, and names close families.

    `family` is the name that the caller gave for the folder.
    """
    config = _config_of(folder)
    names = sorted(path.name + "/" * path.is_dir() for path in folder.glob("*"))
    shown = ", ".join(names[:_N_SHOWN]) + (", …" if len(names) > _N_SHOWN else "")
    fields = ", ".join(sorted(config)[:_N_SHOWN]) or "none"
    about = f"config.json with model_type {config.get('model_type')!r} and fields {fields}"
    if "config.json" not in names:
        about = "no config.json"
        if inside := _checkpoints_inside(folder):
            return CheckpointError(
                f"{folder} holds no checkpoint itself, but its folders do.",
                f"Pass one of its folders: {', '.join(inside)}.",
            )
    scores, likely = _scores(folder), likely_family(folder)
    return CheckpointError(
        f"{folder} is not a checkpoint of {family}.",
        f"Try `edgeprism convert {likely}`." if likely not in (None, family) else _OTHERS,
        (
            f"found: {about}; files {shown or 'none'}",
            f"expected: {expected}",
            f"families that come close: {', '.join(scores) or 'none'}",
        ),
    )


def _checkpoints_inside(folder: Path) -> list[str]:
    """Return "NAME (FAMILY)" of the folders in `folder` that hold a checkpoint, if it is a shelf.

    A folder with files of its own, or with the folders of a family's layout, is none: what it
    lacks is to be told.
    """
    of_layout = max(_scores(folder).values(), default=0) > 2
    if of_layout or any(path.is_file() for path in folder.glob("*")):
        return []
    inside = [path for path in sorted(folder.glob("*")) if (path / "config.json").is_file()]
    return [f"{path.name} ({likely_family(path) or 'of no family that it resembles'})"
            for path in inside[:_N_SHOWN]]  # fmt: skip


def likely_family(folder: Path) -> str | None:
    """Return the family that `folder` resembles more than any other, if it shares more than a sign.

    A single field, such as `vision_config`, stands in the configurations of many models, and a
    family whose model_types lack the folder's reads other models.
    """
    kind = _config_of(folder).get("model_type")
    known = {family.name: family.model_types for family in families()}
    scores = {
        name: score
        for name, score in _scores(folder).items()
        if kind is None or not known[name] or kind in known[name]
    }
    (name, best), (_, second) = [*scores.items(), ("", 0), ("", 0)][:2]
    return name if best > max(second, 1) else None


def _scores(folder: Path) -> dict[str, int]:
    """Return {family: how many fields and file names it shares with `folder`}, closest first.

    A model_type and a file's name count twice, for fewer models share them than fields. Families
    that share nothing are left out.
    """
    config = _config_of(folder)
    paths = list(folder.glob("*"))
    every, files = {path.name for path in paths}, {path.name for path in paths if path.is_file()}
    kind = config.get("model_type")
    # a folder's name, such as llm, says nothing of a family whose config.json is missing beside it
    scores = {
        family.name: 2 * (kind in family.model_types)
        + 2 * len((every if config or not family.model_types else files).intersection(family.signs))
        + len(config.keys() & set(family.signs))
        for family in families()
    }
    return {name: scores[name] for name in sorted(scores, key=lambda n: -scores[n]) if scores[name]}


def _config_of(folder: Path) -> dict[str, Any]:
    """Return config.json's fields; {} if it is unreadable, because an error is being reported."""
    try:
        data = json.loads(read_limited(folder / "config.json", _MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
