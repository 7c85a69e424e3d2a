"""Find captioners and reasoners that other programs keep on this machine, from headers alone.

`elsewhere` lists the stores by name; here each model's GGUF header is read, which says what it is.
Nothing is loaded, hashed, or written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeprism.bundle.choose_gguf import quant_in_name
from edgeprism.bundle.elsewhere import ollama
from edgeprism.bundle.elsewhere.kept import Kept, list_gguf, models_of_folder
from edgeprism.bundle.elsewhere.references import (
    PROGRAMS,
    canonical_reference,
    chat_format,
    find_kept,
    unusable,
)
from edgeprism.bundle.gguf import GgufHeader, license_in_header
from edgeprism.bundle.gguf_parts import part_paths, read_model_header
from edgeprism.bundle.gguf_purpose import no_language_model
from edgeprism.errors import ModelError, UsageError
from edgeprism.files.home import installed_models_dirs
from edgeprism.vision.mmproj_checks import check_mmproj, departure_of, projector_of, row_width

FOLDER = "folder"
UNUSABLE = "unusable"
_NO_TEMPLATE = "without a chat template of its own: it may need a chat format by name"


@dataclass(frozen=True)
class Discovered:
    """One model that another program keeps, or a file that looks like one.

    Parameters:
        reference: what `--model` or `--reasoner` takes; "" where nothing leads to it.
        kind: "captioner", "reasoner", or "unusable".
        program: whose it is.
        architecture: llama.cpp's name of the language model's architecture.
        projector: of a captioner, llama.cpp's name of what joins its vision tower to it.
        quant: the language model's quantization.
        size: bytes of all its files.
        license: as its headers name it; "" if they do not.
        paths: its files, the language model's first.
        problem: why it is unusable.
        note: what to know otherwise.
        also: other references to the very same files.
    """

    reference: str
    kind: str
    program: str
    architecture: str = ""
    projector: str = ""
    quant: str = ""
    size: int = 0
    license: str = ""
    paths: tuple[str, ...] = ()
    problem: str = ""
    note: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    """A model as its store's folders tell of it, before its header was read."""

    reference: str
    program: str
    kept: Kept


_Found = tuple[_Candidate, tuple[str, ...]]  # a model, and other references to the same files


def discover(folders: Iterable[Path] = ()) -> list[Discovered]:
    """Return what other programs keep; with `folders`, what lies in those folders instead.

    Captioners come first, then reasoners, then what cannot be used, with the reason. A model that
    several programs share (one inode, or one recorded digest) is listed once. Raises UsageError if
    one of `folders` is no folder.
    """
    given = list(folders)
    for folder in given:
        if not os.path.isdir(folder):
            raise UsageError(f"{folder} is not a folder.", "Name a folder that holds GGUF files.")
    order = {"captioner": 0, "reasoner": 1, "unusable": 2}
    candidates = _without_twins(_in_folders(given) if given else _in_stores())
    own = _installed_files()
    described = (_with_own_name(_describe(*found), own) for found in candidates)
    return sorted(described, key=lambda m: order[m.kind])


def _installed_files() -> dict[tuple[int, int], str]:
    """Return {device and inode: name} of the GGUF files of installed models, where links lead."""
    names = {}
    for place in installed_models_dirs():
        paths: list[Path] = []
        with contextlib.suppress(OSError):  # a folder that this user may not enter
            paths = [*place.glob("*.gguf"), *place.glob("*/*.gguf")]
        for path in paths:
            with contextlib.suppress(OSError):  # a link that leads nowhere
                status = path.stat()
                name = path.stem if path.parent == place else path.parent.name
                names[status.st_dev, status.st_ino] = name
    return names


def _with_own_name(model: Discovered, own: Mapping[tuple[int, int], str]) -> Discovered:
    """Note the name of the installed model that `pull` links to the very same file."""
    with contextlib.suppress(OSError):
        status = os.stat(model.paths[0]) if model.paths else None
        name = own.get((status.st_dev, status.st_ino)) if status else None
        if name and not model.problem:
            notes = (f"installed here as {name}", model.note)
            return replace(model, note="; ".join(filter(None, notes)))
    return model


def reference_facts(reference: str) -> dict[str, Any]:
    """Return facts on a model that another program keeps, from its headers.

    Raises ModelError if there is no such model.
    """
    prefix = reference.partition(":")[0]
    kept = find_kept(reference)
    candidate = _Candidate(canonical_reference(reference), PROGRAMS[prefix].TITLE, kept)
    facts = asdict(_describe(candidate, ()))
    del facts["also"]
    recorded = {str(path): digest for path, digest in kept.digests.items()}
    return {**facts, "recorded_sha256": recorded}


def usable_facts(reference: str) -> dict[str, Any]:
    """Return `reference_facts`; raises ModelError, too, for a model that cannot be used."""
    facts = reference_facts(reference)
    if facts["problem"]:
        raise unusable(reference, facts["problem"])
    return facts


def looked_in() -> list[tuple[str, Path]]:
    """Return (program, folder) of all places where models are looked for."""
    return [(p.TITLE, place) for p in PROGRAMS.values() for place in p.places()]


def _in_stores() -> Iterator[_Candidate]:
    for prefix, program in PROGRAMS.items():
        seen: dict[str, Path] = {}
        for place in program.places():
            for kept in program.kept_in(place):
                first = seen.setdefault(kept.name, place) if kept.name else place
                if first != place:  # the reference leads to that place
                    problem = f"{first} holds another of this name, which goes first"
                    yield _Candidate("", program.TITLE, Kept("", kept.where, problem=problem))
                else:
                    reference = f"{prefix}:{kept.name}" if kept.name else ""
                    yield _Candidate(reference, program.TITLE, kept)


def _in_folders(folders: Iterable[Path]) -> Iterator[_Candidate]:
    """Yield the models of any folders: their reference is the language model's path."""
    for folder in folders:
        place = Path(os.path.abspath(folder))
        for store in (place, place / "models"):
            if os.path.isdir(store / "manifests") and os.path.isdir(store / "blobs"):
                yield from _foreign_ollama(store)
        for _, kept in models_of_folder(list_gguf(place)):
            yield _Candidate(str(kept.lm) if kept.lm else "", FOLDER, kept)


def _foreign_ollama(store: Path) -> Iterator[_Candidate]:
    """Yield the models of a store of Ollama's, by reference if references lead there."""
    known = store in ollama.places()
    for kept in ollama.kept_in(store):
        reference = f"ollama:{kept.name}" if known and kept.name else ""
        note = "" if known else f"ollama:{kept.name} with OLLAMA_MODELS={store}"
        yield _Candidate(reference, ollama.TITLE, replace(kept, note=kept.note or note))


# ---- one model found twice


def _without_twins(
    candidates: Iterable[_Candidate],
) -> Iterator[tuple[_Candidate, tuple[str, ...]]]:
    """Yield each model once, with the other references to the same files."""
    files: dict[object, object] = {}  # a digest or an inode → the first file of that content
    found: dict[object, tuple[_Candidate, list[str]]] = {}
    for number, candidate in enumerate(candidates):
        kept = candidate.kept
        key: object = number
        if kept.lm is not None:
            key = tuple(_content(path, kept, files) for path in (kept.lm, kept.mmproj) if path)
        first, also = found.setdefault(key, (candidate, []))
        # a longer name of a repository's only model says nothing new
        shorter = [f"{name}{end}" for name in (first.reference, *also) for end in "/:"]
        name = candidate.reference
        if first is not candidate and name and not name.startswith(tuple(shorter)):
            also.append(name)
    for first, also in found.values():
        yield first, tuple(also)


def _content(path: Path, kept: Kept, files: dict[object, object]) -> object:
    """Return what stands for a file's content: the first key that was seen with one of its own."""
    keys: list[object] = [str(path)]
    try:
        status = path.stat()
        keys.append((status.st_dev, status.st_ino))
    except OSError:
        pass  # its header will not be read either, and tells why
    if digest := kept.digests.get(path):
        keys.append(digest)
    same = next((files[key] for key in keys if key in files), keys[0])
    for key in keys:
        files.setdefault(key, same)
    return same


# ---- what a model is


def _describe(candidate: _Candidate, also: tuple[str, ...]) -> Discovered:
    kept, program = candidate.kept, candidate.program
    name = candidate.reference
    if kept.lm is None:
        return Discovered(name, UNUSABLE, program, paths=(str(kept.where),), problem=kept.problem)
    paths = [kept.lm]
    try:
        paths = part_paths(kept.lm)
        header = read_model_header(kept.lm)
        problem = no_language_model(header)
    except ModelError as error:
        header, problem = GgufHeader({}, {}, {}), _in_words(error, paths)
    projector, note = "", kept.note
    license_ = license_in_header(header)
    if kept.mmproj and not problem:
        try:
            tower = check_mmproj(kept.mmproj, row_width(header))
            projector = projector_of(tower)
            note = note or departure_of(header)
            license_ = license_ or license_in_header(tower)
            paths = [*paths, kept.mmproj]
        except ModelError as error:
            note = f"its mmproj cannot be used: {_in_words(error, [kept.mmproj])}"
    if not problem and header.chat_template is None and not chat_format(kept, header):
        note = note or _NO_TEMPLATE
    kind = UNUSABLE if problem else "captioner" if projector else "reasoner"
    return Discovered(
        reference=name,
        kind=kind,
        program=program,
        architecture=header.architecture,
        projector=projector,
        quant=header.quant or quant_in_name(kept.lm.name),
        size=sum(map(_size, paths)),
        license=license_,
        paths=tuple(map(str, paths)),
        problem=problem,
        note="" if problem else note,
        also=also,
    )


def _in_words(error: ModelError, paths: Iterable[Path]) -> str:
    """Return what an error says of a file, without the path, which stands beside it."""
    text = error.summary
    for path in paths:
        text = text.removeprefix(f"{path}: ")
    return text.rstrip(".")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it was deleted meanwhile
        return 0
