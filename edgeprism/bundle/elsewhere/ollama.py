"""Ollama's store: `manifests/HOST/NAMESPACE/MODEL/TAG`, and the files that they name in `blobs/`.

Source: ollama/ollama, manifest/paths.go, manifest/manifest.go, types/model/name.go and
envconfig/config.go. A blob's name holds its sha256.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from edgeprism.bundle.elsewhere.kept import (
    UNFINISHED,
    Kept,
    Reader,
    environment_path,
    home,
    read_record,
    reason,
    unreadable,
)

TITLE = "Ollama"
SERVICE = Path("/usr/share/ollama/.ollama/models")  # where the Linux installer's service keeps them
_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_LAYER = "application/vnd.ollama.image."


def places() -> list[Path]:
    """Return the folders that Ollama may use; several may hold models."""
    own = home()
    named = environment_path("OLLAMA_MODELS")
    return [
        place for place in (named, own / ".ollama" / "models" if own else None, SERVICE) if place
    ]


def canonical(name: str) -> str:
    """Return a model's shortest name with its tag, as Ollama prints it."""
    tagged = name if ":" in name.rpartition("/")[2] else f"{name}:{_TAG}"
    for part in (_HOST, _NAMESPACE):
        tagged = tagged.removeprefix(f"{part}/")
    return tagged


def kept_in(place: Path, only: str = "") -> Iterator[Kept]:
    """Yield the models of a store; with `only`, that name's alone."""
    manifests = place / "manifests"
    reader = Reader()
    for host in reader.subfolders(manifests):
        for namespace in reader.subfolders(host):
            for model in reader.subfolders(namespace):
                yield from _tags(place, model, only, reader)
    if not only:
        yield from unreadable(manifests)
        yield from reader.early_end(manifests)
        yield from _unfinished(place / "blobs")


def _tags(place: Path, model: Path, only: str, reader: Reader) -> Iterator[Kept]:
    folder = model.relative_to(place / "manifests").as_posix()
    try:
        tags = [model / entry.name for entry in reader.entries(model)]
    except OSError as error:
        yield Kept("", model, problem=f"cannot be read: {reason(error)}")
        return
    for tag in tags:
        name = canonical(f"{folder}:{tag.name}")
        if only in ("", name) and all(
            map(_PART.fullmatch, tag.relative_to(model.parents[2]).parts)
        ):
            yield _to_kept(name, tag, place / "blobs")


def _to_kept(name: str, path: Path, blobs: Path) -> Kept:
    try:
        layers = _layers(json.loads(read_record(path)))
    except (OSError, ValueError, RecursionError) as error:
        return Kept(name, path, problem=f"its manifest cannot be read: {reason(error)}")
    models, projectors = layers.get("model", []), layers.get("projector", [])
    problem = _layer_problem(layers)
    files: list[Path] = []
    digests: dict[Path, str] = {}
    for digest in () if problem else (models[0], *projectors):
        found = _DIGEST.fullmatch(digest)
        if found is None:
            problem = "its manifest names a file by no sha256"
            break
        blob = blobs / f"sha256-{found[1]}"
        if not os.path.isfile(blob):
            problem = f"half fetched, or damaged: its file {blob.name[:19]}… is missing"
            break
        files.append(blob)
        digests[blob] = found[1].lower()
    if problem:
        return Kept(name, path, problem=problem)
    lm, *rest = files
    return Kept(name, path, lm, rest[0] if rest else None, digests=digests,
                template=_template(layers, blobs))  # fmt: skip


def _template(layers: dict[str, list[str]], blobs: Path) -> Path | None:
    found = _DIGEST.fullmatch(layers.get("template", [""])[-1])
    return blobs / f"sha256-{found[1]}" if found else None


def _layers(manifest: object) -> dict[str, list[str]]:
    """Return the digests of a manifest's layers by kind; raises ValueError for another shape."""
    found: dict[str, list[str]] = {}
    if not isinstance(manifest, dict) or not isinstance(manifest.get("layers"), list):
        raise ValueError("it has no list of layers")
    for layer in manifest["layers"]:
        if not isinstance(layer, dict):
            raise ValueError("a layer is no object")
        kind, digest = layer.get("mediaType"), layer.get("digest")
        if isinstance(kind, str) and isinstance(digest, str):
            found.setdefault(kind.removeprefix(_LAYER), []).append(digest)
    return found


def _layer_problem(layers: dict[str, list[str]]) -> str:
    models = layers.get("model", [])
    if "tensor" in layers:
        return "its weights are in Ollama's own form for MLX, not in a GGUF file"
    if not models:
        return "its manifest names no weights: it may run on Ollama's servers"
    if "adapter" in layers:
        return "it is a model with a LoRA adapter, which only Ollama joins"
    if len(models) > 1 or len(layers.get("projector", [])) > 1:
        return "its weights are in several files, which only Ollama joins"
    return ""


def _unfinished(blobs: Path) -> Iterator[Kept]:
    try:
        names = sorted(path.name for path in blobs.iterdir())
    except OSError:
        return
    for name in names:
        if name.endswith("-partial"):
            yield Kept("", blobs / name, problem=UNFINISHED)
