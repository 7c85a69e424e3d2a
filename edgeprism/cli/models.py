"""`edgeprism models`: lists, describes and verifies models."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprism.bundle.manifest import VISION_QUANTS
from edgeprism.cli.command import Command
from edgeprism.cli.stdin import stdin_as_file
from edgeprism.cli.terminal import StderrProgress, print_json, print_path
from edgeprism.errors import EXIT_DONE, EXIT_FAILED, EXIT_MODEL, UsageError
from edgeprism.files.safe_text import printable_line

if TYPE_CHECKING:
    from edgeprism.install.inventory import FileCheck, ModelEntry


@click.group("models")
def command() -> None:
    """List, describe and verify built-in and installed models, and those that `pull` can add."""


@command.command("list", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_(as_json: bool) -> None:
    """List every model that a command can name."""
    from edgeprism.install.inventory import list_models

    entries = list_models()
    if as_json:
        _print_json([asdict(entry) for entry in entries])
        return
    rows = [("NAME", "KIND", "STATE", "SIZE", "WHAT"), *map(_row, entries)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)]
        click.echo("  ".join([*cells, row[-1]]).rstrip())


def _row(entry: ModelEntry) -> tuple[str, ...]:
    about = (entry.problem or entry.description).partition("\n")[0]
    cells = (entry.name, entry.kind, entry.state, _size(entry.size), about)
    return tuple(map(printable_line, cells))


@command.command("show", cls=Command)
@click.argument("name", metavar="NAME|BUNDLE|FILE.gguf")
@click.option("--size", "sizes", multiple=True, metavar="WxH",
              help="Show instead the tiles and tokens of a picture of this size. Repeat for "
              "several pictures in one prompt.")  # fmt: skip
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Show instead the tiles and tokens of this picture; repeatable.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str, sizes: tuple[str, ...], images: tuple[Path, ...], as_json: bool) -> None:
    """Describe a model: licence, sources, dimensions, parity figures, digests."""
    from edgeprism.install.inventory import model_facts

    cost = _cost(name, sizes, images) if sizes or images else None
    if as_json:
        _print_json(model_facts(name) if cost is None else cost)
        return
    for line in _lines(model_facts(name) if cost is None else {**cost, **_in_words(cost)}):
        click.echo(line)


@command.command("verify", cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME|BUNDLE|FILE.gguf]...")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, one object per file.")
def verify(names: tuple[str, ...], as_json: bool) -> int:
    """Hash every file of the named models (default: of all built-in and installed ones).

    Exit code 4 means that a file is missing or differs from its recorded digest.
    """
    from edgeprism.install.inventory import list_models, verify_model

    chosen = names or tuple(e.name for e in list_models() if e.state != "available")
    checks: list[FileCheck] = []
    for name in chosen:
        checks += verify_model(name)
    if as_json:
        _print_json([asdict(check) for check in checks])
    for check in () if as_json else checks:
        verdict = f"WRONG {check.problem}" if check.problem else "intact"
        if not check.recorded:
            verdict = f"no digest is recorded; its sha256 is {check.sha256}"
        click.echo(printable_line(f"{check.model}: {check.file}: {verdict}"))
    return EXIT_MODEL if any(check.problem for check in checks) else EXIT_DONE


@command.command("verify-published", cls=Command)
@click.argument("name")
@click.option("--photos", multiple=True, required=True, metavar="PICTURE|FOLDER",
              type=click.Path(exists=True, path_type=Path),
              help="Photographs to caption, preferably five or more; repeatable.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Folder of the report.  [default: ./edgeprism-NAME-report]")  # fmt: skip
@click.option("--vision-quant", "vision_quants", multiple=True, type=click.Choice(VISION_QUANTS),
              help="Quantization of the vision graph; repeatable.  [default: "
              "int8]")  # fmt: skip
@click.option("--lm-quant", default="", metavar="QUANT",
              help="Quantization of the language model.  [default: Q4_K_M]")  # fmt: skip
def verify_published(
    name: str,
    photos: tuple[Path, ...],
    out: Path | None,
    vision_quants: tuple[str, ...],
    lm_quant: str,
) -> int:
    """Pull a published captioner, convert it, and write a report for the project.

    Needs a network: fetches the checkpoints, converts them, runs the parity gate, captions your
    photographs, and writes report.json and report.txt, which you can send to the project. They
    hold the pictures' names and captions, but not the pictures. If a step fails, the report says
    so and the exit code is 1.
    """
    from edgeprism.install.verify_published import Report
    from edgeprism.install.verify_published import verify_published as run

    folder = out or Path(f"edgeprism-{name}-report")
    Report.check_folder(folder)
    with StderrProgress().shown() as progress:
        report = run(
            name, photos, vision_quants=vision_quants, lm_quant=lm_quant, progress=progress
        )
    for path in report.write(folder):
        print_path(path)
    return EXIT_DONE if report.passed else EXIT_FAILED


def _cost(name: str, sizes: tuple[str, ...], images: tuple[Path, ...]) -> dict[str, Any]:
    """Count the tiles and tokens of a picture, or of several in one prompt, without encoding."""
    from edgeprism.perceive.captioner import Captioner
    from edgeprism.picture.read import read_picture

    if sizes and images:
        raise UsageError("--size and --image exclude each other.", "Choose one.")
    pictures = [
        read_picture(image, enough=1).size for image in stdin_as_file(map(str, images))
    ] or map(_to_size, sizes)
    with Captioner.load(name, device="cpu") as captioner:
        return {"name": captioner.bundle.name, **asdict(captioner.cost(*pictures))}


def _to_size(text: str) -> tuple[int, int]:
    from edgeprism.picture.read import MAX_HEIGHT, MAX_WIDTH

    match = re.fullmatch(r"([0-9]{1,6})[x×X]([0-9]{1,6})", text)
    width, height = map(int, match.groups()) if match else (0, 0)
    if not (1 <= width <= MAX_WIDTH and 1 <= height <= MAX_HEIGHT):
        raise UsageError(
            f"--size {text} is not the size of a picture.",
            f"Give WIDTHxHEIGHT in pixels, at most {MAX_WIDTH}x{MAX_HEIGHT}.",
        )
    return width, height


def _in_words(cost: dict[str, Any]) -> dict[str, str]:
    """Return size and grid, the pairs of numbers of a cost, in words."""
    (width, height), (down, across) = cost["size"], cost["grid"]
    if cost["pictures"] > 1:
        return {"size": "each picture's own", "grid": "each picture's own"}
    grid = f"{down} down, {across} across, and the whole picture"
    if not down:  # libmtmd reports the number of tiles, but not the grid
        grid = "not cut" if cost["tiles"] == 1 else "llama.cpp does not report it"
    return {"size": f"{width} × {height}", "grid": grid}


def _lines(facts: dict[str, Any], indent: str = "") -> list[str]:
    """Return nested facts as lines of indented text."""
    lines = []
    for key, value in facts.items():
        label = f"{indent}{printable_line(key)}:"
        if isinstance(value, dict):
            lines += [label, *_lines(value, indent + "  ")] if value else [f"{label} –"]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                lines += [label, *_lines(item, indent + "  ")]
        else:
            lines.append(f"{label} {_text(value)}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ("", []):
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    text = str(value)
    return printable_line(json.dumps(value, ensure_ascii=False) if "\n" in text else text)


def _size(size: int | None) -> str:
    if size is None:
        return "?"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _print_json(data: Any) -> None:
    print_json(data, indent=2)
