"""References to models that other programs keep: PREFIX:NAME, wherever a model's name is taken.

A reference leads to the places where its program keeps models, by the user's home folder and the
environment, and never to the current folder. The files are used where they are.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgeprism.bundle.elsewhere import gpt4all, hub_cache, jan, llama_cache, lm_studio, ollama
from edgeprism.bundle.elsewhere.chat_formats import chat_format_of
from edgeprism.bundle.elsewhere.kept import Kept
from edgeprism.bundle.gguf import GgufHeader
from edgeprism.bundle.gguf_parts import read_model_header
from edgeprism.bundle.gguf_purpose import no_language_model
from edgeprism.choices import PROGRAM_PREFIXES
from edgeprism.errors import COPY_AGAIN, EdgePrismError, ModelError
from edgeprism.files.digests import file_digest

_COMPARED = 200  # names that a misspelt one is compared with; each takes about a millisecond
_LONGEST = 200  # characters of such a name
_WORD = re.compile(r"[^\W_]+")
_GET_AGAIN = "Get the model again with that program."
_SHOWN = 8  # names of models that an error offers


class Program(Protocol):
    """A module for one program."""

    TITLE: str

    def places(self) -> list[Path]:
        """Return the folders where the program keeps models, those that go first first."""

    def canonical(self, name: str) -> str:
        """Return the one form of a name."""

    def kept_in(self, place: Path, only: str = "") -> Iterator[Kept]:
        """Yield the models of a folder; with `only` at least those of that canonical name."""


@dataclass(frozen=True)
class Opened:
    """The files of a model that a reference means.

    Parameters:
        lm: the language model's file, the first of several parts.
        mmproj: the mmproj file; None for a language model alone.
        chat_format: llama.cpp's name of its chat format, where only its program knows it.
    """

    lm: Path
    mmproj: Path | None
    chat_format: str | None


PROGRAMS: dict[str, Program] = dict(
    zip(PROGRAM_PREFIXES, (ollama, lm_studio, hub_cache, llama_cache, jan, gpt4all), strict=True)
)


def canonical_reference(reference: str) -> str:
    """Return a reference in the one form that `models discover` prints."""
    prefix, _, name = reference.partition(":")
    return f"{prefix}:{PROGRAMS[prefix].canonical(name)}"


def find_kept(reference: str) -> Kept:
    """Return the model that a reference means; its files are there, and none of them was opened.

    Raises ModelError if there is no such model, and names similar ones that are there; or if its
    program does not have it whole.
    """
    prefix, _, name = reference.partition(":")
    program = PROGRAMS[prefix]
    wanted = program.canonical(name) if name else ""
    for place in program.places() if wanted else ():
        for kept in program.kept_in(place, wanted):
            if kept.name == wanted:
                if kept.problem:
                    raise unusable(reference, kept.problem)
                return kept
    raise _missing(reference, prefix, name)


def open_kept(reference: str, *, with_mmproj: bool) -> Opened:
    """Return the files of a model, checked: the language model, and with `with_mmproj` its mmproj.

    Raises ModelError as `find_kept`; if the header says that it is no language model that
    llama.cpp runs; or if a file's sha256 is not the one that its program recorded.
    """
    kept = find_kept(reference)
    with naming(canonical_reference(reference), kept.model, kept.mmproj):
        header = read_model_header(kept.model)
        if reason := no_language_model(header):
            raise unusable(reference, reason)
        for path in (kept.model, kept.mmproj if with_mmproj else None):
            if path is not None:
                check_recorded(path, kept.digests.get(path, ""))
    return Opened(kept.model, kept.mmproj, chat_format(kept, header))


def chat_format(kept: Kept, header: GgufHeader) -> str | None:
    """Return the chat format by the program's own template, for a file that has none."""
    if header.chat_template is not None or kept.template is None:
        return None
    return chat_format_of(kept.template)


@contextlib.contextmanager
def naming(reference: str, lm: Path, mmproj: Path | None = None) -> Iterator[None]:
    """Let errors inside the block name the reference where they would name its files.

    A program may keep files under names that say nothing; the error's details still have the path.
    The hint to copy a damaged model again names the program, because its files are not ours.
    """
    try:
        yield
    except EdgePrismError as error:
        summary = error.summary.replace(f"{mmproj} with {lm}", reference)
        summary = summary.replace(str(lm), reference)
        if mmproj is not None:
            summary = summary.replace(str(mmproj), f"the mmproj of {reference}")
        if summary != error.summary:
            files = " and ".join(str(path) for path in (lm, mmproj) if path is not None)
            error.details = (*error.details, f"{reference} is {files}")
            error.summary = summary
        if error.hint == COPY_AGAIN:
            error.hint = _GET_AGAIN
        raise


def check_recorded(path: Path, recorded: str) -> None:
    """Compare a file with the sha256 that its program recorded, if it recorded one.

    Raises ModelError if they differ. A digest is computed once and then remembered.
    """
    if recorded and (actual := file_digest(path)) != recorded:
        raise ModelError(
            f"{path}: damaged: its sha256 is {actual[:12]}…, and the program that keeps it "
            f"recorded {recorded[:12]}….",
            _GET_AGAIN,
        )


def names_of(prefix: str, *, pairs_only: bool = False) -> list[str]:
    """Return the references of all models of a program, or of all pairs, by names alone."""
    program = PROGRAMS[prefix]
    found = [kept for place in program.places() for kept in program.kept_in(place)]
    fitting = [kept for kept in found if kept.name and (kept.mmproj if pairs_only else kept.lm)]
    return list(dict.fromkeys(f"{prefix}:{kept.name}" for kept in fitting))


def similar_references(name: str) -> list[str]:
    """Return references that a name without one of the prefixes probably means, at most three.

    It is the whole name in a store, such as "llava:7b", or its part before the colon, or it is
    misspelt, as its prefix may be.
    """
    import difflib

    there = {
        each: {each, tail, tail.partition(":")[0]}
        for prefix in PROGRAMS
        for each in names_of(prefix)
        for tail in [each.partition(":")[2]]
    }
    exact = [each for each, forms in there.items() if name in forms]
    forms = [form for each in there for form in (each, each.partition(":")[2])]
    close = difflib.get_close_matches(name, forms, cutoff=0.75)
    return (exact or [each for each in there if there[each] & {*close}])[:3]


def unusable(reference: str, problem: str) -> ModelError:
    """Return the error for a model that is there and cannot be used."""
    return ModelError(
        f"{reference}: cannot be used: {problem}.", "`edgeprism models discover` shows what can."
    )


def _missing(reference: str, prefix: str, name: str) -> ModelError:
    title = PROGRAMS[prefix].TITLE
    if name.partition("/")[0].isdecimal():
        return ModelError(
            f"{reference}: {title} keeps no such model.",
            f"For a server, write its whole address: http://{reference}/v1",
        )
    there = names_of(prefix)
    names = [each.partition(":")[2] for each in there]
    close = [f"{prefix}:{each}" for each in _similar(name, names)]
    hint = "`edgeprism models discover` shows what all programs keep."
    if prefix == "hub":
        hint = f"`edgeprism pull hf:{name}` gets it. {hint}"
    if close:
        hint = f"Did you mean {' or '.join(close)}? {hint}"
    more = [f"and {len(there) - _SHOWN} more"] if len(there) > _SHOWN else []
    details = ["there is:", *there[:_SHOWN], *more] if there else [f"{title} keeps none here"]
    return ModelError(f"{reference}: {title} keeps no such model.", hint, details)


def _similar(name: str, names: list[str]) -> list[str]:
    """Return up to three names that are spelt like `name`; of very many, those of like words."""
    import difflib
    import heapq

    words = set(_WORD.findall(name.lower()))

    def likeness(other: str) -> tuple[int, int]:
        pairs = enumerate(zip(name, other, strict=False))
        same_start = next((place for place, (mine, its) in pairs if mine != its), len(other))
        return len(words.intersection(_WORD.findall(other.lower()))), same_start

    short = [each for each in names if max(len(each), len(name)) <= _LONGEST]
    likely = heapq.nlargest(_COMPARED, short, likeness) if len(short) > _COMPARED else short
    return difflib.get_close_matches(name, likely)
