"""Find a bundle by name or path, read its manifest and check its files."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from edgeprism.bundle.gguf_parts import part_names
from edgeprism.bundle.manifest import FILE_NAME, FileEntry, Manifest, VisionVariant
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.choices import is_reference
from edgeprism.errors import ModelError
from edgeprism.files.digests import file_digest, sha256_of_file
from edgeprism.files.home import installed_models_dirs


@dataclass(frozen=True)
class Bundle:
    """A bundle with its manifest; `digest` is the manifest's sha256.

    The manifest holds the digest of every file, so this one digest identifies the whole bundle.
    """

    path: Path
    manifest: Manifest
    digest: str
    places: Mapping[str, Path] = field(default_factory=dict)  # paths of files outside `path`

    @cached_property
    def name(self) -> str:
        """The bundle's name: its folder's for an installed or built-in one, else its manifest's."""
        return known_name(self.path) or self.manifest.name

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle, after checking its digest (`check_file`).

        It checks all files that an engine opens with this one (`opened_with`).
        """
        for path, entry in self.opened_with(name).items():
            check_file(path, entry.sha256, entry.size)
        return self.path_of(name)

    def path_of(self, name: str) -> Path:
        """Return the path of a file of the bundle, without checking it."""
        return self.places.get(name, self.path / name)

    def opened_with(self, name: str) -> dict[Path, FileEntry]:
        """Return the files that an engine opens when it opens `name`, itself among them.

        They are all parts of a language model, and the weights beside a vision graph.
        """
        files = self.manifest.files
        names = part_names(name) if name == self.manifest.lm.file else [name]
        beside = f"{name}.data"
        names += [beside] if beside in files else []
        return {self.path_of(each): files[each] for each in names}


def find_model(model: str | os.PathLike[str]) -> Path:
    """Return the path of a model, which a path, a plain name or a reference says.

    A string such as "ollama:NAME" is a reference to a model that another program keeps
    (`elsewhere.references`); the path is its language model's. A string with a separator, "." and
    "..", a string that begins with "~", and every `os.PathLike` is a path. All other strings are
    names: they are looked up in the data folder, then among the built-in models, and never in the
    working directory, because a stranger's folder of pictures may hold a file that is named like a
    model. Raises ModelError (exit code 4) if there is no such model.
    """
    text = os.fspath(model)
    if is_reference(model):
        from edgeprism.bundle.elsewhere.references import find_kept

        return find_kept(text).model
    try:
        if not isinstance(model, str) or _is_path(text):
            path = _expand_home(text)
            found = path if path.exists() else None
        else:
            found = _model_named(text)
            path = Path(text)
        if found is not None:
            return found
        beside = path.parent == Path() and text not in ("", ".") and path.exists()
    except (OSError, ValueError) as error:  # no permission, too long a name, or NUL in it
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"Model {text[:200]!r}: {reason}.", "Check the path.") from error
    if beside:
        raise ModelError(
            f"{text!r} is no built-in or installed model. A plain name is never looked for in the "
            "current folder.",
            f"To open {text} of the current folder, write it as a path: .{os.sep}{text}",
        )
    if text.startswith("hf:"):
        raise ModelError(
            f"Model {text!r} is a repository of a model hub, not a model of this machine.",
            f"`edgeprism pull {text}` gets it. If it is in the hub's cache, name it hub:{text[3:]}",
        )
    for place in model_places():
        if (link := dead_link(place, text)) is not None:
            raise ModelError(
                f"{link}: its link leads to no file: the hub's cache no longer has it.",
                f"Pull {text} again, or remove it: edgeprism models remove {text}",
            )
    if kind := _kind_in_catalogue(text):
        raise ModelError(
            f"{text} is not installed yet.",
            f"It is a {kind}: get it with `edgeprism pull {text}`; `edgeprism models show {text}` "
            "says what it needs.",
        )
    raise ModelError(
        f"Model {text!r} is neither a bundle nor a GGUF file nor an installed model.",
        f"{_similar(text)}`edgeprism models list` shows what there is, `edgeprism pull NAME` gets "
        "more.",
    )


def _kind_in_catalogue(name: str) -> str:
    """Return the kind of a model that `pull` knows by this name, "" for a name of none.

    The whole catalogue is `edgeprism.models.catalogue`'s, which this room does not import.
    """
    for place in builtin_models_dir():
        with contextlib.suppress(OSError, ValueError):  # a stripped install has no catalogue
            catalogue = json.loads((place / "catalogue.json").read_text(encoding="utf-8"))
            if name in catalogue["gguf"]:
                return str(catalogue["gguf"][name]["kind"])
            kinds = {"captioner": "captioners", "reasoner": "reasoners"}
            return next((kind for kind, table in kinds.items() if name in catalogue[table]), "")
    return ""


def known_name(path: Path) -> str | None:
    """Return the name that `find_model` knows the model at `path` by; None for any other place."""
    folder = path.parent if path.name == "bundle" else path
    names = [folder.stem if folder.suffix == ".gguf" else folder.name]
    if first_part_in(path.parent) == path:
        names.append(path.parent.name)
    for name in names:
        try:
            found = None if _is_path(name) else _model_named(name)
            if found is not None and os.path.samefile(found, path):
                return name
        except OSError:  # the folder of models cannot be read: then no name leads there
            return None
    return None


def _is_path(text: str) -> bool:
    separators = [os.sep, *([os.altsep] if os.altsep else [])]
    return (
        text in (os.curdir, os.pardir)
        or text.startswith("~")
        or any(separator in text for separator in separators)
        or bool(os.path.splitdrive(text)[0])
    )


def _expand_home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user, or nobody knows this user's home
        return Path(text)


def _model_named(name: str) -> Path | None:
    if not name:
        return None
    for place in model_places():
        for candidate in (place / name, place / name / "bundle"):
            # os.path's function: a home folder that may not be entered holds no model
            if os.path.isfile(candidate / FILE_NAME):
                return candidate
        if os.path.isfile(place / f"{name}.gguf"):
            return place / f"{name}.gguf"
        if (first := first_part_in(place / name)) is not None:
            return first
    return None


def dead_link(place: Path, name: str) -> Path | None:
    """Return the link of a reasoner in a folder of models that leads to no file, if it is one."""
    links = [place / f"{name}.gguf"]
    if os.path.isdir(place / name):
        links += sorted((place / name).glob("*-00001-of-*.gguf"))
    dead = (link for link in links if os.path.islink(link) and not os.path.exists(link))
    return next(dead, None)


def first_part_in(folder: Path) -> Path | None:
    """Return the first part of the language model in several parts that a folder holds alone."""
    parts = sorted(folder.glob("*-00001-of-*.gguf")) if os.path.isdir(folder) else []
    return parts[0] if len(parts) == 1 and os.path.isfile(parts[0]) else None


def _similar(name: str) -> str:
    """Return a question that names models of this machine which are spelt like `name`."""
    import difflib

    present: list[str] = []
    for place in model_places():
        with contextlib.suppress(OSError):  # a folder that cannot be listed has no name to offer
            present += [path.name.removesuffix(".gguf") for path in place.iterdir()]
    known = sorted({word for word in present if _model_named(word) is not None})
    close = difflib.get_close_matches(name, known)
    if not close and name:
        from edgeprism.bundle.elsewhere.references import similar_references

        close = similar_references(name)
    return f"Did you mean {' or '.join(map(repr, close))}? " if close else ""


def model_places() -> list[Path]:
    """Return the folders in which names are looked up, in order: the data folder's comes first."""
    return [*installed_models_dirs(), *builtin_models_dir()]


def builtin_models_dir() -> list[Path]:
    """Return the folder of the models that ship with the package; none in a stripped install."""
    spec = importlib.util.find_spec("edgeprism.models")
    return [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []


def open_bundle(name_or_path: str | os.PathLike[str]) -> Bundle:
    """Find a bundle, read its manifest, and check that every file exists and has its size.

    `Bundle.file` checks a file's digest when it is first used. Raises ModelError if the bundle is
    missing or incomplete, ManifestError with all faults of its manifest.
    """
    path = find_model(name_or_path)
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
        f"{name}: {problem}"
        for name, entry in manifest.files.items()
        if (problem := _size_problem(path / name, entry.size))
    ]
    if wrong:
        raise ModelError(f"{path}: incomplete:", _made_again(path, manifest), wrong)
    return Bundle(path, manifest, digest)


def _made_again(path: Path, manifest: Manifest) -> str:
    """Return how to get a model again of which files are missing."""
    name, source = known_name(path), manifest.sources[0].name if manifest.sources else ""
    # as `pull` writes it of files that stay in the hub's cache: OWNER/REPO@COMMIT: FILE
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)@[0-9a-f]+: (\S+)", source, re.ASCII)
    if found is None or name is None or manifest.family != "mmproj":
        return "Copy or convert it again."
    return f"Pull it again: edgeprism pull hf:{found[1]}:{found[2]} --name {name}"


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
                f"{bundle.name} holds no {quant} vision graph.",
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


def check_file(
    path: Path, sha256: str, size: int, *, again: bool = False, remember: bool = True
) -> None:
    """Compare a file with its digest; raises ModelError if they differ. See `file_digest`."""
    problem = _size_problem(path, size)
    if problem:
        raise ModelError(f"{path}: {problem}.", "Copy or convert the model again.")
    actual = file_digest(path, again=again, remember=remember)
    if actual != sha256:
        raise ModelError(
            f"{path}: its content is not what the manifest says (sha256 {actual[:12]}…, "
            f"expected {sha256[:12]}…).",
            "It was damaged or changed: copy or convert the model again.",
        )


def _size_problem(path: Path, size: int) -> str:
    try:
        status = path.stat()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    return "" if status.st_size == size else f"has {status.st_size} bytes instead of {size}"
