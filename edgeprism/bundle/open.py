"""Find a bundle by name or path, read its manifest and check its files."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from edgeprism.bundle.gguf_parts import part_names
from edgeprism.bundle.manifest import FILE_NAME, FileEntry, Manifest, VisionVariant
from edgeprism.bundle.places import catalogued_models, find_catalogued, model_places
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.choices import is_reference
from edgeprism.errors import COPY_AGAIN, ModelError
from edgeprism.files.digests import file_digest, sha256_of_file


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

        They are all parts of a language model's file, and the weights beside a graph.
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
        if not isinstance(model, str) or is_path(text):
            path = expand_home(text)
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
    if (link := find_dead_link(text)) is not None:
        raise dead_link_error(link, text)
    if (catalogued := find_catalogued(text)) is not None:
        raise ModelError(
            f"{text} is not installed yet.",
            f"It is a {catalogued.kind}: get it with `edgeprism pull {text}`; "
            f"`edgeprism models show {text}` says what it needs.",
        )
    raise ModelError(
        f"Model {text!r} is neither a bundle nor a GGUF file nor an installed model.",
        f"{_similar(text)}`edgeprism models list` shows what there is, `edgeprism pull NAME` gets "
        "more.",
    )


def known_name(path: Path) -> str | None:
    """Return the name that `find_model` knows the model at `path` by; None for any other place."""
    folder = path.parent if path.name == "bundle" else path
    names = [folder.stem if folder.suffix == ".gguf" else folder.name]
    if first_part_in(path.parent) == path:
        names.append(path.parent.name)
    for name in names:
        try:
            found = None if is_path(name) else _model_named(name)
            if found is not None and os.path.samefile(found, path):
                return name
        except OSError:  # the folder of models cannot be read: then no name leads there
            return None
    return None


def is_path(text: str) -> bool:
    """Return whether a model's name is a path, by its signs (`find_model`)."""
    separators = [os.sep, *([os.altsep] if os.altsep else [])]
    return (
        text in (os.curdir, os.pardir)
        or text.startswith("~")
        or any(separator in text for separator in separators)
        or bool(os.path.splitdrive(text)[0])
    )


def expand_home(text: str) -> Path:
    """Return the path that `text` means, with the home folder for ~."""
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


def find_dead_link(name: str) -> Path | None:
    """Return the link that keeps the reasoner `name` from being found; None if it has none."""
    if not name or is_path(name) or _model_named(name) is not None:
        return None
    return next(filter(None, (dead_link(place, name) for place in model_places())), None)


def dead_link(place: Path, name: str) -> Path | None:
    """Return the link of a reasoner in a folder of models that leads to no file, if it has one."""
    return next(filter(is_dead_link, (place / f"{name}.gguf", *_parts_in(place / name))), None)


def is_dead_link(path: Path) -> bool:
    """Return whether a path is a link that leads to no file."""
    return os.path.islink(path) and not os.path.exists(path)


def dead_link_error(link: Path, name: str) -> ModelError:
    """Return the error for an installed reasoner of which a link leads to no file."""
    from edgeprism.bundle.pulled import pull_command  # not at the top: only errors need it

    if command := pull_command(name):
        why = "its link leads to no file: the hub's cache no longer has it."
        return ModelError(f"{link}: {why}", f"Pull it again: {command}")
    return ModelError(
        f"{link}: its link leads to no file.",
        f"Mend the link, or remove it: edgeprism models remove {name}",
    )


def first_part_in(folder: Path) -> Path | None:
    """Return the first part of the language model in several parts that a folder holds alone.

    None, too, if a part is a link that leads to no file.
    """
    parts = _parts_in(folder)
    first = [part for part in parts if part.match("*-00001-of-*.gguf")]
    if len(first) != 1 or any(map(is_dead_link, parts)):
        return None
    return first[0] if os.path.isfile(first[0]) else None


def _parts_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-of-*.gguf")) if os.path.isdir(folder) else []


def similar_models(name: str, kind: str = "") -> list[str]:
    """Return names that are spelt like `name`: models of this machine and of the catalogue.

    Parameters:
        kind: "captioner" or "reasoner", for names of this kind alone. References to what other
            programs keep are always among them: a captioner's language model answers, too.
    """
    import difflib

    from edgeprism.bundle.elsewhere.references import similar_references

    kinds = {known: entry.kind for known, entry in catalogued_models().items()}
    for place in reversed(model_places()):
        with contextlib.suppress(OSError):  # a folder that cannot be listed has no name to offer
            for word in {path.name.removesuffix(".gguf") for path in place.iterdir()}:
                if (path := _model_named(word)) is not None:
                    kinds[word] = "captioner" if path.is_dir() else "reasoner"
    known = {each.lower(): each for each in sorted(kinds) if kind in ("", kinds[each])}
    close = [known[each] for each in difflib.get_close_matches(name.lower(), known)]
    return [*close, *(similar_references(name) if name else [])]


def _similar(name: str) -> str:
    close = similar_models(name)
    return f"Did you mean {' or '.join(map(repr, close))}? " if close else ""


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
        raise ModelError(f"{path}: incomplete:", _made_again(path), wrong)
    return Bundle(path, manifest, digest)


def _made_again(path: Path) -> str:
    """Return how to get a model again of which files are missing."""
    from edgeprism.bundle.pulled import pull_command

    command = pull_command(known_name(path) or "")
    return f"Pull it again: {command}" if command else "Copy or convert it again."


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
        raise ModelError(f"{path}: {problem}.", COPY_AGAIN)
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
