"""`edgeprism ask IMAGE... QUESTION`: the captioner perceives, the reasoner answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprism.bundle import DEFAULT_MODEL
from edgeprism.cli.options import (
    captioner_options,
    engine_options,
    open_captioner,
    open_reasoners,
    pair_options,
    perceiving,
    reasoner_options,
    working,
)  # fmt: skip
from edgeprism.errors import EdgePrismError, UsageError

if TYPE_CHECKING:
    from edgeprism.grammar import Shape
    from edgeprism.records import Answer


@click.command("ask")
@click.argument("images_and_question", nargs=-1, required=True, metavar="IMAGE... QUESTION")
@click.option("--captioner", "models", multiple=True, metavar="NAME|BUNDLE",
              help="Who perceives; repeat for several.  [default: $EDGEPRISM_MODEL or "
              f"{DEFAULT_MODEL}]")  # fmt: skip
@click.option("--merge-captions", is_flag=True,
              help="Several captioners: let the reasoner make one description of theirs "
              "first.")  # fmt: skip
@click.option("--reasoner", default="smollm2-135m", show_default=True, metavar="NAME|FILE.gguf|URL",
              help="Who answers: an installed reasoner, any chat GGUF, or an OpenAI-compatible "
              "server (http://127.0.0.1:8080/v1).")  # fmt: skip
@click.option("--chat-format", metavar="NAME",
              help="llama.cpp's name of the reasoner's chat format, where the file's own is "
              "not one that it knows.")  # fmt: skip
@reasoner_options
@pair_options("--lm-chat-format")
@captioner_options
@click.option("--instruction-mode", type=click.Choice(["question", "generic"]),
              default="question", show_default=True,
              help="Question: the reasoner first names what the question is about, and the "
              "captioner attends to that. --focus TEXT names it by hand.")  # fmt: skip
@click.option("--answer-tokens", type=click.IntRange(min=1), default=256, show_default=True,
              metavar="N", help="Longest answer.")  # fmt: skip
@click.option("--choices", metavar="A,B,…", help="Answer with exactly one of these.")
@click.option("--schema", "schema_file", type=click.Path(), metavar="FILE",
              help="Answer in JSON that validates against this JSON schema.")  # fmt: skip
@click.option("--stages", type=click.Choice(["auto", "together", "apart"]), default="auto",
              show_default=True, help="Apart: only one of the two models is in memory at a time; "
              "auto does so where both would take half of the machine's.")  # fmt: skip
@click.option("--no-cache", is_flag=True, help="Neither use nor fill the caption store.")
@click.option(
    "--show-captions",
    is_flag=True,
    help="Print the captions, and which of their sentences support the answer.",
)
@engine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(
    images_and_question: tuple[str, ...],
    models: tuple[str, ...],
    merge_captions: bool,
    reasoner: str,
    chat_format: str | None,
    served_models: tuple[str, ...],
    allow_network: bool,
    lm: str | None,
    mmproj: str | None,
    lm_chat_format: str | None,
    vision_quant: str | None,
    instruction: str | None,
    focus: str | None,
    instruction_mode: str,
    max_tokens: int | None,
    answer_tokens: int,
    choices: str | None,
    schema_file: str | None,
    stages: str,
    no_cache: bool,
    show_captions: bool,
    as_json: bool,
    **engine: Any,
) -> int:
    """Answer a question about pictures from their descriptions alone."""
    from edgeprism.device import memory_bytes, stages_apart
    from edgeprism.prism import Prism

    *images, question = images_and_question
    if not images:
        raise UsageError("A picture and a question are needed.", 'edgeprism ask img.jpg "…?"')
    shape = _shape(choices, schema_file)
    # the reasoner first: one that is missing is said before a picture is looked at
    thinker, *more = open_reasoners(
        [reasoner], served_models=served_models, allow_network=allow_network,
        chat_format=chat_format, **engine,
    )  # fmt: skip
    if more:
        raise UsageError("One reasoner answers.", "Give --reasoner-model once.")
    models = models or (os.environ.get("EDGEPRISM_MODEL") or DEFAULT_MODEL,)
    pair = {"lm": lm, "mmproj": mmproj, "lm_chat_format": lm_chat_format}
    captioners = [
        open_captioner(model, vision_quant=vision_quant, **pair, **engine)
        for model in dict.fromkeys(models)
    ]
    model_bytes = sum(c.model_bytes() for c in captioners) + thinker.model_bytes()
    prism = Prism(
        perceiving(captioners, use_store=not no_cache),
        thinker,
        apart=stages_apart(stages, model_bytes, memory_bytes()),
    )
    with working("looking and thinking…"):
        answer = prism.ask(
            images,
            question,
            focus=focus,
            instruction_mode=instruction_mode,
            instruction=instruction,
            merge=merge_captions,
            max_tokens=answer_tokens,
            caption_tokens=max_tokens,
            shape=shape,
            evidence=as_json or show_captions,
        )
    _show(answer, as_json, show_captions)
    if shape is not None and not answer.text:
        raise EdgePrismError(
            f"No answer of that shape within {answer_tokens} tokens.", "Raise --answer-tokens."
        )
    return 0


def _shape(choices: str | None, schema_file: str | None) -> Shape | None:
    """What --choices or --schema ask for."""
    if choices is not None and schema_file is not None:
        raise UsageError("--choices and --schema exclude each other.", "Choose one.")
    if choices is not None:
        from edgeprism.grammar import choices_to_shape

        return choices_to_shape(choices.split(","))
    if schema_file is not None:
        from edgeprism.schema import text_to_shape

        try:
            text = Path(schema_file).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise UsageError(f"{schema_file}: cannot be read: {error}.", "--schema FILE") from error
        return text_to_shape(text, schema_file)
    return None


def _show(answer: Answer, as_json: bool, show_captions: bool) -> None:
    if as_json:
        click.echo(json.dumps(answer.to_dict(), ensure_ascii=False, indent=2))
        return
    from edgeprism.outputs import printable

    for note in answer.notes:
        click.echo(printable(note), err=True)
    if show_captions:
        if answer.focus:
            click.echo(printable(f"focus: {answer.focus}"))
        names = {caption.model.name for caption in answer.captions}
        for caption in answer.captions:
            by = f" by {caption.model.name}" if len(names) > 1 else ""
            click.echo(printable(f"{caption.image}{by}: {caption.text}"))
        for found in answer.evidence or ():
            where = f"picture {found.picture}, {found.captioner}, sentence {found.sentence}"
            click.echo(printable(f"evidence: {where}: {found.text}"))
        if answer.evidence == ():
            click.echo("evidence: none; the description does not say")
    if answer.text:
        click.echo(printable(answer.text))
