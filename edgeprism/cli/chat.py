"""`edgeprism chat IMAGE...`: a conversation about the same pictures."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from edgeprism.choices import DEFAULT_MODEL, INSTRUCTION_MODES
from edgeprism.cli import completion
from edgeprism.cli.advice import advise_on_captions
from edgeprism.cli.command import OLD_NAMES, Command, with_examples
from edgeprism.cli.errors import show_error
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
from edgeprism.cli.terminal import say
from edgeprism.errors import (
    EXIT_DONE,
    EXIT_MODEL,
    EXIT_SOME_FAILED,
    EXIT_UNAVAILABLE,
    EdgePrismError,
    Interrupted,
    OutputError,
    UsageError,
)
from edgeprism.files.safe_text import printable, printable_line

if TYPE_CHECKING:
    from edgeprism.perceive.looking import Looking
    from edgeprism.prism import Prism
    from edgeprism.reason.conversation import Conversation
    from edgeprism.records import Caption
    from edgeprism.vision.token_reduction import TokenLimit

_HELP = (
    "/focus TEXT describes the pictures again with that focus, /captions prints all captions, "
    "/help prints this, /quit (or exit, or Ctrl-D) ends."
)
_ENDS = ("/quit", "/exit", "/q", "quit", "exit")


@with_examples(
    "edgeprism chat photo.jpg",
    "edgeprism chat photo.jpg < questions.txt",
    old_names=OLD_NAMES,
)
@click.command("chat", cls=Command)
@click.argument(
    "images", nargs=-1, required=True, metavar="IMAGE...", shell_complete=completion.files
)
@click.option("-m", "--model", shell_complete=completion.captioners, default=default_captioner,
              metavar="NAME|BUNDLE|REFERENCE",
              show_default=f"$EDGEPRISM_MODEL, `edgeprism use`, or {DEFAULT_MODEL}",
              help="The captioner.")  # fmt: skip
@answering_options
@pair_options
@captioner_options
@click.option("--instruction-mode", type=click.Choice(INSTRUCTION_MODES),
              default="question", show_default=True,
              help="question: before each answer the pictures are described again with what the "
              "question needs. generic: they are described once. --focus TEXT sets one focus for "
              "all questions.")  # fmt: skip
@cache_option
@engine_options
def command(
    images: tuple[str, ...],
    model: str,
    reasoner: str,
    chat_format: str | None,
    served_models: tuple[str, ...],
    allow_network: bool,
    lm: str | None,
    mmproj: str | None,
    lm_chat_format: str | None,
    vision_quant: str | None,
    visual_tokens: TokenLimit | None,
    instruction: str | None,
    focus: str | None,
    caption_tokens: int | None,
    instruction_mode: str,
    answer_tokens: int,
    no_cache: bool,
    **engine: Any,
) -> int:
    """Answer questions about pictures, one per line of input.

    The captioner describes the pictures, and again where a question needs it, as in `ask`.
    /focus TEXT describes them with a focus, /captions prints all captions, /help the commands;
    /quit, exit or the end of input ends. Exit code 3: some questions had no answer.
    """
    from edgeprism.perceive.looking import Looking
    from edgeprism.prism import Prism
    from edgeprism.reason.conversation import Conversation

    if "-" in images:
        raise UsageError("Standard input holds the questions.", "Name the picture's file.")
    opened_reasoner = open_reasoner(
        reasoner, served_models=served_models, allow_network=allow_network,
        chat_format=chat_format, warm=True, **engine,
    )  # fmt: skip
    captioner = open_captioner(model, lm=lm, mmproj=mmproj, lm_chat_format=lm_chat_format,
                               vision_quant=vision_quant, visual_tokens=visual_tokens,
                               **engine)  # fmt: skip
    perceiver = perceiving([captioner], use_store=not no_cache)[0]
    prism = Prism(perceiver, opened_reasoner)
    looking = Looking(
        captioner,
        perceiver,
        images,
        instruction=instruction,
        caption_tokens=caption_tokens,
    )
    own_focus = bool(focus and focus.strip())
    chat = _Chat(
        prism, looking, Conversation(opened_reasoner), answer_tokens,
        "generic" if own_focus else instruction_mode,
    )  # fmt: skip
    with working("describing…"):
        captions = looking.first(focus)
        chat.conversation.tell(captions)
    advise_on_captions([captioner], captions)
    if sys.stdin.isatty():
        click.echo(_HELP, err=True)
    return EXIT_DONE if _answer_all(chat) else EXIT_SOME_FAILED


def _answer_all(chat: _Chat) -> bool:
    """Answer line after line to the end; return whether no line failed."""
    failed = False
    for line in _lines():
        if line.lower() in _ENDS:
            break
        try:
            chat.do(line)
        except (Interrupted, OutputError):
            raise  # an answer that cannot be printed is lost, and so would be the next
        except EdgePrismError as error:
            if error.exit_code in (EXIT_MODEL, EXIT_UNAVAILABLE):
                raise  # without a model or a device every other question would fail too
            failed = True
            show_error(error)
    return not failed


@dataclass
class _Chat:
    """A conversation about pictures, which are described again where a question needs it."""

    prism: Prism
    looking: Looking
    conversation: Conversation
    answer_tokens: int
    instruction_mode: str

    def do(self, line: str) -> None:
        """Answer one line, a question or a command."""
        word, _, rest = line.partition(" ")
        if word == "/help":
            click.echo(_HELP)
        elif word == "/captions":
            self._print(self.looking.captions)
        elif word == "/focus" and rest.strip():
            with working("describing again…"):
                captions = self._look(rest.strip())
            self._print(captions)
            if not captions:
                say("That focus brings nothing new; /captions prints all.")
        elif word.startswith("/"):
            raise UsageError(f"{line}: not a command of this chat.", _HELP)
        else:
            with working("looking and thinking…"):
                focus, _notes = self.prism.focus_for(line, self.instruction_mode)
                if focus:
                    self._look(focus)
                answer = self.conversation.ask(line, answer_tokens=self.answer_tokens)
            for note in answer.notes:
                say(note)
            click.echo(printable(answer.text))

    def _look(self, focus: str) -> list[Caption]:
        """Describe the pictures with a focus; the next question's prompt has what is new."""
        captions = self.looking.again(focus)
        if captions:
            self.conversation.tell(captions)
        return captions

    def _print(self, captions: Sequence[Caption]) -> None:
        for caption in captions:
            click.echo(_caption_line(caption))


def _caption_line(caption: Caption) -> str:
    return f"{printable_line(caption.image)}: {printable(caption.text)}"


def _lines() -> Iterator[str]:
    """Yield the lines of standard input without empty ones; a terminal's can be edited."""
    with contextlib.suppress(AttributeError):  # a stream that replaces sys.stdin may lack it
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    typed = sys.stdin.isatty() and sys.stdout.isatty()
    if typed and os.name == "posix":
        import readline  # noqa: F401  gives input() line editing and history
    while True:
        try:
            line = input("> ") if typed else sys.stdin.readline()
        except EOFError:
            click.echo()
            return
        if not line and not typed:
            return
        if line.strip():
            yield line.strip()
