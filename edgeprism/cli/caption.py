"""`edgeprism caption PICTURE...`: a description of each picture."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from edgeprism.bundle.open import DEFAULT_MODEL
from edgeprism.cli.options import (
    cache_option,
    captioner_options,
    engine_options,
    open_captioner,
    pair_options,
    working,
)  # fmt: skip
from edgeprism.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from edgeprism.perceive.captioner import Captioner
    from edgeprism.perceive.options import CaptionOptions
    from edgeprism.records import Caption


@click.command("caption")
@click.argument("images", nargs=-1, metavar="PICTURE|FOLDER|PATTERN|-...")
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    envvar="EDGEPRISM_MODEL",
    show_default=True,
    metavar="NAME|BUNDLE",
    help="A model's name or a bundle's folder.",
)
@click.option(
    "--together", is_flag=True, help="One caption of all pictures, for models made for several."
)
@click.option("--example", is_flag=True, help="A picture that came with EdgePrism, too.")
@pair_options("--chat-format")
@captioner_options
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 gives the same text every time.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="For a temperature above 0.")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object (an array for several).")
@click.option("--jsonl", is_flag=True, help="One JSON object a line, each as soon as it is there.")
@click.option("--csv", "as_csv", is_flag=True, help="A table with a header.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write results to FILE, which appears when they are complete.",
)
@click.option("--txt", is_flag=True, help="Write photo.txt beside each picture.")
@click.option("--xmp", is_flag=True, help="Write or merge photo.xmp (dc:description).")
@click.option(
    "--out-dir",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Put .txt and .xmp in a mirror of the folders under DIR.",
)
@click.option("--overwrite", is_flag=True, help="Replace .txt files that EdgePrism did not write.")
@click.option(
    "--files-from",
    type=click.Path(),
    metavar="FILE|-",
    help="Read paths from FILE or standard input, one a line.",
)
@click.option("--null", is_flag=True, help="Paths in --files-from end with NUL.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The first N pictures only.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and how long it may take.")
@click.option(
    "--batch",
    "parallel",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Captions to decode at a time.  [default: measured on this machine]",
)
@cache_option
@click.option(
    "--on-error",
    type=click.Choice(["skip", "stop"]),
    default="skip",
    show_default=True,
    help="What a picture that fails does to the rest.",
)
@click.option(
    "--errors",
    "errors_file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write failures to FILE, one JSON object a line.",
)
def command(
    images: tuple[str, ...],
    model: str,
    together: bool,
    example: bool,
    lm: str | None,
    mmproj: str | None,
    lm_chat_format: str | None,
    instruction: str | None,
    focus: str | None,
    caption_tokens: int | None,
    temperature: float,
    seed: int,
    vision_quant: str | None,
    device: str,
    threads: int | None,
    gpu_layers: int | None,
    **asked: Any,
) -> int:
    """Describe pictures in words.

    One picture is looked at at once. Several, or folders, go through the caption store: what was
    captioned before is known, and an interrupted run goes on where it ended. Exit code 3 says
    that some pictures failed; the others are described. With --together the model is shown all of
    them at once: "What changed between the two?"
    """
    form = _form(asked)
    if example:
        images += (_example(),)
    if not images and asked["files_from"] is None:
        raise UsageError(
            "No picture is named.", "edgeprism caption photo.jpg, or a folder, or --example."
        )
    captioner = open_captioner(
        model,
        lm=lm,
        mmproj=mmproj,
        lm_chat_format=lm_chat_format,
        device=device,
        threads=threads,
        gpu_layers=gpu_layers,
        vision_quant=vision_quant,
    )
    options: CaptionOptions = {
        "instruction": instruction,
        "focus": focus,
        "caption_tokens": caption_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    if together:
        _check_together(images, asked)
        return _caption_one(images, captioner, form, options)
    if _is_one(images, asked):
        return _caption_one(images, captioner, form, options)
    return _caption_many(images, captioner, form, options, asked)


# options of a run over many pictures: the parameters that they set
_FOR_MANY = ("as_csv", "output", "txt", "xmp", "files_from", "dry_run", "errors_file")


def _example() -> str:
    """The path of the first example picture."""
    from importlib.resources import files

    return str(files("edgeprism.models.nano").joinpath("examples", "scene1.png"))


def _form(asked: dict[str, Any]) -> str:
    chosen = [form for form, flag in (("json", "as_json"), ("jsonl", "jsonl"), ("csv", "as_csv"))
              if asked[flag]]  # fmt: skip
    if len(chosen) > 1:
        raise UsageError("--json, --jsonl and --csv exclude each other.", "Choose one.")
    return chosen[0] if chosen else "text"


def _is_one(images: tuple[str, ...], asked: dict[str, Any]) -> bool:
    """One file named directly, its result to stdout: no store, no workers."""
    if len(images) != 1 or any(asked[name] for name in _FOR_MANY):
        return False
    from edgeprism.picture.patterns import is_pattern

    image = images[0]
    return not os.path.isdir(image) and (os.path.lexists(image) or not is_pattern(image))


def _check_together(images: tuple[str, ...], asked: dict[str, Any]) -> None:
    flags = ["--" + name.replace("_", "-") for name in _FOR_MANY if asked[name]]
    if flags:
        given = ", ".join(flags).replace("--as-csv", "--csv").replace("--errors-file", "--errors")
        raise UsageError(
            f"--together makes one caption; {given} is for many.", "Name the pictures, use --json."
        )
    if images.count("-") > 1:
        raise UsageError("Standard input holds one picture.", "Name the others as files.")


def _caption_one(
    images: tuple[str, ...], captioner: Captioner, form: str, options: CaptionOptions
) -> int:
    """One caption: of a picture, or of several together."""
    sources: list[Any] = [sys.stdin.buffer if image == "-" else image for image in images]
    with working(f"{', '.join(images)}: looking…"):
        caption: Caption = captioner.caption(sources if len(sources) > 1 else sources[0], **options)
    for note in caption.notes:
        click.echo(f"{caption.image}: {note}", err=True)
    from edgeprism.files.safe_text import printable

    if form == "text":
        click.echo(printable(caption.text))
    else:
        indent = 2 if form == "json" else None
        click.echo(json.dumps(caption.to_dict(), ensure_ascii=False, indent=indent))
    return EXIT_DONE


def _caption_many(
    images: tuple[str, ...],
    captioner: Captioner,
    form: str,
    options: CaptionOptions,
    asked: dict[str, Any],
) -> int:
    from edgeprism.cli.folder import ResultOptions, caption_folder, dry_run
    from edgeprism.folder.run import FolderOptions, SidecarKind
    from edgeprism.picture.find import find_pictures

    search = find_pictures(
        images, files_from=asked["files_from"], null=asked["null"], limit=asked["limit"]
    )
    plan = captioner.plan(**options)
    if asked["dry_run"]:
        dry_run(search, captioner, plan, not asked["no_cache"])
        return EXIT_DONE
    sidecars: list[SidecarKind] = []
    if asked["txt"]:
        sidecars.append("txt")
    if asked["xmp"]:
        sidecars.append("xmp")
    folder_options = FolderOptions(
        sidecars=sidecars,
        out_dir=asked["out_dir"],
        overwrite=asked["overwrite"],
        use_store=not asked["no_cache"],
        parallel=asked["parallel"],
        on_error=asked["on_error"],
    )
    results = ResultOptions(form, asked["output"], asked["errors_file"])
    return caption_folder(search, captioner, plan, folder_options, results)
