"""What `models discover` prints: a table of models, then what cannot be used, with the reason."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from edgeprism.cli.terminal import in_columns, size_text

if TYPE_CHECKING:
    from edgeprism.install.discover import Discovered

_HEAD = ("REFERENCE", "KIND", "WHAT", "QUANT", "SIZE", "PROGRAM")


def lines(found: Sequence[Discovered]) -> Iterator[str]:
    """Yield the lines, unescaped; a name of a file may hold anything."""
    usable = [model for model in found if not model.problem]
    if usable:
        head, *rows = in_columns([_HEAD, *map(_row, usable)])
        yield head
        for model, row in zip(usable, rows, strict=True):
            yield row
            for reference in model.also:
                yield f"    also {shlex.quote(reference)}"
            if model.note:
                yield f"    {model.note}"
    unusable = [model for model in found if model.problem]
    if unusable:
        yield from ["", "Not usable:"] if usable else ["Not usable:"]
        for model in unusable:
            place = model.paths[0] if model.paths else ""
            yield f"  {model.reference or place} ({model.program}): {model.problem}"


def _row(model: Discovered) -> tuple[str, ...]:
    what = f"{model.architecture}/{model.projector}" if model.projector else model.architecture
    reference = shlex.quote(model.reference) if model.reference else "–"
    return (reference, model.kind, what, model.quant or "?", size_text(model.size), model.program)
