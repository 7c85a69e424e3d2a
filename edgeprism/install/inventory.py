"""The models of this machine: built-in, installed, and those that the catalogue offers."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeprism.bundle.adapters import model_of, shipped_adapter
from edgeprism.bundle.defaults import BUILT_IN, default_model
from edgeprism.bundle.elsewhere.references import find_kept
from edgeprism.bundle.gguf import GgufHeader, license_in_header
from edgeprism.bundle.gguf_parts import (
    is_first_part,
    model_bytes,
    model_digest,
    part_paths,
    read_model_header,
)
from edgeprism.bundle.manifest import FILE_NAME, Manifest
from edgeprism.bundle.open import (
    check_file,
    dead_link,
    dead_link_error,
    find_dead_link,
    find_model,
    first_part_in,
    is_dead_link,
    known_name,
    open_bundle,
)
from edgeprism.bundle.places import builtin_models_dir
from edgeprism.bundle.pulled import PulledFrom, pulled_from
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.choices import is_reference
from edgeprism.errors import EdgePrismError, ModelError
from edgeprism.files.digests import file_digest
from edgeprism.files.home import installed_models_dirs
from edgeprism.install.discover import reference_facts
from edgeprism.install.licenses import license_terms
from edgeprism.install.memory_needs import counted_memory, estimated_memory
from edgeprism.models.catalogue import (
    Catalogue,
    Entry,
    GgufModel,
    WheelReasoner,
    read_catalogue,
)
from edgeprism.picture.layout import most_visual_tokens


@dataclass(frozen=True)
class ModelEntry:
    """One line of `edgeprism models list`."""

    name: str
    kind: str  # captioner | reasoner
    state: str  # built-in | installed | damaged | available
    size: int | None  # bytes on disk, or to fetch; None if unknown
    license: str
    description: str
    path: str = ""
    problem: str = ""
    memory: int | None = None  # bytes of memory to run it
    memory_counted: bool = False  # from its files; else estimated from their size
    disk: int | None = None  # bytes on disk once it is installed
    convert_memory: int | None = None  # bytes of memory to convert it; None: it is used as it comes
    default: bool = False  # whether commands use it when none is named


def list_models(
    catalogue: Catalogue | None = None, *, count_memory: bool = False
) -> list[ModelEntry]:
    """List built-in models, then installed ones, then those that `pull` can add.

    With `count_memory`, the memory of those that are here is counted from their files. That loads
    llama.cpp and reads each header; without it their memory is None.
    """
    catalogue = catalogue or read_catalogue()
    present: dict[str, ModelEntry] = {}
    # A name means the data folder's model if both have it, as in `find_model`.
    installed = [(place, "installed") for place in installed_models_dirs()]
    for place, state in (*installed, *_builtin()):
        for name, path in models_in(place):
            present.setdefault(name, _to_entry(name, path, state, catalogue))
    order = {"built-in": 0, "installed": 1, "damaged": 1}
    entries = sorted(present.values(), key=lambda e: (order[e.state], e.name))
    for name in catalogue.names():
        if name not in present:
            entries.append(_available(name, catalogue.find(name)))
    defaults = {(kind, model_of(default_model(kind))) for kind in BUILT_IN}
    if count_memory:
        entries = [_with_memory(entry) for entry in entries]
    return [replace(e, default=(e.kind, e.name) in defaults) for e in entries]


def _with_memory(entry: ModelEntry) -> ModelEntry:
    """Complete an entry of a model that is here with the memory that it needs."""
    if entry.state not in ("built-in", "installed") or entry.size is None:
        return entry
    try:
        return replace(entry, memory=counted_memory(entry.name), memory_counted=True)
    except EdgePrismError:  # a file that no engine will read, or there is no llama.cpp
        return replace(entry, memory=estimated_memory(entry.size))


def models_in(place: Path) -> list[tuple[str, Path]]:
    """Return name and path of the bundles and GGUF files in a folder of models.

    The path of a reasoner may be a link that leads to no file.
    """
    models = []
    try:
        paths = sorted(place.iterdir())
    except OSError:
        return []  # a missing or unreadable folder has no model that can be used
    for path in paths:
        if path.name.startswith("."):
            continue  # a conversion writes to such a folder until it is complete
        for candidate in (path, path / "bundle"):
            if os.path.isfile(candidate / FILE_NAME):
                models.append((path.name, candidate))
                break
        else:
            first = first_part_in(path)
            if first is not None:
                models.append((path.name, first))
            elif path.suffix == ".gguf" and os.path.isfile(path) and is_first_part(path.name):
                models.append((path.stem, path))
            elif (link := dead_link(place, path.name.removesuffix(".gguf"))) is not None:
                models.append((path.name.removesuffix(".gguf"), link))
    return models


def _builtin() -> list[tuple[Path, str]]:
    return [(place, "built-in") for place in builtin_models_dir()]


def _to_entry(name: str, path: Path, state: str, catalogue: Catalogue) -> ModelEntry:
    """Describe a model by its headers and sizes, without hashing."""
    try:
        if path.is_dir():
            bundle = open_bundle(path)
            size = sum(entry.size for entry in bundle.manifest.files.values())
            made = catalogue.captioners.get(name) or catalogue.gguf.get(name)
            text = made.description if made else bundle.manifest.notice
            license_ = bundle.manifest.license
            return ModelEntry(name, "captioner", state, size, license_, text, str(path), disk=size)
        if is_dead_link(path):
            raise dead_link_error(path, name)
        header = read_model_header(path)
        reasoner = catalogue.reasoners.get(name)
        if reasoner and path.stat().st_size != reasoner.size:
            raise ModelError(f"{path}: its size is not the one that the catalogue records.")
        known = reasoner or catalogue.gguf.get(name)
        license_ = reasoner.license if reasoner else _license(name, header)
        text = known.description if known else str(header.metadata.get("general.name", ""))
        size = model_bytes(path)
        return ModelEntry(name, "reasoner", state, size, license_, text, str(path), disk=size)
    except ModelError as error:
        kind = "captioner" if path.is_dir() else "reasoner"
        problem = error.message.strip()
        return ModelEntry(name, kind, "damaged", None, "", "", str(path), problem)


def _license(name: str, header: GgufHeader) -> str:
    """Return the licence that was published with a pulled reasoner, else what its file says."""
    origin = pulled_from(name)
    return (origin.license if origin else "") or license_in_header(header)


def _available(name: str, entry: Entry) -> ModelEntry:
    if isinstance(entry, GgufModel):
        fetched = None if entry.download_gb is None else int(entry.download_gb * 1e9)
        return _to_fetch(name, entry.kind, fetched, entry)
    if isinstance(entry, WheelReasoner):
        return _to_fetch(name, "reasoner", entry.size, entry)
    size = int(entry.download_gb * 1e9)
    return ModelEntry(
        name, "captioner", "available", size, entry.license, entry.description,
        memory=int(entry.memory_gb * 1e9), disk=int(entry.disk_gb * 1e9),
        convert_memory=int(entry.convert_memory_gb * 1e9),
    )  # fmt: skip


def _to_fetch(
    name: str, kind: str, size: int | None, entry: GgufModel | WheelReasoner
) -> ModelEntry:
    """Describe a model that is used as it is fetched."""
    memory = None if size is None else estimated_memory(size)
    return ModelEntry(
        name, kind, "available", size, entry.license, entry.description, memory=memory, disk=size
    )


# ---- one model


def model_facts(name: str, catalogue: Catalogue | None = None) -> dict[str, Any]:
    """Return facts on an installed model (name or path), or else on one in the catalogue.

    Behind "license" stands "license_terms", how far the licence lets the model be used. Raises
    ModelError if there is neither, or if the installed model cannot be read.
    """
    facts: dict[str, Any] = {}
    for key, value in _facts_without_terms(name, catalogue or read_catalogue()).items():
        facts[key] = value
        if key == "license":
            facts["license_terms"] = license_terms(value)
    return facts


def _facts_without_terms(name: str, catalogue: Catalogue) -> dict[str, Any]:
    if is_reference(name):
        return reference_facts(name)
    try:
        path = find_model(name)
    except ModelError as error:
        if name in catalogue.names() and find_dead_link(name) is None:
            entry = catalogue.find(name)
            line = _available(name, entry)
            memory = None if line.memory is None else round(line.memory / 1e9, 1)
            first = {"name": name, "kind": line.kind, "state": line.state, "license": line.license}
            return {**first, **asdict(entry), "memory_gb": memory}
        raise error
    return _gguf_facts(path, catalogue) if path.is_file() else _bundle_facts(path)


def license_of(name: str) -> str:
    """Return the licence of a model that is here, without hashing it; "" if none is recorded.

    Raises ModelError if there is no such model, or it cannot be read.
    """
    name = model_of(name)
    if is_reference(name):
        return str(reference_facts(name)["license"])
    path = find_model(name)
    if path.is_dir():
        return manifest_from_bundle(path).license
    known = read_catalogue().reasoners.get(name)
    return known.license if known else _license(name, read_model_header(path))


def _bundle_facts(path: Path) -> dict[str, Any]:
    bundle = open_bundle(path)
    m = bundle.manifest
    return {
        "name": bundle.name,
        "kind": "captioner",
        "state": _state(path),
        "path": str(bundle.path),
        "manifest_name": m.name,
        "digest": bundle.digest,
        "family": m.family,
        "license": m.license,
        "notice": m.notice,
        "sources": [asdict(source) for source in m.sources],
        "image": asdict(m.image),
        "visual_tokens_per_picture": most_visual_tokens(m),
        "video": _video_facts(m),
        "vision": asdict(m.vision),
        "lm": asdict(m.lm),
        "prompts": asdict(m.prompts),
        "parity": asdict(m.parity),
        "files": {file: asdict(entry) for file, entry in m.files.items()},
    }


def _video_facts(m: Manifest) -> dict[str, Any] | None:
    """Return how a model sees videos; None if it describes pictures alone."""
    if m.video is None:
        return None
    return {**asdict(m.video), "visual_tokens_per_frame": m.video.tokens_per_frame}


def _state(path: Path) -> str:
    """Return where a model lies: built-in, installed, or "file" for any other place."""
    if known_name(path) is None:
        return "file"
    inside = path.resolve()
    builtin = any(inside.is_relative_to(place.resolve()) for place in builtin_models_dir())
    return "built-in" if builtin else "installed"


def _gguf_facts(path: Path, catalogue: Catalogue) -> dict[str, Any]:
    header = read_model_header(path)
    name = known_name(path) or path.stem
    known = catalogue.reasoners.get(name)
    pulled = pulled_from(name) if known_name(path) else None
    architecture = header.architecture
    return {
        "name": name,
        "kind": "reasoner",
        "state": _state(path),
        "path": str(path),
        "digest": model_digest(path),
        "license": known.license if known else _license(name, header),
        "origin": known.origin if known else (pulled.source if pulled else ""),
        "size": model_bytes(path),
        "architecture": architecture,
        "parameters": sum(math.prod(shape) for shape in header.tensors.values()),
        "n_embd": header.n_embd,
        "n_vocab": header.n_vocab,
        "context_length": header.metadata.get(f"{architecture}.context_length"),
        "has_chat_template": header.chat_template is not None,
        "recorded_sha256": known.sha256 if known else _recorded(pulled, path),
        **({"adapter": asdict(known.adapter)} if known and known.adapter else {}),
    }


def _recorded(pulled: PulledFrom | None, path: Path) -> str | None:
    return pulled.sha256.get(path.name) if pulled else None


@dataclass(frozen=True)
class FileCheck:
    """The result of hashing one file; `problem` is empty if the file is as recorded."""

    model: str
    file: str
    sha256: str
    recorded: bool  # False: no digest is recorded, so there is nothing to compare with
    problem: str


def verify_model(name: str, catalogue: Catalogue | None = None) -> list[FileCheck]:
    """Hash every file of an installed model; raises ModelError if there is no such model."""
    catalogue = catalogue or read_catalogue()
    if is_reference(name):
        return _verify_reference(name)
    if (link := find_dead_link(name)) is not None:
        return [_dead(name, link)]
    path = find_model(name)
    if path.is_file():
        read_model_header(path)
        known = catalogue.reasoners.get(name)
        if known is None:
            return [_checked_part(name, part) for part in part_paths(path)]
        own, more = _checked(name, path, known.sha256, known.size), shipped_adapter(name, path)
        return [own, _checked(name, more.path, more.sha256, more.size)] if more else [own]
    # open_bundle would stop at the first faulty file, and this function reports all files.
    manifest = manifest_from_bundle(path)
    return [
        _checked(name, path / file, entry.sha256, entry.size)
        for file, entry in manifest.files.items()
    ]


def check_captioner(name: str) -> str:
    """Hash the files of a captioner, and return its name and place; raises ModelError.

    The files of one that another program keeps are looked for, and not read.
    """
    if is_reference(name):
        return f"{name} ({find_kept(name).model})"
    bundle = open_bundle(name)
    for file, entry in bundle.manifest.files.items():
        check_file(bundle.path / file, entry.sha256, entry.size, remember=False)
    return f"{bundle.name} ({bundle.path})"


def _verify_reference(reference: str) -> list[FileCheck]:
    """Hash the files of a model that another program keeps, against what it recorded."""
    kept = find_kept(reference)
    files = [*part_paths(kept.model), *([kept.mmproj] if kept.mmproj else [])]
    checks = []
    for path in files:
        digest, recorded = file_digest(path, again=True), kept.digests.get(path, "")
        wrong = f"{path}: its program recorded {recorded[:12]}…" if recorded else ""
        problem = wrong if recorded != digest else ""
        checks.append(FileCheck(reference, path.name, digest, bool(recorded), problem))
    return checks


def _checked(name: str, path: Path, sha256: str, size: int) -> FileCheck:
    try:
        check_file(path, sha256, size, again=True)
    except ModelError as error:
        return FileCheck(name, path.name, sha256, True, error.message)
    return FileCheck(name, path.name, sha256, True, "")


def _dead(name: str, link: Path) -> FileCheck:
    """Return the check of a reasoner's link that leads to no file."""
    origin = pulled_from(name)
    recorded = origin.sha256.get(link.name) if origin else None
    problem = dead_link_error(link, name).message
    return FileCheck(name, link.name, recorded or "", recorded is not None, problem)


def _checked_part(name: str, part: Path) -> FileCheck:
    """Hash a reasoner's file; a digest is recorded only of those that `pull` brought."""
    origin = pulled_from(name)
    expected = origin.sha256.get(part.name) if origin else None
    sha256 = file_digest(part, again=True)
    problem = "" if expected in (None, sha256) else f"{part}: its content is not what was pulled."
    return FileCheck(name, part.name, sha256, expected is not None, problem)
