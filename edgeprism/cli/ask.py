"""`edgeprism ask IMAGE... QUESTION`: the captioner perceives, the reasoner answers."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprism.choices import DEFAULT_MODEL, INSTRUCTION_MODES, STAGES
from edgeprism.cli import completion
from edgeprism.cli.advice import advise_on_captions
from edgeprism.cli.command import OLD_NAMES, Command, with_examples
from edgeprism.cli.options import (
    answering_options,
    cache_option,
    captioner_options,
    default_captioner,
    engine_options,
    open_captioner,
    open_reasoner,
    pair_options,
    perceiving,
    working,
)  # fmt: skip
from edgeprism.cli.stdin import check_stdin, stdin_as_file
from edgeprism.cli.terminal import print_json, say
from edgeprism.errors import EXIT_DONE, EdgePrismError, UsageError
from edgeprism.files.regular import read_limited
from edgeprism.files.safe_text import printable, printable_line

if TYPE_CHECKING:
    from edgeprism.perceive.captioner import Captioner
    from edgeprism.prism import Prism
    from edgeprism.reason.shape import Shape
    from edgeprism.records import Answer

_MAX_SCHEMA_BYTES = 1 << 20


@with_examples(
    'edgeprism ask photo.jpg "What is on the left?"',
    'edgeprism ask before.jpg after.jpg "What changed?" --show-captions',
    'edgeprism ask photo.jpg "Is it day or night?" --choices day,night',
    'edgeprism ask photo.jpg "What is it?" --reasoner http://127.0.0.1:8080/v1',
    old_names=OLD_NAMES,
)
@click.command("ask", cls=Command)
@click.argument(
    "images_and_question",
    nargs=-1,
    required=True,
    metavar="IMAGE... QUESTION",
    shell_complete=completion.files,
)
@click.option("-m", "--model", "models", multiple=True, shell_complete=completion.captioners,
              metavar="NAME|BUNDLE|REFERENCE",
              help="The captioner; repeat for several.  [default: $EDGEPRISM_MODEL, "
              f"`edgeprism use`, or {DEFAULT_MODEL}]")  # fmt: skip
@click.option("--merge-captions", is_flag=True,
              help="With several captioners: let the reasoner merge their descriptions "
              "first.")  # fmt: skip
@answering_options
@pair_options
@captioner_options
@click.option("--instruction-mode", type=click.Choice(INSTRUCTION_MODES),
              default="question", show_default=True,
              help="question: the reasoner first names what to observe, and the captioner's "
              "instruction asks for it. generic: one instruction for all questions. --focus TEXT "
              "sets what to observe.")  # fmt: skip
@click.option("--choices", metavar="A,B,…", help="Answer with exactly one of these.")
@click.option("--schema", "schema_file", type=click.Path(), metavar="FILE",
              help="Answer in JSON that validates against this JSON schema.")  # fmt: skip
@click.option("--stages", type=click.Choice(STAGES), default="auto",
              show_default=True, help="apart: only one of the two models is in memory at a time. "
              "auto: apart if both do not fit into the memory that is free.")  # fmt: skip
@cache_option
@click.option(
    "--show-captions",
    is_flag=True,
    help="Also print the captions, and which of their sentences support the answer.",
)
@engine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(
    images_and_question: tuple[str, ...],
    choices: str | None,
    schema_file: str | None,
    show_captions: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Answer a question about pictures from their descriptions alone."""
    *images, question = images_and_question
    if not images:
        raise UsageError(
            "`ask` needs a picture and a question.", 'For example: edgeprism ask img.jpg "…?"'
        )
    check_stdin(images)
    _check_order(images, question)
    shape = _shape(choices, schema_file)
    prism, captioners = _open_prism(**options)
    with working("looking and thinking…"):
        answer = prism.ask(
            stdin_as_file(images),
            question,
            focus=options["focus"],
            instruction_mode=options["instruction_mode"],
            instruction=options["instruction"],
            merge=options["merge_captions"],
            caption_tokens=options["caption_tokens"],
            answer_tokens=options["answer_tokens"],
            shape=shape,
            evidence=as_json or show_captions,
        )
    _show(answer, as_json, show_captions)
    advise_on_captions(captioners, prism.described)
    if shape is not None and not answer.text:
        raise EdgePrismError(
            f"The reasoner finished no answer of that shape within {options['answer_tokens']} "
            "tokens.",
            "Raise --answer-tokens.",
        )
    return EXIT_DONE


def _check_order(images: Sequence[str], question: str) -> None:
    """Raise UsageError where the question stands before a picture, which then looks like one."""
    # os.path's functions: pathlib's raise an error for a text that is too long to be a path
    if not os.path.isfile(question):
        return
    questions = [word for word in images if " " in word.strip() or word.rstrip().endswith("?")]
    if swapped := next((word for word in questions if not os.path.exists(word)), ""):
        raise UsageError(
            f"{swapped!r} is no picture, and {question} is no question: the question comes last.",
            f"For example: edgeprism ask {shlex.quote(question)} {shlex.quote(swapped)}",
        )
    raise UsageError(
        f"There is no question: the last argument, {question}, is a file.",
        f'For example: edgeprism ask {shlex.quote(question)} "What is on the left?"',
    )


def _open_prism(
    models: tuple[str, ...], reasoner: str, stages: str, **options: Any
) -> tuple[Prism, list[Captioner]]:
    """Open both stages as the options name them; the models load when needed.

    The captioners are also returned without the caption store before them.
    """
    from edgeprism.language.gpu import find_gpu
    from edgeprism.memory.plan import Plan, machine_memory
    from edgeprism.prism import Prism

    def settings(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in ("device", "threads", "gpu_layers", *names)}

    # The reasoner first, so that a missing one is reported before any picture is read.
    opened_reasoner = open_reasoner(
        reasoner, **settings("chat_format", "served_models", "allow_network")
    )
    perception = settings("vision_quant", "visual_tokens", "lm", "mmproj", "lm_chat_format")
    models = models or (default_captioner(),)
    captioners = [open_captioner(model, **perception) for model in dict.fromkeys(models)]
    apart = stages == "apart"
    if stages == "auto":
        parts = tuple(captioner.engines.memory_parts() for captioner in captioners)
        plan = Plan(parts, opened_reasoner.memory_parts(), machine_memory(find_gpu()))
        apart = plan.stages()[0] == "apart"
    prism = Prism(
        perceiving(captioners, use_store=not options["no_cache"]),
        opened_reasoner,
        apart=apart,
    )
    return prism, captioners


def _shape(choices: str | None, schema_file: str | None) -> Shape | None:
    """Return the answer's shape by --choices or --schema; None without them."""
    if choices is not None and schema_file is not None:
        raise UsageError("--choices and --schema exclude each other.", "Choose one.")
    if choices is not None:
        from edgeprism.reason.shape import choices_to_shape

        return choices_to_shape(choices.split(","))
    if schema_file is not None:
        from edgeprism.reason.json_schema import text_to_shape

        try:
            data = read_limited(Path(schema_file), _MAX_SCHEMA_BYTES, pipe=True)
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{schema_file}: not a text in UTF-8.", "Give a file with a JSON schema."
            ) from error
        except (OSError, ValueError) as error:
            raise _unreadable_schema(schema_file, error) from error
        return text_to_shape(text, schema_file)
    return None


def _unreadable_schema(given: str, error: OSError | ValueError) -> UsageError:
    """Return the error for --schema, which may have been given the schema itself."""
    if given.lstrip().startswith(("{", "[")):
        return UsageError(
            "--schema takes a file, not the schema itself.", "Write it to a file, and name that."
        )
    reason = getattr(error, "strerror", None) or str(error)
    return UsageError(
        f"{given}: cannot be read: {reason}.",
        "--schema takes a file with a JSON schema: check its path.",
    )


def _show(answer: Answer, as_json: bool, show_captions: bool) -> None:
    if as_json:
        print_json(answer.to_dict(), indent=2)
        return
    for note in answer.notes:
        say(note)
    if show_captions:
        if answer.focus:
            click.echo(printable(f"focus: {answer.focus}"))
        names = {caption.model.name for caption in answer.captions}
        for caption in answer.captions:
            by = f" by {caption.model.name}" if len(names) > 1 else ""
            click.echo(f"{printable_line(caption.image + by)}: {printable(caption.text)}")
        for item in answer.evidence or ():
            where = f"picture {item.picture}, {item.captioner}, sentence {item.sentence}"
            click.echo(printable(f"evidence: {where}: {item.text}"))
        if answer.evidence == ():
            click.echo("evidence: none; the description does not say")
    if answer.text:
        click.echo(printable(answer.text))
