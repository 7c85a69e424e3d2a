"""What Tab completes: names of models where a command takes a model, and files elsewhere.

After a prefix such as "ollama:", the names of models that another program keeps.

The shell completes a file itself when it is told the type "file". A name of a model goes first;
where none begins like the word, files are completed, because a model's path may be meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from click.shell_completion import CompletionItem

from edgeprism.choices import is_reference

if TYPE_CHECKING:
    import click


def files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a file's name."""
    return [CompletionItem(incomplete, type="file")]


def captioners(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a captioner of this machine, or a file's."""
    return _names("captioner", incomplete) or files(ctx, param, incomplete)


def reasoners(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a reasoner of this machine, or a file's."""
    return _names("reasoner", incomplete) or files(ctx, param, incomplete)


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of any model of this machine, or a file's."""
    return _names("", incomplete) or files(ctx, param, incomplete)


def pullable(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a model of the catalogue."""
    from edgeprism.models.catalogue import read_catalogue

    return [
        CompletionItem(name) for name in read_catalogue().names() if name.startswith(incomplete)
    ]


def _names(kind: str, incomplete: str) -> list[CompletionItem]:
    if is_reference(incomplete):
        return _references(kind, incomplete)
    from edgeprism.install.inventory import list_models

    return [
        CompletionItem(entry.name)
        for entry in list_models()
        if entry.state != "available"
        and kind in ("", entry.kind)
        and entry.name.startswith(incomplete)
    ]


def _references(kind: str, incomplete: str) -> list[CompletionItem]:
    """Complete a reference by the names of files, without opening one."""
    from edgeprism.bundle.elsewhere.references import names_of

    names = names_of(incomplete.partition(":")[0], pairs_only=kind == "captioner")
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
