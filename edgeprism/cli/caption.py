"""`edgeprism caption IMAGE...`: a sentence for each picture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from edgeprism.bundle import DEFAULT_MODEL
from edgeprism.cli.options import captioner_options, engine_options, open_captioner, working
from edgeprism.errors import ImageError, UsageError

if TYPE_CHECKING:
    from edgeprism.records import Caption

SOME_FAILED = 3


@click.command("caption")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--model", default=DEFAULT_MODEL, envvar="EDGEPRISM_MODEL", show_default=True,
              metavar="NAME|BUNDLE", help="A model's name or a bundle's folder.")  # fmt: skip
@captioner_options
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True,
              help="0 gives the same text every time.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="For a temperature above 0.")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object (an array for several).")
@click.option("--jsonl", is_flag=True, help="One JSON object a line, each as soon as it is there.")
def command(
    images: tuple[str, ...],
    model: str,
    instruction: str | None,
    focus: str | None,
    max_tokens: int | None,
    temperature: float,
    seed: int,
    as_json: bool,
    jsonl: bool,
    **engine: Any,
) -> int:
    """Describe each picture in words.

    Exit code 3 says that some pictures failed; the others are described.
    """
    if as_json and jsonl:
        raise UsageError("--json and --jsonl exclude each other.", "Choose one.")
    captioner = open_captioner(model, **engine)
    done: list[Caption] = []
    for image in images:
        try:
            with working(f"{image}: looking…"):
                caption = captioner.caption(
                    image,
                    instruction=instruction,
                    focus=focus,
                    max_tokens=max_tokens,
                    temperature=temperature,
                    seed=seed,
                )
        except ImageError as error:
            _show_failure(error)
            continue
        done.append(caption)
        _show(caption, several=len(images) > 1, as_json=as_json, jsonl=jsonl)
    if as_json and done:
        records = [caption.to_dict() for caption in done]
        whole = records if len(images) > 1 else records[0]
        click.echo(json.dumps(whole, ensure_ascii=False, indent=2))
    if len(done) == len(images):
        return 0
    return SOME_FAILED if done else ImageError.exit_code


def _show(caption: Caption, *, several: bool, as_json: bool, jsonl: bool) -> None:
    for note in caption.notes:
        click.echo(f"{caption.image}: {note}", err=True)
    if jsonl:
        click.echo(json.dumps(caption.to_dict(), ensure_ascii=False))
    elif not as_json:
        click.echo(f"{caption.image}: {caption.text}" if several else caption.text)


def _show_failure(error: ImageError) -> None:
    from edgeprism.cli import show_error

    show_error(error)
