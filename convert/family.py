"""The type of a checkpoint family; each file of `families/` defines one as FAMILY.

The command line reads these objects for its help, so this file and the families import nothing
heavy at their top: their functions import what they need to read a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeprism.errors import UsageError

if TYPE_CHECKING:
    from edgeprism.convert.parts import PublishedCaptioner

Value = Path | str | bool | None


@dataclass(frozen=True)
class Option:
    """One setting of a family, which the command line spells with dashes.

    Args:
        name: The keyword with which `Family.read` receives the value.
        kind: "folder" gives a Path, "flag" a bool, "text" a str, "choice" one of `choices`.
        help: The option's help text on the command line.
        required: Whether a conversion needs a value.
        default: The value if the caller passes none.
        choices: The allowed values of a "choice".
        metavar: What the command line's help calls the value of a "text".
    """

    name: str
    kind: Literal["folder", "choice", "flag", "text"]
    help: str
    required: bool = False
    default: Value = None
    choices: tuple[str, ...] = ()
    metavar: str = "NAME"


# those of read/conversations.py, which is not imported for a help text
CONVERSATION_NAMES = (
    "vicuna-v1", "vicuna-user", "vicuna-v0", "llama-2", "mistral", "user-assistant", "chatml",
    "qwen", "interleave", "llama-3", "llama-3-system", "gemma", "prismatic-pure",
    "prismatic-vicuna",
)  # fmt: skip

# of language models that llama.cpp runs, with the default first (`language/write_gguf.py`)
GGUF_QUANTS = ("Q4_K_M", "F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0",
               "Q4_K_S", "Q4_1", "Q4_0")  # fmt: skip

CONVERSATION = Option(
    "conversation",
    "text",
    f"Conversation template: {', '.join(CONVERSATION_NAMES)}.  [default: that of the published "
    "models]",
    default="",
)


@dataclass(frozen=True)
class Family:
    """A layout of published checkpoints that `edgeprism convert` understands.

    Args:
        name: The name on the command line; its file has underscores for dashes.
        summary: One line for `edgeprism convert --list` and the documentation.
        help: The text of `edgeprism convert NAME --help`.
        options: The settings that a caller may choose.
        read: Reads the folders. Takes a value for each of `options` and a `progress`, all by
            keyword. Raises UsageError and CheckpointError.
        model_types: The `model_type`s of the family's config.json.
        signs: Fields of config.json and file names that are typical of the family's folder.
        lm_quants: The quantizations of its language model, the default first.
    """

    name: str
    summary: str
    help: str
    options: tuple[Option, ...]
    read: Callable[..., PublishedCaptioner]
    model_types: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()
    lm_quants: tuple[str, ...] = GGUF_QUANTS

    def settings(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """Return a value for every option: that of `given`, or the default.

        Raises UsageError for unknown settings and for missing required ones.
        """
        names = [option.name for option in self.options]
        unknown = [name for name in given if name not in names]
        missing = [o.name for o in self.options if o.required and given.get(o.name) is None]
        if unknown or missing:
            faults = [f"{name} is not one of its settings" for name in unknown]
            faults += [f"{name} is missing" for name in missing]
            raise UsageError(
                f"{self.name} cannot be converted with these settings: {'; '.join(faults)}.",
                f"Its settings: {', '.join(names)}.",
            )
        return {
            option.name: option.default if given.get(option.name) is None else given[option.name]
            for option in self.options
        }
