"""Options that several commands share, and the objects that those options open."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import click

from edgeprism.choices import (
    ALL,
    AUTO,
    AUTO_LEAST,
    DEVICES,
    LEAST_RATE,
    MAX_FRAMES,
    MOST_RATE,
    VISION_QUANTS,
    is_reference,
)
from edgeprism.cli import completion
from edgeprism.cli.chat_format import ChatFormat
from edgeprism.cli.named_models import (
    is_named,
    told_of_origin,
    told_to_pull,
)
from edgeprism.cli.rules import is_url
from edgeprism.cli.settings import was_set
from edgeprism.cli.terminal import is_quiet, say
from edgeprism.errors import UsageError
from edgeprism.files.safe_text import printable_line

if TYPE_CHECKING:
    from edgeprism.bundle.open import Bundle
    from edgeprism.perceive.captioner import Captioner
    from edgeprism.perceive.looking import Perceiver
    from edgeprism.perceive.options import CaptionerOptions
    from edgeprism.reason.base import BaseReasoner
    from edgeprism.reason.local import ReasonerOptions


def default_captioner() -> str:
    """Return the captioner to use when none is named."""
    from edgeprism.bundle.defaults import default_model

    return default_model("captioner")


def default_reasoner() -> str:
    """Return the reasoner to use when none is named."""
    from edgeprism.bundle.defaults import default_model

    return default_model("reasoner")


def _cores_at_most(
    _context: click.Context, _parameter: click.Parameter, threads: int | None
) -> int | None:
    """Say so where more threads are requested than there are cores."""
    if threads is not None and threads > 1:
        from edgeprism.machine.facts import available_cores

        if threads > (cores := available_cores()):
            say(f"--threads {threads}: this process may use {cores} at most.")
            return cores
    return threads


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--device, --threads, --gpu-layers."""
    for option in (
        click.option("--gpu-layers", type=click.IntRange(min=0), metavar="N",
                     help="Layers of the language model on the GPU.  [default: all]"),
        click.option("--threads", type=click.IntRange(min=1), metavar="N", callback=_cores_at_most,
                     help="CPU threads.  [default: the cores that are free]"),
        click.option("--device", type=click.Choice(DEVICES),
                     default="auto", envvar="EDGEPRISM_DEVICE", show_default=True,
                     help="The device to run on; auto uses each engine's best."),
    ):  # fmt: skip
        function = option(function)
    return function


class _TokenLimit(click.ParamType["int | str"]):
    """A number of visual tokens, "auto" or "all"."""

    name = "N|auto|all"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        text = str(value)
        if text in (AUTO, ALL):
            return text
        try:
            number = int(text) if text.isascii() and text.isdigit() else 0
        except ValueError:  # Python reads no number of thousands of digits
            number = 0
        if not number:
            self.fail(
                f"{text!r} is neither a number of at least 1 nor {AUTO} nor {ALL}.", param, ctx
            )
        return number


visual_tokens_option = click.option(
    "--visual-tokens", type=_TokenLimit(), metavar="N|auto|all",
    help="Give the language model at most N of a picture's visual tokens, those that differ most: "
    "sooner words that see less. auto: one in four, and "
    f"{AUTO_LEAST} at least.  [default: all]",
)  # fmt: skip


def frame_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--frames, --frames-per-second, for a captioner that takes videos."""
    for option in (
        click.option("--frames-per-second", type=click.FloatRange(min=LEAST_RATE, max=MOST_RATE),
                     metavar="R", help="Frames of each second of a video, if those are no more "
                     "than --frames, or than the model has room for."),
        click.option("--frames", type=click.IntRange(1, MAX_FRAMES), metavar="N",
                     help="Frames of a video to show, at even distances.  [default: the model's]"),
    ):  # fmt: skip
        function = option(function)
    return function


def check_all_videos(images: Iterable[str]) -> None:
    """Refuse a choice of frames if something that is named is a picture, a folder or a pattern.

    Names of nothing are left to those who read them.
    """
    from edgeprism.picture.patterns import is_pattern
    from edgeprism.picture.video_source import is_video

    for image in images:
        there = os.path.lexists(image)
        if (there and not is_video(image)) or (not there and is_pattern(image)):
            raise UsageError(
                f"{image}: not a video whose frames can be chosen.",
                "Name videos alone with --frames and --frames-per-second, or leave these out.",
            )


def captioner_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--visual-tokens, --vision-quant, --instruction, --focus, --max-tokens."""
    for option in (
        visual_tokens_option,
        click.option("--vision-quant", type=click.Choice(VISION_QUANTS),
                     help="Variant of the vision graph.  [default: the best for the device]"),
        click.option("--max-tokens", "caption_tokens", type=click.IntRange(min=1), metavar="N",
                     help="Longest caption.  [default: the model's]"),
        click.option("--focus", metavar="TEXT",
                     help='What to observe, e.g. "the number of boats".'),
        click.option("--instruction", metavar="TEXT",
                     help="The captioner's instruction.  [default: the model's]"),
    ):  # fmt: skip
        function = option(function)
    return function


def pair_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--lm, --mmproj and --lm-chat-format, for a captioner of two GGUF files."""
    for option in (
        click.option("--lm-chat-format", type=ChatFormat(), metavar="NAME",
                     help="llama.cpp's name of the pair's chat format, for a file whose own "
                     "template llama.cpp does not know."),
        click.option("--mmproj", type=click.Path(dir_okay=False), metavar="MMPROJ.gguf",
                     help="With --lm: the vision model of a pair that llama.cpp's mtmd runs."),
        click.option("--lm", type=click.Path(dir_okay=False), metavar="MODEL.gguf",
                     help="With --mmproj: the language model of a pair, instead of a bundle."),
    ):  # fmt: skip
        function = option(function)
    return function


def open_captioner(
    model: str,
    *,
    lm: str | None = None,
    mmproj: str | None = None,
    lm_chat_format: str | None = None,
    **options: Unpack[CaptionerOptions],
) -> Captioner:
    """Open a bundle or a pair; on a terminal, unless --quiet is given, name models and device."""
    from edgeprism.perceive.captioner import Captioner
    from edgeprism.vision.open_model import open_model

    if lm or mmproj:
        bundle = _pair(lm, mmproj, lm_chat_format)
    else:
        is_pair = is_reference(model) or model.endswith(".gguf")  # which may have to be tried
        waiting = working("trying the pair…") if is_pair else contextlib.nullcontext()
        with told_of_origin("captioner", model), told_to_pull(model, "captioner"), waiting:
            by_setting = was_set(click.get_current_context(), "lm_chat_format")
            if by_setting and (is_named("captioner") or not is_pair):
                lm_chat_format = None  # the setting is for the default captioner, if it is a pair
            bundle = open_model(model, lm_chat_format=lm_chat_format)
    captioner = Captioner(bundle, **options)
    info = captioner.model
    summary = (
        f"{info.name} (vision {info.vision_quant}, language {info.lm_quant}) on {captioner.device}"
    )
    for line in (summary, captioner.bundle.manifest.notice):
        if (
            line
            and not is_quiet()
            and (sys.stderr.isatty() or os.environ.get("EDGEPRISM_NATIVE_LOG"))
        ):
            say(line, dim=True)
    return captioner


def _pair(lm: str | None, mmproj: str | None, chat_format: str | None) -> Bundle:
    from edgeprism.vision.pair import open_pair

    if not lm or not mmproj:
        raise UsageError("--lm and --mmproj belong together.", "Name both files of the pair.")
    if is_named("captioner"):
        raise UsageError("A bundle and a pair exclude each other.", "Name one of them.")
    with working("trying the pair…"):
        return open_pair(lm, mmproj, lm_chat_format=chat_format)


def reasoner_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--reasoner-model, --allow-network, for reasoners that a server runs."""
    for option in (
        click.option("--allow-network", is_flag=True,
                     help="Allow a reasoner's URL on another machine."),
        click.option("--reasoner-model", "served_models", multiple=True, metavar="NAME",
                     help="The model to use of a server that --reasoner names by URL.  [default: "
                     "the first that it lists]"),
    ):  # fmt: skip
        function = option(function)
    return function


def answering_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--reasoner, the options of one reasoner, and --answer-tokens."""
    for option in (
        click.option("--answer-tokens", type=click.IntRange(min=1), default=256, show_default=True,
                     metavar="N", help="Longest answer."),
        reasoner_options,
        click.option("--chat-format", type=ChatFormat(), metavar="NAME",
                     help="llama.cpp's name of the reasoner's chat format, for a file whose own "
                     "template llama.cpp does not know."),
        click.option("--reasoner", shell_complete=completion.reasoners, default=default_reasoner,
                     show_default="`edgeprism use`, or smollm2-135m",
                     metavar="NAME|FILE.gguf|REFERENCE|URL",
                     help="The reasoner: an installed one, any chat GGUF, one that `models "
                     "discover` found, or an OpenAI-compatible server "
                     "(http://127.0.0.1:8080/v1). A LoRA adapter may follow: "
                     "FILE.gguf+ADAPTER.gguf; NAME+none leaves out the one that ships for NAME."),
    ):  # fmt: skip
        function = option(function)
    return function


cache_option = click.option(
    "--no-cache", is_flag=True, help="Neither read nor write the caption store."
)


def open_reasoner(
    name: str,
    *,
    served_models: Sequence[str] = (),
    allow_network: bool = False,
    **options: Unpack[ReasonerOptions],
) -> BaseReasoner:
    """Open the only reasoner of a command; arguments as for `open_reasoners`."""
    reasoner, *more = open_reasoners(
        [name], served_models=served_models, allow_network=allow_network, **options
    )
    if more:
        raise UsageError("This command takes one reasoner.", "Give --reasoner-model once.")
    return reasoner


def open_reasoners(
    names: Iterable[str],
    *,
    served_models: Sequence[str] = (),
    allow_network: bool = False,
    **options: Unpack[ReasonerOptions],
) -> list[BaseReasoner]:
    """Open reasoners by name, file or URL; for a URL, `served_models` or its first."""
    from edgeprism.reason.local import Reasoner

    if was_set(click.get_current_context(), "chat_format") and is_named("reasoner"):
        options["chat_format"] = None  # the setting is for the default reasoner
    reasoners: list[BaseReasoner] = []
    names = list(dict.fromkeys(names))
    if served_models and not any(map(is_url, names)):
        raise UsageError(
            "--reasoner-model names a server's model.",
            "Name the server as well: --reasoner http://127.0.0.1:8080/v1",
        )
    for name in names:
        if is_url(name):
            from edgeprism.reason.remote import RemoteReasoner  # HTTP and TLS take 30 ms to import

            for model in dict.fromkeys(served_models) or (None,):
                reasoners.append(RemoteReasoner.load(name, model, allow_network=allow_network))
        else:
            with told_of_origin("reasoner", name):
                reasoners.append(Reasoner.load(name, **options))
    return reasoners


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Show a spinner on stderr inside the block, if stderr is a terminal."""
    if not sys.stderr.isatty() or is_quiet():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    # A Text, because in a str rich reads what stands in brackets as markup.
    with Console(stderr=True).status(Text(printable_line(text))):
        yield


def perceiving(captioners: Sequence[Captioner], *, use_store: bool) -> list[Perceiver]:
    """Return the captioners; with `use_store`, each one uses the caption store."""
    if not use_store:
        return [*captioners]
    from edgeprism.store.caption_store import CaptionStore, default_path
    from edgeprism.store.database import StoreError
    from edgeprism.store.stored_captioner import StoredCaptioner

    warned: set[str] = set()

    def warn(error: StoreError) -> None:
        """Say once that the captions of this command are made without the store."""
        if not warned:
            warned.add(error.summary)
            say(f"note: {error.summary} It is not used.")

    def tell_damaged(error: StoreError) -> None:
        say(f"note: {error.summary} The picture is described again.")

    try:
        store = CaptionStore(default_path(), on_unwritable=warn, on_damaged=tell_damaged)
    except StoreError as error:
        warn(error)
        return [*captioners]
    return [StoredCaptioner(captioner, store, on_error=warn) for captioner in captioners]
