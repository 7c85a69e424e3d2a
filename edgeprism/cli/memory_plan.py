"""The table that `edgeprism doctor --plan` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from edgeprism.cli.terminal import size_text
from edgeprism.files.safe_text import printable_line

if TYPE_CHECKING:
    from edgeprism.memory.parts import ModelParts
    from edgeprism.memory.plan import Plan

_MARGIN = 2


def print_plan(plan: Plan) -> None:
    """Print what each model takes and where, what fits, and whether models take turns."""
    from edgeprism.perceive.footprint import PICTURE

    click.echo(f"For a picture of {PICTURE[0]} × {PICTURE[1]} pixels, counted from the files:\n")
    rows = [row for model in (plan.process, *plan.models) for row in _rows(model)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for what, size, place, why in rows:
        line = (
            what.ljust(widths[0] + _MARGIN)
            + size.rjust(widths[1])
            + " " * _MARGIN
            + place.ljust(widths[2] + _MARGIN)
            + why
        )
        click.echo(printable_line(line.rstrip()))
    click.echo()
    for line in _summary(plan):
        click.echo(printable_line(line))


def _rows(model: ModelParts) -> Iterator[tuple[str, str, str, str]]:
    yield f"{model.role} {model.name}" if model.name != model.role else model.name, "", "", ""
    for part in model.parts:
        size = size_text(part.size) if part.needed else f"({size_text(part.size)})"
        yield f"  {part.what}", size, part.place, part.why


def _summary(plan: Plan) -> Iterator[str]:
    machine = plan.machine
    if machine.size is not None:
        free = f", {size_text(machine.free)} free" if machine.free != machine.size else ""
        source = f" ({machine.source})" if machine.source else ""
        yield f"memory: {size_text(machine.size)}{source}{free}"
    if machine.gpu is not None:
        kind = "the machine's memory" if machine.gpu.shared else size_text(machine.gpu.size)
        yield f"GPU: {machine.gpu.name}, {kind}, {size_text(machine.gpu.free)} free"
    ways = [("together", False), ("apart", True)] if len(plan.models) > 1 else [("in all", True)]
    for name, apart in ways:
        shortages = plan.shortages(apart=apart)
        verdict = f"does not fit: {'; '.join(shortages)}" if shortages else "fits"
        yield f"{name}: {_needs(plan, apart=apart)}; {verdict}"
    if len(plan.models) > 1:
        stages, why = plan.stages()
        yield f"--stages auto: {stages}, because {why}"


def _needs(plan: Plan, *, apart: bool) -> str:
    needed = plan.peak("cpu", apart=apart)
    loading = plan.peak("cpu", apart=apart, loading=True)
    text = size_text(needed)
    if loading > needed:
        text += f" (up to {size_text(loading)} while it loads, where memory is free)"
    on_gpu = plan.peak("gpu", apart=apart)
    return f"{text}, and {size_text(on_gpu)} of the GPU's" if on_gpu else text
