"""Options that several commands share, and what they all print on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeprism.captioner import Captioner


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--device, --threads, --gpu-layers."""
    for option in (
        click.option("--gpu-layers", type=click.IntRange(min=0), metavar="N",
                     help="Language-model layers on the GPU.  [default: all]"),
        click.option("--threads", type=click.IntRange(min=1), metavar="N",
                     help="CPU threads.  [default: the cores this process may use]"),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "metal"]),
                     default="auto", envvar="EDGEPRISM_DEVICE", show_default=True,
                     help="Where to run; auto takes the best each engine has."),
    ):  # fmt: skip
        function = option(function)
    return function


def captioner_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--vision-quant, --instruction, --focus, --max-tokens."""
    for option in (
        click.option("--vision-quant", type=click.Choice(["fp32", "fp16", "int8", "int8-full"]),
                     help="Variant of the vision graph.  [default: the best for the device]"),
        click.option("--max-tokens", type=click.IntRange(min=1), metavar="N",
                     help="Longest caption.  [default: the model's]"),
        click.option("--focus", metavar="TEXT",
                     help='What to attend to, e.g. "the number of boats".'),
        click.option("--instruction", metavar="TEXT",
                     help="What to ask of the captioner.  [default: the model's]"),
    ):  # fmt: skip
        function = option(function)
    return function


def open_captioner(
    model: str,
    *,
    device: str,
    threads: int | None,
    gpu_layers: int | None,
    vision_quant: str | None,
) -> Captioner:
    """Load a captioner and tell a person at a terminal what runs."""
    from edgeprism.captioner import Captioner

    captioner = Captioner.load(
        model, device=device, threads=threads, gpu_layers=gpu_layers, vision_quant=vision_quant
    )
    info = captioner.model
    told = (
        f"{info.name} (vision {info.vision_quant}, language {info.lm_quant}) on {captioner.device}"
    )
    for line in (told, captioner.bundle.manifest.notice):
        if line and (sys.stderr.isatty() or os.environ.get("EDGEPRISM_NATIVE_LOG")):
            click.secho(line, dim=True, err=True)
    return captioner


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner on stderr while inside; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield
