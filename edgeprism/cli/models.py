"""`edgeprism models`: what there is, what it is, and whether it is intact."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprism.bundle.manifest import VISION_QUANTS
from edgeprism.errors import EXIT_DONE, EXIT_FAILED, EXIT_MODEL, UsageError
from edgeprism.files.safe_text import printable_line

if TYPE_CHECKING:
    from edgeprism.install.inventory import FileCheck, ModelEntry


@click.group("models")
def command() -> None:
    """Built-in and installed models, and those that `pull` can add."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
def list_(as_json: bool) -> None:
    """Every model that can be named."""
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


@command.command("show")
@click.argument("name", metavar="NAME|BUNDLE|FILE.gguf")
@click.option("--size", "sizes", multiple=True, metavar="WxH",
              help="Show instead what a picture of this size costs: tiles, tokens. Repeated: "
              "several pictures in one prompt.")  # fmt: skip
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="The same for this picture.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(name: str, sizes: tuple[str, ...], images: tuple[Path, ...], as_json: bool) -> None:
    """What a model is: licence, sources, dimensions, parity figures, digests."""
    from edgeprism.install.inventory import model_facts

    cost = _cost(name, sizes, images) if sizes or images else None
    if as_json:
        _print_json(model_facts(name) if cost is None else cost)
        return
    for line in _lines(model_facts(name) if cost is None else {**cost, **_in_words(cost)}):
        click.echo(line)


@command.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME|BUNDLE|FILE.gguf]...")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, one object a file.")
def verify(names: tuple[str, ...], as_json: bool) -> int:
    """Hash every file of the models whole (default: of all that are here).

    Exit code 4 says that a file is missing or is not what was recorded.
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
            verdict = f"not recorded anywhere: sha256 {check.sha256}"
        click.echo(printable_line(f"{check.model}: {check.file}: {verdict}"))
    return EXIT_MODEL if any(check.problem for check in checks) else EXIT_DONE


@command.command("verify-published")
@click.argument("name")
@click.option("--photos", multiple=True, required=True, metavar="PICTURE|FOLDER",
              type=click.Path(exists=True, path_type=Path),
              help="Photographs to caption, five if you can; repeatable.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Where the report goes.  [default: ./edgeprism-NAME-report]")  # fmt: skip
@click.option("--vision-quant", "vision_quants", multiple=True, type=click.Choice(VISION_QUANTS),
              help="Variant of the vision graph; repeatable.  [default: int8]")  # fmt: skip
@click.option("--lm-quant", default="", metavar="QUANT",
              help="Language model's quantization.  [default: Q4_K_M]")  # fmt: skip
def verify_published(
    name: str,
    photos: tuple[Path, ...],
    out: Path | None,
    vision_quants: tuple[str, ...],
    lm_quant: str,
) -> int:
    """Pull a published captioner, convert it, and report how it did.

    For someone with a network: fetches the checkpoints, converts them, runs the parity gate,
    captions your photographs, and writes report.json and report.txt to send to the project. They
    hold the pictures' names and captions, not the pictures. The report is written even if a step
    fails; the exit code is then 1.
    """
    from edgeprism.install.verify_published import verify_published as run
    from edgeprism.progress import StderrProgress

    folder = out or Path(f"edgeprism-{name}-report")
    with StderrProgress().shown() as progress:
        report = run(
            name, photos, vision_quants=vision_quants, lm_quant=lm_quant, progress=progress
        )
    for path in report.write(folder):
        click.echo(str(path))
    return EXIT_DONE if report.passed else EXIT_FAILED


def _cost(name: str, sizes: tuple[str, ...], images: tuple[Path, ...]) -> dict[str, Any]:
    """What a picture would cost, or several in one prompt, without encoding them."""
    from edgeprism.perceive.captioner import Captioner
    from edgeprism.picture.read import read_picture

    if sizes and images:
        raise UsageError("--size and --image name different pictures.", "Give one of them.")
    pictures = [read_picture(image, enough=1).size for image in images] or map(_to_size, sizes)
    with Captioner.load(name, device="cpu") as captioner:
        return {"name": captioner.bundle.manifest.name, **asdict(captioner.cost(*pictures))}


def _to_size(text: str) -> tuple[int, int]:
    from edgeprism.picture.read import MAX_HEIGHT, MAX_WIDTH

    found = re.fullmatch(r"([0-9]{1,6})[x×X]([0-9]{1,6})", text)
    width, height = map(int, found.groups()) if found else (0, 0)
    if not (1 <= width <= MAX_WIDTH and 1 <= height <= MAX_HEIGHT):
        raise UsageError(
            f"--size {text} is not the size of a picture.",
            f"Give WIDTHxHEIGHT in pixels, at most {MAX_WIDTH}x{MAX_HEIGHT}.",
        )
    return width, height


def _in_words(cost: dict[str, Any]) -> dict[str, str]:
    """What a picture's cost says in pairs of numbers."""
    (width, height), (down, across) = cost["size"], cost["grid"]
    if cost["pictures"] > 1:
        return {"size": "of each its own", "grid": "of each its own"}
    grid = f"{down} down, {across} across, and the whole picture"
    if not down:  # libmtmd tells how many tiles there are, not how they lie
        grid = "not cut" if cost["tiles"] == 1 else "not told by llama.cpp"
    return {"size": f"{width} × {height}", "grid": grid}


def _lines(facts: dict[str, Any], indent: str = "") -> list[str]:
    """Nested facts as aligned text."""
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
    click.echo(json.dumps(data, ensure_ascii=False, indent=2))
