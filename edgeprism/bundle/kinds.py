"""Errors about a captioner in a reasoner's place, and about a reasoner in a captioner's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgeprism.bundle.gguf_parts import read_model_header
from edgeprism.bundle.manifest import FILE_NAME
from edgeprism.bundle.open import known_name, open_bundle
from edgeprism.errors import EdgePrismError, ModelError


def wrong_kind(name: str, kind: str, details: Iterable[str] = (), *, hint: str = "") -> ModelError:
    """Return the error for a model of a `kind` that is named where the other kind is needed."""
    other = "reasoner" if kind == "captioner" else "captioner"
    return ModelError(
        f"{name} is a {kind}, not a {other}.",
        hint or f"`edgeprism models list` shows every {other}, and which is here.",
        details,
    )


def no_reasoner(folder: Path) -> ModelError:
    """Return the error for a folder that is named as a reasoner.

    Where it is a captioner's bundle whose language model can chat, the hint names that file.
    """
    if not (folder / FILE_NAME).is_file():
        return ModelError(f"{folder}: a folder, not a reasoner.", "Give a chat model's GGUF file.")
    hint = ""
    try:
        bundle = open_bundle(folder)
        lm = bundle.path_of(bundle.manifest.lm.file)
        if read_model_header(lm).chat_template is not None:
            hint = f"Its language model answers, too: name its file {lm}"
    except EdgePrismError:
        pass  # a damaged captioner is no reasoner either
    return wrong_kind(known_name(folder) or str(folder), "captioner", hint=hint)
