"""What begins a reference to a model that another program keeps; light, as every start reads it."""

from __future__ import annotations

PREFIXES = ("ollama", "lmstudio", "hub", "llamacpp", "jan", "gpt4all")


def is_reference(model: object) -> bool:
    """Return whether a model's name is a reference: a string that begins with a known prefix."""
    return isinstance(model, str) and model.partition(":")[0] in PREFIXES and ":" in model
