"""`edgeprism caption PICTURE...`: a description of each picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeprism.choices import DEFAULT_MODEL
from edgeprism.cli import completion
from edgeprism.cli.advice import advise_captioner, confirm_sidecars
from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.options import (
    cache_option,
    captioner_options,
    check_all_videos,
    default_captioner,
    engine_options,
    frame_options,
    open_captioner,
    pair_options,
    working,
)  # fmt: skip
from edgeprism.cli.scale_options import scale_options
from edgeprism.cli.settings import was_set
from edgeprism.cli.stdin import check_stdin, saved_stdin, stdin_as_file
from edgeprism.cli.terminal import is_quiet, print_json, say
from edgeprism.errors import EXIT_DONE, UsageError
from edgeprism.files.safe_text import listed, printable

if TYPE_CHECKING:
    from edgeprism.perceive.captioner import Captioner
    from edgeprism.perceive.options import CaptionOptions
    from edgeprism.picture.find import PictureSearch
    from edgeprism.records import Caption


@with_examples(
    "edgeprism caption photo.jpg",
    'edgeprism caption photo.jpg --focus "the number of boats"',
    "edgeprism caption photo.jpg --model ./my-bundle --visual-tokens auto",
    "edgeprism caption Photos --output captions.jsonl --errors failed.jsonl",
    "edgeprism caption Photos --txt --out-dir Texts",
    "curl -s https://example.org/a.jpg | edgeprism caption -",
    "edgeprism caption s3://bucket/photos --ray auto --parquet s3://bucket/captions",
    "edgeprism caption clip.mp4 --model ./my-video-model --frames 16",
    old_names={"--captioner": "--model", "--chat-format": "--lm-chat-format"},
)
@click.command("caption", cls=Command)
@click.argument(
    "images", nargs=-1, metavar="PICTURE|FOLDER|PATTERN|-...", shell_complete=completion.files
)
@click.option(
    "-m",
    "--model",
    shell_complete=completion.captioners,
    default=default_captioner,
    show_default=f"$EDGEPRISM_MODEL, `edgeprism use`, or {DEFAULT_MODEL}",
    metavar="NAME|BUNDLE|REFERENCE",
    help="A model's name, a bundle's folder, or what `models discover` lists.",
)
@click.option(
    "--together",
    is_flag=True,
    help="Make one caption of all pictures, with a model made for several.",
)
@click.option(
    "--example", is_flag=True, help="Caption the example picture that ships with EdgePrism."
)
@pair_options
@captioner_options
@frame_options
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Randomness of the text; 0 gives the same text every time.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Random seed for a temperature above 0.",
)
@engine_options
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, or an array for several."
)
@click.option("--jsonl", is_flag=True, help="Print a JSON object per line, each as soon as made.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a CSV table with a header.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write results to FILE, which appears when they are complete. Its suffix decides the form "
    "(.json, .jsonl, .csv, else text) unless an option does.",
)
@click.option("--txt", is_flag=True, help="Write photo.txt next to each picture.")
@click.option(
    "--xmp", is_flag=True, help="Write photo.xmp (dc:description), or merge into an existing one."
)
@click.option(
    "--out-dir",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Write .txt and .xmp files into a mirror of the folders under DIR.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace texts and descriptions that others wrote, which are kept (`edgeprism sidecars "
    "undo` brings them back), and an --output or --errors file that was edited or is another's.",
)
@click.option(
    "--append",
    is_flag=True,
    help="Write the caption behind texts and descriptions that others wrote.",
)
@click.option(
    "--sidecar-name",
    type=click.Choice(["stem", "full"]),
    default="stem",
    show_default=True,
    help="Names of new sidecars: photo.xmp or photo.jpg.xmp. One that exists keeps its name.",
)
@click.option(
    "--yes",
    is_flag=True,
    help="Write sidecars with a model that was not made for photographs, without asking.",
)
@click.option(
    "--files-from",
    type=click.Path(),
    metavar="FILE|-",
    help="Read paths from FILE or standard input, one per line.",
)
@click.option("--null", is_flag=True, help="Paths in --files-from end with NUL.")
@click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Pass over files and folders, as a line of .gitignore does; repeatable.",
)
@scale_options
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="End after N captions; pictures that fail do not count.",
)
@click.option("--dry-run", is_flag=True, help="Print the work and its estimated time, and end.")
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
    help="After a picture fails: skip it, or stop before the next.",
)
@click.option(
    "--errors",
    "errors_file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write failures to FILE, one JSON object per line.",
)
def command(
    images: tuple[str, ...], model: str, together: bool, example: bool, **options: Any
) -> int:
    """Describe pictures in words.

    Several pictures, or folders, use the caption store: it keeps finished captions, and an
    interrupted run continues where it stopped. A single picture does without the store. Exit code
    3 means that some pictures failed; the others have captions. With --together the model sees all
    pictures in one prompt: "What changed between the two?" A model made for videos describes those
    that are named, each by some of its frames; folders' videos are passed over.
    """
    if options["ray"]:
        from edgeprism.cli.cluster import caption_on_ray

        return caption_on_ray(images, model, options)
    form = _form(options)
    if example:
        images += (_example(),)
    if not images and options["files_from"] is None:
        raise UsageError(
            "No picture is named.", "Name one (edgeprism caption photo.jpg), or use --example."
        )
    search = None
    if options["frames"] is not None or options["frames_per_second"] is not None:
        check_all_videos(images)
    if together:
        _check_together(images, options)
    elif not _is_one(images, options):
        search = _search(images, options, form)
    elif options["parallel"] and not was_set(click.get_current_context(), "parallel"):
        raise UsageError("--batch does nothing: one picture makes one caption.", "Leave it out.")
    settings = {name: options[name] for name in _CAPTIONER_OPTIONS}
    captioner = open_captioner(model, **settings)
    caption_options: CaptionOptions = {
        "instruction": options["instruction"],
        "focus": options["focus"],
        "caption_tokens": options["caption_tokens"],
        "temperature": options["temperature"],
        "seed": options["seed"],
        "frames": options["frames"],
        "frames_per_second": options["frames_per_second"],
    }
    if search is None:
        return _caption_one(images, captioner, form, caption_options)
    return _caption_many(search, images, captioner, form, caption_options, options)


# Parameters that open_captioner takes.
_CAPTIONER_OPTIONS = (
    "lm", "mmproj", "lm_chat_format", "device", "threads", "gpu_layers", "vision_quant",
    "visual_tokens",
)  # fmt: skip
# Parameters whose options only make sense for a run over many pictures.
_FOR_MANY = (
    "as_csv", "output", "txt", "xmp", "files_from", "dry_run", "errors_file", "exclude", "shard",
)  # fmt: skip


def _example() -> str:
    """Return the path of the first example picture."""
    from importlib.resources import files

    return str(files("edgeprism.models.nano").joinpath("examples", "scene1.png"))


# the formats beside text: the parameters that choose them
_FORM_OF_SUFFIX = {"json": "json", "jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv"}
_FORMS = {"json": "as_json", "jsonl": "jsonl", "csv": "as_csv"}


def _form(output_options: dict[str, Any]) -> str:
    chosen = [form for form, parameter in _FORMS.items() if output_options[parameter]]
    if len(chosen) > 1:
        flags = [f"--{form}" for form in _FORMS]
        raise UsageError(f"{listed(flags)} exclude each other.", "Choose one.")
    if chosen:
        return chosen[0]
    suffix = Path(output_options["output"] or "").suffix.lower().removeprefix(".")
    return _FORM_OF_SUFFIX.get(suffix, "text")


def _is_one(images: tuple[str, ...], output_options: dict[str, Any]) -> bool:
    """Return whether a single file is named and its result goes to stdout.

    Such a caption needs neither the store nor worker processes.
    """
    if len(images) != 1 or any(output_options[name] for name in _FOR_MANY):
        return False
    from edgeprism.picture.patterns import is_pattern

    image = images[0]
    return not os.path.isdir(image) and (os.path.lexists(image) or not is_pattern(image))


def _check_together(images: tuple[str, ...], output_options: dict[str, Any]) -> None:
    context = click.get_current_context()
    idle = (*_FOR_MANY, "parallel", "limit", "on_error")
    flags = [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name in idle
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if flags:
        verb = "is" if len(flags) == 1 else "are"
        raise UsageError(
            f"--together makes one caption; {listed(flags)} {verb} for many.",
            "Name the pictures as arguments, and use --json for a record.",
        )
    check_stdin(images)


def _caption_one(
    images: tuple[str, ...], captioner: Captioner, form: str, options: CaptionOptions
) -> int:
    """Print one caption, of a picture or of several together."""
    sources = stdin_as_file(images)
    with working(f"{', '.join(images)}: describing…"):
        caption: Caption = captioner.caption(sources if len(sources) > 1 else sources[0], **options)
    for note in caption.notes:
        say(f"{caption.image}: {note}")
    if form == "text":
        click.echo(printable(caption.text))
    else:
        indent = 2 if form == "json" else None
        print_json(caption.to_dict(), indent=indent)
    manifest = captioner.bundle.manifest
    advise_captioner(manifest, says_nothing=manifest.says_nothing(caption.text))
    return EXIT_DONE


def _search(images: tuple[str, ...], options: dict[str, Any], form: str) -> PictureSearch:
    """Find the pictures, and check every path that the run will write to."""
    from edgeprism.output.places import Place, check_places, check_writable
    from edgeprism.picture.find import find_pictures

    check_stdin(images)
    if "-" in images and (options["txt"] or options["xmp"]):
        raise UsageError(
            "A picture on standard input has no place for a .txt or .xmp file.",
            "Save it to a file, or print its caption.",
        )
    search = find_pictures(
        images,
        stdin_picture=saved_stdin() if "-" in images else "-",
        files_from=options["files_from"],
        null=options["null"],
        limit=options["limit"] if options["dry_run"] else None,  # a run counts its captions
        exclude=options["exclude"],
    )
    wanted = (("output", form), ("errors_file", "errors"))
    places = [Place(Path(options[name]), name, kind) for name, kind in wanted if options[name]]
    lists = [options["files_from"]] if options["files_from"] else []
    check_places(places, [*search.named, *lists], overwrite=options["overwrite"])
    if options["out_dir"]:
        check_writable(Path(options["out_dir"]), Path(options["out_dir"]))
    return search


def _reserved(options: dict[str, Any]) -> list[Path]:
    """Return the run's lists and results, which no sidecar may replace."""
    names = (options["files_from"], options["output"], options["errors_file"])
    return [Path(name) for name in names if name and name != "-"]


def _caption_many(
    search: PictureSearch,
    images: tuple[str, ...],
    captioner: Captioner,
    form: str,
    options: CaptionOptions,
    output_options: dict[str, Any],
) -> int:
    from edgeprism.cli.folder import ResultOptions, caption_folder, dry_run, tell_missing
    from edgeprism.folder.run import FolderOptions, SidecarKind

    told = {} if is_quiet() else tell_missing(images, fail=not output_options["dry_run"])
    plan = captioner.plan(**options)
    sidecars: list[SidecarKind] = []
    if output_options["txt"]:
        sidecars.append("txt")
    if output_options["xmp"]:
        sidecars.append("xmp")
    if sidecars and not output_options["dry_run"] and not output_options["yes"]:
        confirm_sidecars(captioner.bundle.manifest)
    folder_options = FolderOptions(
        sidecars=sidecars,
        out_dir=output_options["out_dir"],
        overwrite=output_options["overwrite"],
        append=output_options["append"],
        sidecar_name=output_options["sidecar_name"],
        use_store=not output_options["no_cache"],
        parallel=output_options["parallel"],
        on_error=output_options["on_error"],
        limit=output_options["limit"],
        shard=output_options["shard"],
        reserved=_reserved(output_options),
    )
    if output_options["dry_run"]:
        return dry_run(search, captioner, plan, folder_options)
    results = ResultOptions(form, output_options["output"], output_options["errors_file"])
    return caption_folder(
        search, captioner, plan, folder_options, results, told=told, quiet=is_quiet()
    )
