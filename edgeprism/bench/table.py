"""A report, or several side by side, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeprism.bench.report import GROUPS, Report, Stage
from edgeprism.files.safe_text import counted, printable_line


def print_report(report: Report, console: Console) -> None:
    """Print one run: the stages with their floors, then the facts around them."""
    table = Table(title=Text(printable_line(report.title)), title_justify="left")
    table.add_column("stage")
    for header in ("median", "min .. max", "p95", "floor", "of the machine"):
        table.add_column(header, justify="right")
    for group, stages in by_group([report]):
        table.add_section()
        table.add_row(Text(group, style="bold"))
        for name in stages:
            if (stage := report.stage(*name)) is not None:
                table.add_row(*map(Text, stage_to_texts(stage)))
    console.print(table)
    for line in facts(report):
        console.print(Text(printable_line(line)))


def print_comparison(reports: Sequence[Report], names: Sequence[str], console: Console) -> None:
    """Print the medians of several runs side by side, with ratios to the first one's."""
    table = Table(title="median, and how many times the first one's", title_justify="left")
    table.add_column("stage")
    for name in names:
        table.add_column(Text(printable_line(name)), justify="right")
    for group, stages in by_group(reports):
        table.add_section()
        table.add_row(Text(group, style="bold"))
        for key in stages:
            table.add_row(*map(Text, comparison_row(key, reports)))
    console.print(table)
    for name, report in zip(names, reports, strict=True):
        console.print(Text(printable_line(f"{name}: {report.title}, {report.date}")))
        for reason in report.conditions.disturbed:
            console.print(Text(printable_line(f"{name} was disturbed: {reason}")), style="yellow")


def by_group(reports: Sequence[Report]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield what a group is, and (group, name) of each stage that any report has."""
    for group, meaning in GROUPS.items():
        keys = [(s.group, s.name) for report in reports for s in report.stages if s.group == group]
        if keys:
            yield meaning, list(dict.fromkeys(keys))


def comparison_row(key: tuple[str, str], reports: Sequence[Report]) -> list[str]:
    """Return a stage's name, and its median in each report with the ratio to the first."""
    stages = [report.stage(*key) for report in reports]
    known = [stage for stage in stages if stage is not None]
    first = stages[0]
    cells = [f"{known[0].label} ({known[0].unit})"]
    for stage in stages:
        if stage is None:
            cells.append("–")
        elif stage is first or first is None or not first.median:
            cells.append(number(stage.median))
        else:
            cells.append(f"{number(stage.median)} ({stage.median / first.median:.2f}×)")
    return cells


def stage_to_texts(stage: Stage) -> list[str]:
    """Return the cells of a stage: name, median, spread, p95, floor, share."""
    floor = stage.floor
    return [
        f"{stage.label} ({stage.unit})",
        number(stage.median),
        f"{number(stage.min)} .. {number(stage.max)}",
        number(stage.p95),
        "" if floor is None else number(floor.value),
        "" if floor is None else f"{floor.share:.0%}",
    ]


def number(value: float) -> str:
    """Return a number with three digits that count."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def facts(report: Report) -> list[str]:
    """Return the lines below the table."""
    rates, tokens, memory = report.rates, report.tokens, report.memory
    energy, threads = report.energy, report.model.threads
    return [
        f"{counted(report.settings.runs, 'run')}; {counted(tokens.visual, 'visual token')}, "
        f"{tokens.prompt} of text, "
        f"{tokens.generated} new; device {report.model.device}, "
        f"{'? threads' if threads is None else counted(threads, 'thread')}",
        f"this machine: {rates.float32_gflops:.0f} GFLOP/s float32, {rates.int8_gops:.0f} GOP/s "
        f"int8, {rates.read_gbs:.1f} GB/s of memory",
        "peak resident memory: " + ", ".join(
            f"{name} {'not told here' if size is None else f'{size / 1e6:.0f} MB'}"
            for name, size in (("captioner", memory.captioned), ("reasoner", memory.reasoner))
            if name == "captioner" or report.reasoner
        ) + (f"; of the GPU's memory {memory.device / 1e6:.0f} MB" if memory.device else ""),
        f"energy: {energy.joules_per_caption:.3g} J a caption, {energy.counted or 'the processor'}"
        if energy.joules_per_caption is not None
        else f"energy: not measurable here: {energy.reason}",
        *conditions_to_lines(report),
        *report.notes,
    ]  # fmt: skip


def conditions_to_lines(report: Report) -> list[str]:
    """Return what else went on during the run, and whether it disturbed the figures."""
    seen = report.conditions
    parts = []
    for what, before, after, form, when in (
        ("cores that other programs used", seen.others_before, seen.others_during, ".1f", "during"),
        ("clock in MHz", seen.clock_mhz_before, seen.clock_mhz_after, ".0f", "after"),
        ("temperature in °C", seen.temperature_c_before, seen.temperature_c_after, ".0f", "after"),
    ):
        if before is None or after is None:
            parts.append(f"{what}: not told here")
        else:
            parts.append(f"{what}: {before:{form}} before, {after:{form}} {when}")
    lines = ["; ".join(parts)]
    if seen.disturbed:
        lines.append("This run was disturbed: " + "; ".join(seen.disturbed) + ".")
    return lines
