"""`edgeprism models`: lists, describes and verifies models."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprism.choices import CONVERTED_QUANTS, is_reference
from edgeprism.cli import completion
from edgeprism.cli.chat_format import ChatFormat
from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.named_models import told_to_pull
from edgeprism.cli.sizes import text_to_bytes
from edgeprism.cli.stdin import stdin_as_file
from edgeprism.cli.terminal import (
    StderrProgress,
    confirm,
    in_columns,
    print_json,
    print_line,
    print_path,
    say,
    size_text,
)  # fmt: skip
from edgeprism.errors import EXIT_DONE, EXIT_FAILED, EXIT_MODEL, UsageError
from edgeprism.files.safe_text import printable_line

if TYPE_CHECKING:
    from edgeprism.install.inventory import FileCheck, ModelEntry


@click.group("models")
def command() -> None:
    """List, describe and verify built-in and installed models, and those that `pull` can add."""


@command.command("list", cls=Command)
@click.option("--fits", "limit", metavar="SIZE",
              help="Only models that run in this much memory, e.g. 8GB.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_(limit: str | None, as_json: bool) -> None:
    """List every model that a command can name.

    With --fits, also print the disk and memory that each needs for one picture at a time. The
    memory of models that are here is counted from their files, as `doctor --plan` does; behind a ~
    it is estimated from the size of what is to be fetched.
    """
    from edgeprism.bundle.defaults import BUILT_IN, default_model
    from edgeprism.install.inventory import list_models

    entries = list_models(count_memory=as_json or limit is not None)
    if limit is not None:
        most = text_to_bytes("--fits", limit)
        entries = [entry for entry in entries if entry.memory is not None and entry.memory <= most]
    if as_json:
        _print_json([asdict(entry) for entry in entries])
        return
    rows = [("NAME", "KIND", "STATE", "SIZE", "WHAT"), *map(_row, entries)]
    if limit is not None:
        needs = [("DISK", "MEMORY"), *map(_needs, entries)]
        rows = [(*row[:4], *need, row[4]) for row, need in zip(rows, needs, strict=True)]
    for line in in_columns(rows):
        click.echo(line)
    for kind in BUILT_IN:
        if is_reference(name := default_model(kind)):
            say(f"The default {kind} is {name}, which another program keeps.")


def _needs(entry: ModelEntry) -> tuple[str, str]:
    estimated = "~" if entry.memory is not None and not entry.memory_counted else ""
    return size_text(entry.disk), f"{estimated}{size_text(entry.memory)}"


def _row(entry: ModelEntry) -> tuple[str, ...]:
    first, _, rest = (entry.problem or entry.description).partition("\n")
    about = f"{first} {rest.partition(chr(10))[0].strip()}" if first.endswith(":") else first
    about = f"(default) {about}" if entry.default else about
    cells = (entry.name, entry.kind, entry.state, size_text(entry.size), about)
    return tuple(map(printable_line, cells))


@with_examples(
    "edgeprism models discover",
    "edgeprism models discover /mnt/disk/models ~/Downloads",
)
@command.command("discover", cls=Command)
@click.argument("folders", nargs=-1, metavar="[FOLDER]...",
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def discover(folders: tuple[Path, ...], as_json: bool) -> None:
    """Find models that other programs keep on this machine; nothing is copied or changed.

    Looks where Ollama, LM Studio, the hub's cache, llama.cpp, Jan and GPT4All keep models, or in
    each FOLDER instead, and reads headers alone. What stands under REFERENCE is a model's name for
    every command: a captioner's for --model, a reasoner's for --reasoner. Only `use` takes no path:
    `models add` gives the model of a folder a name.
    """
    from edgeprism.cli.discovered import lines
    from edgeprism.install.discover import discover as find
    from edgeprism.install.discover import looked_in

    found = find(folders)
    if as_json:
        _print_json([asdict(model) for model in found])
        return
    for line in lines(found):
        print_line(line)
    if not found:
        say("No models were found. Looked in:")
        for place in folders or [place for _, place in looked_in()]:
            say(f"  {place}")


@with_examples("edgeprism models add ./my-bundle", "edgeprism models add chat.gguf my-chat")
@command.command("add", cls=Command)
@click.argument("source", metavar="BUNDLE|FILE.gguf", type=click.Path(path_type=Path))
@click.argument("name", default="", metavar="[NAME]")
@click.option("--lm-chat-format", type=ChatFormat(), metavar="NAME",
              help="llama.cpp's name of a pair's chat format, for a file whose own template "
              "llama.cpp does not know.")  # fmt: skip
def add(source: Path, name: str, lm_chat_format: str | None) -> None:
    """Copy a bundle or a language model's GGUF file into the data folder, under NAME.

    A language model with its mmproj beside it becomes a captioner, one alone a reasoner. From then
    on every command knows it by that name. Without NAME, a bundle is called as its manifest says
    and a file as it is, without .gguf.
    """
    from edgeprism.install.own_models import add_model

    added, path = add_model(source, name, lm_chat_format=lm_chat_format)
    say(f"{added} is installed.")
    print_path(path)


@command.command("remove", cls=Command)
@click.argument("name", shell_complete=completion.models)
@click.option("--yes", is_flag=True, help="Delete without asking.")
def remove(name: str, yes: bool) -> None:
    """Delete an installed model from the data folder.

    What was pulled in GGUF files stays in the model hub's cache, which other programs share.
    """
    from edgeprism.bundle.adapters import model_of
    from edgeprism.bundle.defaults import BUILT_IN, chosen_model, default_model
    from edgeprism.install.own_models import installed_entry, remove_model
    from edgeprism.install.pulled_models import kept_in_cache

    if is_reference(name):
        raise UsageError(f"{name} belongs to another program.", "Delete it with that program.")
    if not yes and not confirm(f"Delete {installed_entry(name)}?"):
        raise UsageError("Nothing was deleted.", "Give --yes to delete without asking.")
    cache = kept_in_cache(name)
    was_default = [kind for kind in BUILT_IN if model_of(chosen_model(kind) or "") == name]
    say(f"{remove_model(name)}: deleted")
    for kind in was_default:
        say(f"It was the default {kind}. That is {default_model(kind)} now.")
    if cache is not None:
        say(f"Its files stay in the model hub's cache, and take room there: {cache}")


@command.command("show", cls=Command)
@click.argument("name", metavar="NAME|BUNDLE|FILE.gguf|REFERENCE", shell_complete=completion.models)
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
    for line in _lines(_shown(model_facts(name)) if cost is None else {**cost, **_in_words(cost)}):
        click.echo(line)


@command.command("verify", cls=Command)
@click.argument(
    "names",
    nargs=-1,
    shell_complete=completion.models,
    metavar="[NAME|BUNDLE|FILE.gguf|REFERENCE]...",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, one object per file.")
def verify(names: tuple[str, ...], as_json: bool) -> int:
    """Hash every file of the named models (default: of all built-in and installed ones).

    Exit code 4 means that a file is missing or differs from its recorded digest; 1, that no digest
    is recorded of a file that is named by its path.
    """
    from edgeprism.bundle.open import find_model, known_name
    from edgeprism.bundle.pulled import pull_command
    from edgeprism.install.inventory import list_models, verify_model

    chosen = names or tuple(e.name for e in list_models() if e.state != "available")
    checks: list[FileCheck] = []
    for name in chosen:
        checks += verify_model(name)
    if as_json:
        _print_json([asdict(check) for check in checks])
    for check in () if as_json else checks:
        verdict = f"WRONG {check.problem}" if check.problem else "intact"
        if not check.recorded and not check.problem:
            verdict = f"no digest is recorded; its sha256 is {check.sha256}"
        click.echo(printable_line(f"{check.model}: {check.file}: {verdict}"))
    for name in dict.fromkeys(check.model for check in checks if check.problem):
        if command := pull_command(name):
            say(f"Pull {name} again: {command}")
    if any(check.problem for check in checks):
        return EXIT_MODEL
    # The caller named a file that nobody vouches for: nothing was verified.
    unknown = [name for name in names if known_name(find_model(name)) is None]
    vouched = {check.model for check in checks if check.recorded}
    return EXIT_FAILED if any(name not in vouched for name in unknown) else EXIT_DONE


@command.command("verify-published", cls=Command)
@click.argument("name")
@click.option("--photos", multiple=True, required=True, metavar="PICTURE|FOLDER",
              type=click.Path(exists=True, path_type=Path),
              help="Photographs to caption, preferably five or more; repeatable.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Folder of the report.  [default: ./edgeprism-NAME-report]")  # fmt: skip
@click.option("--vision-quant", "vision_quants", multiple=True,
              type=click.Choice(CONVERTED_QUANTS),
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
    with told_to_pull(name), Captioner.load(name, device="cpu") as captioner:
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


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts without remarks that say nothing, for a person."""
    shown = {key: value for key, value in facts.items() if value or key not in ("problem", "note")}
    if "video" in facts and facts["video"] is None:
        shown["video"] = "not taken: pictures alone"
    parity = facts.get("parity")
    if parity and not (parity["passed"] or parity["figures"] or parity["failures"]):
        shown["parity"] = "no gate has run"  # `passed: no` would read as failed
    return shown


def _lines(facts: dict[str, Any], indent: str = "") -> list[str]:
    """Return nested facts as lines of indented text."""
    from edgeprism.install.licenses import restriction

    lines = []
    for key, value in facts.items():
        label = f"{indent}{printable_line(key)}:"
        if isinstance(value, dict):
            lines += [label, *_lines(value, indent + "  ")] if value else [f"{label} –"]
        elif key == "paths":
            lines += [label, *(f"{indent}  {_text(path)}" for path in value)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                lines += [label, *_lines(item, indent + "  ")]
        else:
            note = restriction(value) if key == "license" else ""
            lines.append(f"{label} {_text(value)}{note}")
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


def _print_json(data: Any) -> None:
    print_json(data, indent=2)
