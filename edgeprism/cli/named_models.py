"""Models as people name them: what a name means as a default, and what to say where it fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from edgeprism.choices import is_reference
from edgeprism.cli.rules import is_url
from edgeprism.cli.terminal import say
from edgeprism.errors import EdgePrismError, ModelError
from edgeprism.files.config import read_config

if TYPE_CHECKING:
    from edgeprism.bundle.defaults import Kind

# kind of model → the parameters of commands that name one
_PARAMETERS: dict[Kind, tuple[str, ...]] = {
    "captioner": ("model", "models", "captioners"),
    "reasoner": ("reasoner", "reasoners"),
}
# kind of model → the setting of the default model's chat format
_FORMAT_OF: dict[Kind, str] = {"captioner": "lm-chat-format", "reasoner": "chat-format"}


def model_to_default(name: str, kind: Kind | None = None) -> tuple[Kind, str]:
    """Return the kind of a model that is here, and the name by which settings hold it.

    Args:
        name: An installed model's name, a reference, a path, or a server's URL for a reasoner.
        kind: What the model shall be; None: what it is.

    Raises:
        ModelError: It is not here, cannot be read, or is of the other kind.
    """
    from edgeprism.bundle.adapters import model_of
    from edgeprism.bundle.kinds import no_reasoner, wrong_kind

    if is_url(name):
        if kind == "captioner":
            raise wrong_kind(name, "reasoner")
        return "reasoner", name
    if (model := model_of(name)) != name:
        if kind == "captioner":
            raise wrong_kind(name, "reasoner")
        return "reasoner", _with_adapter(model_to_default(model, "reasoner")[1], name)
    if is_reference(name):
        from edgeprism.install.discover import usable_facts

        facts = usable_facts(name)
        found: Kind = "captioner" if facts["kind"] == "captioner" else "reasoner"
        if kind == "captioner" and found == "reasoner":
            raise wrong_kind(name, "reasoner", [facts["note"]] if facts["note"] else [])
        if kind is None and found == "reasoner" and facts["note"]:
            say(f"note: {name} is taken as a reasoner: {facts['note']}.")
        return kind or found, facts["reference"]  # a captioner's language model answers, too
    from edgeprism.bundle.open import find_model, known_name

    with told_to_pull(name, kind):
        path = find_model(name)
    kinds, note = _kinds_of_path(path)
    if kind == "reasoner" and kind not in kinds:
        raise no_reasoner(path)
    if kind is not None and kind not in kinds:
        raise wrong_kind(name, kinds[0], [note] if note else [])
    return kind or kinds[0], known_name(path) or os.path.abspath(path)


def _with_adapter(model: str, name: str) -> str:
    """Return how settings hold a reasoner with the adapter that `name` names, a file by its path.

    Raises ModelError if there is no such adapter.
    """
    from edgeprism.bundle.adapters import MARK, split_name
    from edgeprism.bundle.open import is_path
    from edgeprism.reason.find import find_reasoner

    _, adapter = split_name(name)
    file = find_reasoner(name).adapter
    if file is not None and adapter is not None and is_path(adapter):
        adapter = os.path.abspath(file.path)
    return f"{model}{MARK}{adapter}"


def _kinds_of_path(path: Path) -> tuple[list[Kind], str]:
    """Return what a model can be, and why it is no captioner where it looks like one.

    Raises ModelError for one that cannot be read.
    """
    from edgeprism.bundle.elsewhere.kept import mmproj_beside
    from edgeprism.bundle.gguf_parts import read_model_header
    from edgeprism.bundle.gguf_purpose import no_language_model
    from edgeprism.bundle.open import open_bundle
    from edgeprism.vision.mmproj_checks import check_mmproj, row_width

    if path.is_dir():
        open_bundle(path)
        return ["captioner"], ""
    header = read_model_header(path)
    if reason := no_language_model(header):
        raise ModelError(f"{path}: cannot be used: {reason}.", "Name another model.")
    mmproj = mmproj_beside(path)
    if mmproj is None:
        return ["reasoner"], ""
    try:
        check_mmproj(mmproj, row_width(header))
    except ModelError as error:
        return ["reasoner"], f"its mmproj cannot be used: {error.summary.rstrip('.')}"
    return ["reasoner", "captioner"], ""


def make_default(kind: Kind, name: str) -> None:
    """Make a model the default of its kind; say which setting of the old one holds for it, too."""
    from edgeprism.bundle.defaults import SETTINGS, choose_model

    before = read_config().get(SETTINGS[kind])
    choose_model(kind, name)
    if name != before:
        say_what_still_holds(kind, name)


def say_what_still_holds(kind: Kind, name: str) -> None:
    """Say that a chat format, which was set for another default, holds for `name` as well."""
    key = _FORMAT_OF[kind]
    # a bundle and a server know their chat formats, so that the setting is idle
    if is_url(name) or (kind == "captioner" and not is_reference(name)):
        return
    config = read_config()
    commands = {name: table for name, table in config.items() if isinstance(table, dict)}
    for command, table in {"": config, **commands}.items():
        if key in table:
            setting = f"{command}.{key}" if command else key
            say(
                f"{setting} = {table[key]} still holds; `edgeprism config unset {setting}` ends it."
            )


@contextlib.contextmanager
def told_to_pull(name: str, kind: Kind | None = None) -> Iterator[None]:
    """Say of a catalogue's model that is not installed how to get it, inside the block.

    Of one that is not of the `kind` that is needed, getting it would not help.
    """
    try:
        yield
    except ModelError as error:
        from edgeprism.bundle.kinds import wrong_kind
        from edgeprism.install.inventory import list_models

        for entry in list_models():
            if entry.name == name and entry.state == "available":
                if kind is not None and entry.kind != kind:
                    raise wrong_kind(name, entry.kind) from error
                raise ModelError(
                    f"{name} is not installed yet.",
                    f"Get it with `edgeprism pull {name}`; `edgeprism models show {name}` says "
                    "what it needs.",
                ) from error
        raise


def is_named(kind: Kind) -> bool:
    """Return whether the command line, not a default, names the running command's models."""
    context = click.get_current_context()
    sources = map(context.get_parameter_source, _PARAMETERS[kind])
    return ParameterSource.COMMANDLINE in sources


@contextlib.contextmanager
def told_of_origin(kind: Kind, name: str) -> Iterator[None]:
    """Say of a model that the command line does not name where its name came from."""
    try:
        yield
    except EdgePrismError as error:
        if origin := _origin(kind, name):
            error.details = (*error.details, origin)
        raise


def _origin(kind: Kind, name: str) -> str:
    """Return what names a default model, in words; "" for EdgePrism's own and for a named one."""
    from edgeprism.bundle.defaults import SETTINGS, chosen_model
    from edgeprism.files.config import find_config

    context = click.get_current_context()
    sources = [context.get_parameter_source(parameter) for parameter in _PARAMETERS[kind]]
    if ParameterSource.COMMANDLINE in sources:
        return ""
    if ParameterSource.DEFAULT_MAP in sources:
        setting = f"{context.info_name}.{SETTINGS[kind]}"
    elif kind == "captioner" and os.environ.get("EDGEPRISM_MODEL") == name:
        return f"{name} is what the environment's EDGEPRISM_MODEL names."
    elif chosen_model(kind) == name:
        setting = SETTINGS[kind]
    else:
        return ""
    return f"{name} is the setting {setting} in {find_config()}; another: edgeprism use NAME"
