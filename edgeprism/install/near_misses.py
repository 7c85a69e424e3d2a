"""What `pull` says to a name that it does not know: how to write what was probably meant."""

from __future__ import annotations

import re

from edgeprism.choices import is_reference
from edgeprism.errors import ModelError
from edgeprism.models.catalogue import Catalogue

# a repository's page, or the address of a file of it; Ollama writes the host without a scheme
_ADDRESS = re.compile(
    r"(?:https?://)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+?)"
    r"(?:/(?:tree|blob|resolve)/[^/?#]+(?:/([^?#:]+\.gguf))?)?/?(?:[?#].*|:([^:/]+))?",
    re.ASCII | re.IGNORECASE,
)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?::[^:/]+)?", re.ASCII)


def unknown_model(name: str, catalogue: Catalogue) -> ModelError:
    """Return the error for a name that is neither of the catalogue nor of an installed model."""
    hint = _meant(name, catalogue) or f"Known: {', '.join(catalogue.names())}."
    if is_reference(name):
        return ModelError(f"{name} is a model that another program keeps on this machine.", hint)
    return ModelError(f"No model {name!r} is in the catalogue.", hint)


def _meant(name: str, catalogue: Catalogue) -> str:
    """Return how to write what `name` probably means; "" if it resembles nothing."""
    if is_reference(name):
        prefix, _, rest = name.partition(":")
        use = f"It is used where it lies, and is not pulled: edgeprism use {name}"
        return f"{use}, or edgeprism pull hf:{rest}" if prefix == "hub" else use
    if address := _ADDRESS.fullmatch(name):
        tag = address[2] or address[3]
        return f"Write hf:{address[1]}{f':{tag}' if tag else ''}"
    if _REPOSITORY.fullmatch(name):
        return f"For a repository of a model hub, write hf:{name}"
    known = catalogue.names()
    base, colon, quant = name.lower().partition(":")
    if colon and base in catalogue.gguf:
        return f"Name the quantization apart: edgeprism pull {base} --lm-quant {quant.upper()}"
    close = _similar(base, known)
    if not close:
        return ""
    return f"Did you mean {' or '.join(close)}? `edgeprism models list` shows all names."


def _similar(name: str, known: list[str]) -> list[str]:
    if name in known:
        return [name]
    import difflib

    starting = [each for each in known if len(name) > 2 and each.startswith(name)]
    return starting or difflib.get_close_matches(name, known)
