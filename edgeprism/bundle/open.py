"""Find a bundle by name or path, read its manifest and check its files."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeprism.bundle.manifest import FILE_NAME, Manifest, VisionVariant
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.errors import ModelError
from edgeprism.files.digests import file_digest, sha256_of_file
from edgeprism.files.home import data_dir

DEFAULT_MODEL = "nano"


@dataclass(frozen=True)
class Bundle:
    """A bundle with its manifest; `digest` is the manifest's sha256.

    The manifest holds the digest of every file, so this one digest identifies the whole bundle.
    """

    path: Path
    manifest: Manifest
    digest: str
    places: Mapping[str, Path] = field(default_factory=dict)  # paths of files outside `path`

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle, after checking its digest (`check_file`)."""
        path = self.places.get(name, self.path / name)
        entry = self.manifest.files[name]
        check_file(path, entry.sha256, entry.size)
        return path


def find_model(name: str) -> Path:
    """Return the path of a model: `name` is a path, or a model's name.

    Names are looked up in the data folder, then among the built-in models. A folder in the working
    directory that has a model's name but holds no bundle does not hide the model. Raises ModelError
    (exit code 4) if there is no such model.
    """
    try:
        path = _path_of_model(name)
    except OSError as error:  # no permission for a folder, or too long a name
        raise ModelError(f"Model {name[:200]!r}: {error.strerror}.", "Check the path.") from error
    if path is not None:
        return path
    raise ModelError(
        f"Model {name!r} is neither a bundle nor a GGUF file nor an installed model.",
        "`edgeprism models list` shows what there is, `edgeprism pull NAME` gets more.",
    )


def _path_of_model(name: str) -> Path | None:
    path = Path(name)
    is_name = path.name == name and name not in ("", ".", "..")
    if path.is_file() or (path / FILE_NAME).is_file() or (path.exists() and not is_name):
        return path
    if is_name:
        for place in (data_dir() / "models", *builtin_models_dir()):
            for candidate in (place / name, place / name / "bundle"):
                if (candidate / FILE_NAME).is_file():
                    return candidate
            if (place / f"{name}.gguf").is_file():
                return place / f"{name}.gguf"
    return None


def builtin_models_dir() -> list[Path]:
    """Return the folder of the models that ship with the package; none in a stripped install."""
    spec = importlib.util.find_spec("edgeprism.models")
    return [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []


def open_bundle(name_or_path: str | os.PathLike[str]) -> Bundle:
    """Find a bundle, read its manifest, and check that every file exists and has its size.

    `Bundle.file` checks a file's digest when it is first used. Raises ModelError if the bundle is
    missing or incomplete, ManifestError with all faults of its manifest.
    """
    path = find_model(os.fspath(name_or_path))
    if path.is_file():
        raise ModelError(f"{path}: a file, not a bundle.", f"Name the folder with {FILE_NAME}.")
    try:
        manifest = manifest_from_bundle(path)
        digest = sha256_of_file(path / FILE_NAME)
    except OSError as error:
        raise ModelError(
            f"{path}: no bundle: {FILE_NAME} cannot be read ({error.strerror}).",
            "A bundle is a folder made by `edgeprism convert` or `edgeprism pull`.",
        ) from error
    wrong = [
        f"\n  {name}: {problem}"
        for name, entry in manifest.files.items()
        if (problem := _size_problem(path / name, entry.size))
    ]
    if wrong:
        raise ModelError(f"{path}: incomplete:{''.join(wrong)}\n", "Copy or convert it again.")
    return Bundle(path, manifest, digest)


def choose_vision(
    bundle: Bundle, quant: str | None, *, on_cpu: bool, int8_dot: bool
) -> VisionVariant:
    """Return the variant `quant`, or by default the best for this device and instruction set.

    On a CPU int8 is fastest; its full-range form only where no pair of products saturates. On a
    GPU dynamic int8 falls back to the host, so half precision comes first.
    """
    variants = {v.quant: v for v in bundle.manifest.vision.variants}
    if quant is not None:
        if quant not in variants:
            raise ModelError(
                f"{bundle.manifest.name} holds no {quant} vision graph.",
                f"It holds: {', '.join(variants)}.",
            )
        return variants[quant]
    if bundle.manifest.vision.mmproj is not None:
        return bundle.manifest.vision.variants[0]
    if on_cpu:
        order = ["int8-full"] * int8_dot + ["int8", "fp32", "fp16", "int8-full"]
    else:
        order = ["fp16", "fp32", "int8", "int8-full"]
    return next(variants[q] for q in order if q in variants)


def check_file(path: Path, sha256: str, size: int, *, again: bool = False) -> None:
    """Compare a file with its digest; raises ModelError if they differ. See `file_digest`."""
    problem = _size_problem(path, size)
    if problem:
        raise ModelError(f"{path}: {problem}.", "Copy or convert the model again.")
    actual = file_digest(path, again=again)
    if actual != sha256:
        raise ModelError(
            f"{path}: its content is not what the manifest says (sha256 {actual[:12]}…, "
            f"expected {sha256[:12]}…).",
            "It was damaged or changed: copy or convert the model again.",
        )


def _size_problem(path: Path, size: int) -> str:
    try:
        actual = path.stat().st_size
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if actual == size else f"has {actual} bytes instead of {size}"
