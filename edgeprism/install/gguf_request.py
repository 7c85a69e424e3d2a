"""What a caller of `pull` asks for, when it is GGUF files of a model hub."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from edgeprism.bundle.places import builtin_models_dir
from edgeprism.choices import PAIR_QUANTS
from edgeprism.convert.options import check_vision_quants
from edgeprism.errors import UsageError
from edgeprism.install.own_models import check_name_form
from edgeprism.models.catalogue import Catalogue, GgufModel

_REFERENCE = re.compile(r"hf:([A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)(?::([^:]+))?")

_REVISION = re.compile(r"\w[\w-]*(?:[./]\w[\w-]*)*", re.ASCII)  # no way out of a folder


@dataclass(frozen=True)
class GgufOptions:
    """What holds for GGUF files alone; "" for what follows from the repository."""

    name: str = ""  # the name to install a repository's model under
    revision: str = ""  # a branch, tag or commit
    lm_chat_format: str = ""  # llama.cpp's name of the language model's chat template
    encoder: str = "auto"  # who encodes a captioner's pictures, of choices.ENCODERS


@dataclass(frozen=True)
class GgufRequest:
    """A model that comes in GGUF files, and the name to install it under."""

    name: str
    entry: GgufModel
    quant: str  # "" for the entry's, or the rule's
    chat_format: str | None
    encoder: str
    vision_quants: tuple[str, ...] = ()  # of the encoder's graph; () for the usual ones


def gguf_request(
    reference: str,
    catalogue: Catalogue,
    quant: str,
    options: GgufOptions,
    vision_quants: tuple[str, ...] = (),
) -> GgufRequest | None:
    """Return what `reference` asks for; None if it is no model that comes in GGUF files.

    Raises UsageError for a reference or name that cannot be one, and for options that exclude each
    other.
    """
    chat_format = options.lm_chat_format or None
    if options.revision and not _REVISION.fullmatch(options.revision):
        raise UsageError(
            f"{options.revision!r} cannot be a revision.", "Give a branch, a tag or a commit."
        )
    if not reference.startswith("hf:") and reference not in catalogue.gguf:
        return None
    if vision_quants:
        check_vision_quants(vision_quants, PAIR_QUANTS)
        if options.encoder == "mtmd":
            raise UsageError(
                "llama.cpp's encoder has the mmproj file's own quantization.",
                "Drop `vision_quants`, or let `encoder` be auto or onnx.",
            )
    if not reference.startswith("hf:"):
        known = catalogue.gguf[reference]
        if options.name:
            raise UsageError(
                f"{reference} has its name from the catalogue.",
                f"Drop `name`, or name the repository: hf:{known.repo}",
            )
        entry = replace(known, revision=options.revision or known.revision)
        return GgufRequest(reference, entry, quant, chat_format, options.encoder, vision_quants)
    repo, tag = parse_reference(reference)
    if tag and quant and tag != quant:
        raise UsageError(f"{reference} and `lm_quant` {quant} differ.", "Drop one of them.")
    name = options.name or repository_to_name(repo)
    _require_usable(name, repo, catalogue)
    entry = GgufModel("", "", "", repo, options.revision or "main", False, None)
    return GgufRequest(name, entry, tag or quant, chat_format, options.encoder, vision_quants)


def _require_usable(name: str, repo: str, catalogue: Catalogue) -> None:
    check_name_form(name)
    known = catalogue.gguf.get(name)
    taken = name in catalogue.names() and (known is None or known.repo != repo)
    if taken or any((place / name).exists() for place in builtin_models_dir()):
        raise UsageError(
            f"{name} is the name of another model of EdgePrism.", "Choose one with `name`."
        )


def parse_reference(reference: str) -> tuple[str, str]:
    """Return repository and quantization ("" if none) of `hf:OWNER/REPO[:QUANT]`.

    Raises UsageError for anything else.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError(
            f"{reference} names no repository.",
            "Write hf:OWNER/REPO or hf:OWNER/REPO:QUANT, as in "
            "hf:ggml-org/gemma-3-4b-it-GGUF:Q8_0.",
        )
    return match[1], match[2] or ""


def repository_to_name(repo: str) -> str:
    """Return the name under which a repository's model is installed: without owner and "-GGUF"."""
    tail = re.sub(r"[-._]gguf$", "", repo.rpartition("/")[2].lower())
    return tail.strip("-._") or "model"
