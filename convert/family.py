"""What a family of checkpoints is: each file of `families/` defines one, as FAMILY.

The command line reads these objects for its help, so this file and those import nothing heavy at
their top: what reads a checkpoint is imported inside the functions that need it.
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
        name: The keyword under which `Family.read` gets the value.
        kind: "folder" gives a Path, "flag" a bool, "text" a str, "choice" one of `choices`.
        help: What the command line says of it.
        required: Whether there is no conversion without it.
        default: The value where none is given.
        choices: The values that a "choice" may have.
    """

    name: str
    kind: Literal["folder", "choice", "flag", "text"]
    help: str
    required: bool = False
    default: Value = None
    choices: tuple[str, ...] = ()


CONVERSATION = Option(
    "conversation",
    "text",
    "What stands around picture and question.  [default: as the published models]",
    default="",
)


@dataclass(frozen=True)
class Family:
    """A layout of published checkpoints that `edgeprism convert` understands.

    Args:
        name: As on the command line; the file is named the same, with underscores for dashes.
        summary: One line for `edgeprism convert --list` and the documentation.
        help: The text of `edgeprism convert NAME --help`.
        options: What a caller may set.
        read: Called with a value for each of `options` and a `progress`, all by keyword. Returns
            what it found in the folders. Raises UsageError and CheckpointError.
        model_types: The `model_type`s by which its config.json is recognised.
        signs: Fields of its config.json and names of files by which its folder is recognised.
    """

    name: str
    summary: str
    help: str
    options: tuple[Option, ...]
    read: Callable[..., PublishedCaptioner]
    model_types: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()

    def settings(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """A value for every option: the one given, or its default.

        Raises UsageError for a setting that the family does not have, and for one that it needs.
        """
        names = [option.name for option in self.options]
        unknown = [name for name in given if name not in names]
        missing = [o.name for o in self.options if o.required and given.get(o.name) is None]
        if unknown or missing:
            faults = [f"{name} is no setting of it" for name in unknown]
            faults += [f"{name} is missing" for name in missing]
            raise UsageError(
                f"{self.name} cannot be converted so: {'; '.join(faults)}.",
                f"Its settings: {', '.join(names)}.",
            )
        return {
            option.name: option.default if given.get(option.name) is None else given[option.name]
            for option in self.options
        }
